"""See what the compiler did: dumps, explanations, measures."""

from qcompiler.debug.compare import compute_cosine_similarity, compute_sqnr
from qcompiler.debug.dump import Dump
from qcompiler.debug.explain import Explanation, Row

__all__ = ["Dump", "Explanation", "Row", "compute_cosine_similarity", "compute_sqnr"]
