"""What users say about quantization: qconfigs, mappings of these, custom and back-end configurations."""
