"""Layers -> C: constants.py holds what the C reads, layer_code.py writes the function of a layer, source.py the file of a network."""
