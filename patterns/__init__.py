"""Rules by family. FUSE is what `fuse` runs; users pass rules of their own beside it."""

from qcompiler.patterns import activations, batch_norm, bounds, live_batch_norm, padding

FUSE = (*padding.RULES, *batch_norm.RULES, *bounds.RULES, *activations.RULES)
FUSE_TRAINING = (*padding.RULES, *live_batch_norm.RULES, *bounds.RULES, *activations.RULES)  # of a model that will be trained
