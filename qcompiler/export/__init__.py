"""Exporters: a QUANTIZED graph as a file or program of others. The one that needs an extra is imported when it is asked for."""
