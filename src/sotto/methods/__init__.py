"""The methods, and what each of them is made of. Importing this package registers them all."""

from sotto.methods.adaptive_pruning import AdaptivePruning, apply_adaptive_pruning
from sotto.methods.distil_whisper import DistilWhisper
from sotto.methods.fine_tuning import FineTuning
from sotto.methods.fitted_window import FittedWindow
from sotto.methods.guided_distillation import GuidedDistillation
from sotto.methods.head_reduction import apply_head_reduction
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.hold_zeros import HoldZeros
from sotto.methods.importance import ImportancePruning
from sotto.methods.l0_pruning import L0Pruning
from sotto.methods.layer_dropping import LayerDropping
from sotto.methods.layerwise_distillation import LayerwiseDistillation
from sotto.methods.low_rank import apply_low_rank
from sotto.methods.low_rank_config import LowRank
from sotto.methods.magnitude import MagnitudePruning, StructuredMagnitude
from sotto.methods.method import StepContext, methods
from sotto.methods.quantization import Quantization
from sotto.methods.quantization_aware import QuantizationAware
from sotto.methods.shorter_window import ShorterWindow
from sotto.methods.sparse_group_lasso import SparseGroupLasso

__all__ = [
    "AdaptivePruning",
    "DistilWhisper",
    "FineTuning",
    "FittedWindow",
    "GuidedDistillation",
    "HeadReduction",
    "HoldZeros",
    "ImportancePruning",
    "L0Pruning",
    "LayerDropping",
    "LayerwiseDistillation",
    "LowRank",
    "MagnitudePruning",
    "Quantization",
    "QuantizationAware",
    "ShorterWindow",
    "SparseGroupLasso",
    "StepContext",
    "StructuredMagnitude",
    "apply_adaptive_pruning",
    "apply_head_reduction",
    "apply_low_rank",
    "methods",
]
