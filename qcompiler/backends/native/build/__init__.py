"""C files -> libraries: compiler.py finds a C compiler, cache.py keeps what it made, library.py loads it."""
