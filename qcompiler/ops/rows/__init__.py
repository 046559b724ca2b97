"""The rows of the op table, by family; each file ends with ROWS."""
