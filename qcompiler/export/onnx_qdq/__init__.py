"""ONNX with QuantizeLinear and DequantizeLinear, from a QUANTIZED graph. Needs the extra `onnx`."""
