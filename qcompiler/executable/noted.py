"""Names of what is noted on a converted module, and kept in its file, that back ends read as well."""

LARGEST = "_qcompiler_largest_codes"  # on a converted module: of values whose range has fewer than 8 bits, by name
ROWS = "_qcompiler_rows"  # on a converted module: the rows of explain
