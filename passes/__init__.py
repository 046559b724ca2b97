"""The table of contents of the compiler: every list of passes, and the pipelines made of them.

| pipeline | what runs it |
|---|---|
| `STATIC` | prepare_fx, then convert_fx, with whatever modes the qconfigs mean |
| `TRAINING` | prepare_qat_fx, then convert_fx of what was trained |
| `CUSTOM`, `CUSTOM_TRAINING` | the same where the user gave classes for modules of his own |
| `pipeline.reference` | convert_to_reference_fx in place of convert_fx: it ends at QUANTIZED |

fuse_fx runs the first part of any. A back end adds its own passes at the end (`with_lowering`), the user his behind the fusions
(`with_passes`). Nothing else spells a list: api, bisect, crash reproducers, tests and docs read these values.
"""

from dataclasses import replace

from qcompiler.compile.pass_lists import Pipeline
from qcompiler.compile.settings import Settings
from qcompiler.passes.annotate import Annotate
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.correct_codes import CorrectCodes
from qcompiler.passes.correct_weights import CorrectWeights
from qcompiler.passes.fold_affine import FoldAffine, NoteAffine
from qcompiler.passes.freeze_qparams import FreezeQParams
from qcompiler.passes.fuse import Fuse
from qcompiler.passes.fuse_sums import FuseSums
from qcompiler.passes.hand_out_floats import HandOutFloats
from qcompiler.passes.insert_fake_quants import InsertFakeQuants
from qcompiler.passes.insert_observers import InsertObservers
from qcompiler.passes.insert_quantize_dequantize import InsertQuantizeDequantize
from qcompiler.passes.join_assignments import JoinAssignments
from qcompiler.passes.join_for_training import JoinForTraining
from qcompiler.passes.join_qparams import JoinQParams
from qcompiler.passes.judge_averages import JudgeAverages
from qcompiler.passes.judge_cuts import JudgeCuts
from qcompiler.passes.judge_parts import JudgeParts
from qcompiler.passes.judge_recurrent import JudgeRecurrent, WatchRecurrent
from qcompiler.passes.judge_rows import JudgeRows, WatchRows
from qcompiler.passes.keep_codes import KeepCodes
from qcompiler.passes.keep_float import KeepFloat
from qcompiler.passes.keep_sums import KeepSums
from qcompiler.passes.note_parts import NoteParts
from qcompiler.passes.note_picked import NotePicked
from qcompiler.passes.read_numbers import ReadNumbers
from qcompiler.passes.remove_identities import RemoveIdentities
from qcompiler.passes.resolve_padding import ResolvePadding
from qcompiler.passes.scale_inputs import ScaleInputs
from qcompiler.passes.scale_parts import ScaleParts
from qcompiler.passes.separate_assignments import SeparateAssignments
from qcompiler.passes.settle_training import SettleTraining
from qcompiler.passes.share_qparams import ShareQParams
from qcompiler.passes.swap_custom_modules import ObserveCustomModules, QuantizeCustomModules
from qcompiler.passes.watch_spares import DropSpares, WatchSpares

FUSE = (Canonicalize(), ResolvePadding(), JoinAssignments(), SeparateAssignments(), RemoveIdentities(), Fuse())  # TRACED -> FUSED
DECIDE = (Annotate(), NoteAffine(), KeepFloat(), HandOutFloats(), KeepSums(), ShareQParams())
OBSERVE = (*DECIDE, InsertObservers(), WatchRecurrent(), WatchRows(), WatchSpares())  # FUSED -> OBSERVED
OBSERVE_TRAINING = (*DECIDE, NoteParts(), JoinForTraining(), InsertObservers(), InsertFakeQuants())  # of a model that will be trained
# OBSERVED -> QUANTIZED
SETTLE = (DropSpares(), FoldAffine(), ReadNumbers())
QUANTIZE = (*SETTLE, JudgeRecurrent(), JudgeRows(), FreezeQParams(), ScaleParts(), JudgeCuts(), JudgeParts(), NotePicked(),
            JudgeAverages(), KeepCodes(), FuseSums(), JoinQParams(), InsertQuantizeDequantize())  # fmt: skip
QUANTIZE_TRAINED = (SettleTraining(), FreezeQParams(), InsertQuantizeDequantize())  # what only calibration decides is decided
# behind SETTLE and at the end of QUANTIZE, where the user gives corrections
CORRECT_FLOATS, CORRECT_CODES = (CorrectWeights(), ScaleInputs()), (CorrectCodes(),)
OBSERVE_CUSTOM = (ObserveCustomModules(),)  # at the end of OBSERVE
QUANTIZE_CUSTOM = (QuantizeCustomModules(),)  # QUANTIZED, before lowering: from here on those modules take quint8 tensors

STATIC = Pipeline("static", FUSE, OBSERVE, QUANTIZE)
TRAINING = Pipeline("training", FUSE, OBSERVE_TRAINING, QUANTIZE_TRAINED)
CUSTOM = Pipeline("custom", FUSE, (*OBSERVE, *OBSERVE_CUSTOM), QUANTIZE, QUANTIZE_CUSTOM)
CUSTOM_TRAINING = Pipeline("custom training", FUSE, (*OBSERVE_TRAINING, *OBSERVE_CUSTOM), QUANTIZE_TRAINED, QUANTIZE_CUSTOM)
PIPELINES = {pipeline.name: pipeline for pipeline in (STATIC, TRAINING, CUSTOM, CUSTOM_TRAINING)}


def pipeline_for(settings: Settings) -> Pipeline:
    """The pipeline that the settings mean."""
    pipeline = _of_model(settings)
    if not settings.corrections:
        return pipeline
    settle = SETTLE if pipeline.quantize[: len(SETTLE)] == SETTLE else ()  # corrections are of the weights that these leave
    corrected = replace(pipeline, quantize=pipeline.quantize[len(settle) :]).with_corrections(CORRECT_FLOATS, CORRECT_CODES)
    return replace(corrected, quantize=(*settle, *corrected.quantize))


def _of_model(settings: Settings) -> Pipeline:
    if settings.custom.observed_classes:
        return CUSTOM_TRAINING if settings.trains else CUSTOM
    return TRAINING if settings.trains else STATIC
