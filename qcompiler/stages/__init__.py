"""What each stage of the IR allows, and QUANTIZED as typed values: the contract between the passes and every back end."""
