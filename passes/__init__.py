"""The table of contents of the compiler: the ordered lists that fuse_fx, prepare_fx, prepare_qat_fx and convert_fx run."""

from qcompiler.passes.annotate import Annotate
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.freeze_qparams import FreezeQParams
from qcompiler.passes.fuse import Fuse
from qcompiler.passes.fuse_sums import FuseSums
from qcompiler.passes.hand_out_floats import HandOutFloats
from qcompiler.passes.insert_fake_quants import InsertFakeQuants
from qcompiler.passes.insert_observers import InsertObservers
from qcompiler.passes.insert_quantize_dequantize import InsertQuantizeDequantize
from qcompiler.passes.join_for_training import JoinForTraining
from qcompiler.passes.join_qparams import JoinQParams
from qcompiler.passes.judge_averages import JudgeAverages
from qcompiler.passes.judge_parts import JudgeParts
from qcompiler.passes.judge_recurrent import JudgeRecurrent, WatchRecurrent
from qcompiler.passes.judge_rows import JudgeRows, WatchRows
from qcompiler.passes.keep_float import KeepFloat
from qcompiler.passes.remove_identities import RemoveIdentities
from qcompiler.passes.resolve_padding import ResolvePadding
from qcompiler.passes.scale_parts import ScaleParts
from qcompiler.passes.separate_assignments import SeparateAssignments
from qcompiler.passes.settle_training import SettleTraining
from qcompiler.passes.share_qparams import ShareQParams
from qcompiler.passes.swap_custom_modules import ObserveCustomModules, QuantizeCustomModules

FUSE = (Canonicalize(), ResolvePadding(), SeparateAssignments(), RemoveIdentities(), Fuse())  # TRACED -> FUSED
DECIDE = (Annotate(), KeepFloat(), FuseSums(), HandOutFloats(), ShareQParams())
OBSERVE = (*DECIDE, InsertObservers(), WatchRecurrent(), WatchRows())  # FUSED -> OBSERVED
OBSERVE_TRAINING = (*DECIDE, JoinForTraining(), InsertObservers(), InsertFakeQuants())  # of a model that will be trained
# OBSERVED -> QUANTIZED, then lowered
QUANTIZE = (JudgeRecurrent(), JudgeRows(), FreezeQParams(), ScaleParts(), JudgeParts(), JudgeAverages(), JoinQParams(),
            InsertQuantizeDequantize())  # fmt: skip
OBSERVE_CUSTOM = (ObserveCustomModules(),)  # at the end of OBSERVE, where the user gave classes for modules of his own
QUANTIZE_CUSTOM = (QuantizeCustomModules(),)  # the same before lowering: from here on those modules take quint8 tensors
QUANTIZE_TRAINED = (SettleTraining(), FreezeQParams(), InsertQuantizeDequantize())  # what only calibration decides is decided
