"""export_c: a network as a folder of C11 files that need nothing but a C compiler."""

from qcompiler.backends.native.export.folder import export_c

__all__ = ["export_c"]
