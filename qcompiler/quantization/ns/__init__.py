"""Parts of the numeric suite. Its names are in qcompiler.quantization.numeric_suite and numeric_suite_fx."""
