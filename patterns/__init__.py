"""Rules by family. FUSE is what `fuse` runs; users pass rules of their own beside it."""

from qcompiler.patterns import batch_norm, bounds, padding

FUSE = (*padding.RULES, *batch_norm.RULES, *bounds.RULES)
