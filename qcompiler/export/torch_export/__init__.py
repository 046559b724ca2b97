"""torch.export.ExportedProgram from a QUANTIZED graph, in ops of aten or with those of quantized_decomposed."""
