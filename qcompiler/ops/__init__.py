"""The op table: rows, their float semantics and the reference arithmetic."""
