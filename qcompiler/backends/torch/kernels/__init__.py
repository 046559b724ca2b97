"""The kernels of torch by op, which of them are right (measured.json) and which is the fastest (speed.json); `table` lists them."""
