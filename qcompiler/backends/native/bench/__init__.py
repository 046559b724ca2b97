"""Two C programs: what the machine can do, and what the kernels make of it. See README.md."""
