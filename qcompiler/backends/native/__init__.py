"""The native back end: QUANTIZED -> C -> a library of this machine (docs/native.md)."""
