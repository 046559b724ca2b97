"""What the public functions do: prepare, calibrate, convert, explain."""
