"""What measures the kernels on a machine and writes the committed tables."""
