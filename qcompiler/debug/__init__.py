"""See what the compiler did: dumps, recordings, explanations, measures."""

from qcompiler.debug.bisect import Bisection, bisect
from qcompiler.debug.compare import compare, compute_cosine_similarity, compute_sqnr
from qcompiler.debug.comparison import Comparison, NodeError
from qcompiler.debug.document import Document
from qcompiler.debug.dump import Dump
from qcompiler.debug.explain import Explanation, Row
from qcompiler.debug.record import Recorder
from qcompiler.debug.sources import document_of

__all__ = [
    "Bisection", "Comparison", "Document", "Dump", "Explanation", "NodeError", "Recorder", "Row", "bisect", "compare",
    "compute_cosine_similarity", "compute_sqnr", "document_of",
]  # fmt: skip
