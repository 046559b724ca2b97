"""Views of a graph document."""
