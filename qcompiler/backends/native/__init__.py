"""The native back end: a network as C."""
