"""What a run leaves behind: checkpoints, curves, answers, a Hugging Face folder."""

from lit_ift.callbacks.checkpoint import RunCheckpoint
from lit_ift.callbacks.confidence import ConfidenceRecorder
from lit_ift.callbacks.curves import LossCurves
from lit_ift.callbacks.export import HuggingFaceExport
from lit_ift.callbacks.half_fine_tuning import HalfFineTuning
from lit_ift.callbacks.lost_ranks import LostRanks
from lit_ift.callbacks.metrics import ExactMatch, MetricEntry, ValidationMetrics
from lit_ift.callbacks.predictions import AnswerWriter
from lit_ift.callbacks.samples import Samples
from lit_ift.checkpoints.random_state import RandomState

__all__ = [
    "AnswerWriter",
    "ConfidenceRecorder",
    "ExactMatch",
    "HalfFineTuning",
    "HuggingFaceExport",
    "LossCurves",
    "LostRanks",
    "MetricEntry",
    "RandomState",
    "RunCheckpoint",
    "Samples",
    "ValidationMetrics",
]
