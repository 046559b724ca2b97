"""Drawings of graphs: pages, SVG, DOT, Mermaid, terminal, notebook."""
