"""One window of Whisper's as tests look at it: the features, and the tokens that the model writes for them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sotto.checkpoint import Recognizer


def features_of(recognizer: Recognizer, audio: Sequence[NDArray[np.float32]]) -> torch.Tensor:
    """(windows, mel bins, frames)"""
    return recognizer.family.inputs(audio)["input_features"]


def own_transcript(recognizer: Recognizer, features: torch.Tensor) -> torch.Tensor:
    """(1, tokens)"""
    return recognizer.family.with_transcript({"input_features": features}, recognizer.language)["decoder_input_ids"]
