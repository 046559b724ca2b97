"""Rules of the random networks of tests/graph_grammar.py, by what they work on."""
