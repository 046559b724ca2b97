"""See what the compiler did: dumps, explanations, measures, and instruments of your own."""

from qcompiler.compile.journal import PassRecord, Remark
from qcompiler.compile.pass_manager import PassInstrument
from qcompiler.debug.bisect import Bisection, bisect
from qcompiler.debug.compare import compare
from qcompiler.debug.comparison import Comparison, NodeError
from qcompiler.debug.document import Document
from qcompiler.debug.dump_directory import Dump, dump
from qcompiler.debug.explain import Explanation, Row
from qcompiler.debug.gate import Gate, gated
from qcompiler.debug.metrics import compute_cosine_similarity, compute_normalized_l2_error, compute_sqnr
from qcompiler.debug.parity import Difference, Parity, parity
from qcompiler.debug.printer import Printer
from qcompiler.debug.record import Recorder
from qcompiler.debug.sources import document_of

__all__ = [
    "Bisection", "Comparison", "Difference", "Document", "Dump", "Explanation", "Gate", "NodeError", "Parity", "PassInstrument",
    "PassRecord", "Printer", "Recorder", "Remark", "Row", "bisect", "compare", "compute_cosine_similarity",
    "compute_normalized_l2_error", "compute_sqnr", "document_of", "dump", "gated", "parity",
]  # fmt: skip
