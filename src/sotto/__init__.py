"""Sotto makes speech recognisers smaller and faster, and proves on real audio that they still hear."""

from sotto.quiet import import_quantizers

import_quantizers()  # before all that imports transformers

from sotto.auto_classes import register
from sotto.checkpoint import Recognizer, load
from sotto.compress import compress
from sotto.data import DataConfig
from sotto.errors import SottoError
from sotto.exports import export
from sotto.methods import (
    AdaptivePruning,
    DistilWhisper,
    FineTuning,
    FittedWindow,
    GuidedDistillation,
    HeadReduction,
    HoldZeros,
    ImportancePruning,
    L0Pruning,
    LayerDropping,
    LayerwiseDistillation,
    LowRank,
    MagnitudePruning,
    Quantization,
    QuantizationAware,
    ShorterWindow,
    SparseGroupLasso,
    StructuredMagnitude,
)
from sotto.training import Training

__all__ = [
    "AdaptivePruning",
    "DataConfig",
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
    "Recognizer",
    "ShorterWindow",
    "SottoError",
    "SparseGroupLasso",
    "StructuredMagnitude",
    "Training",
    "compress",
    "export",
    "load",
]

__version__ = "0.1.0"

register()
