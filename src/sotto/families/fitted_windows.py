"""Windows of Whisper that end soon after what is said, instead of always as late as the model's own.

They stand in the feature extractor's settings, `fitted_silence`: so they are kept with the model, and readers that know
nothing of them pad to the whole window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

SETTING = "fitted_silence"  # seconds; absent where clips are padded to the whole window


def is_fitted(extractor: Any) -> bool:
    return getattr(extractor, SETTING, None) is not None


@contextmanager
def whole_windows(extractor: Any) -> Iterator[None]:
    """For a while clips are padded to the whole window."""
    silence = getattr(extractor, SETTING, None)
    if silence is not None:
        forget_fit(extractor)
    try:
        yield
    finally:
        if silence is not None:
            setattr(extractor, SETTING, silence)


def forget_fit(extractor: Any) -> None:
    """Pad to the whole window again."""
    delattr(extractor, SETTING)


def fitted_seconds(extractor: Any, longest: float) -> int:
    """Whole seconds of a window for clips of at most `longest` seconds; the model's own where none is fitted."""
    whole = int(extractor.chunk_length)
    if not is_fitted(extractor):
        return whole
    return min(whole, max(1, math.ceil(longest + float(getattr(extractor, SETTING)))))


def drawn_seconds(extractor: Any, lengths: Sequence[int]) -> int:
    """The same for training, whose clips have so many samples: drawn between that and the whole window.

    So a model learns silence of every length, as it hears it beside longer clips and from readers that pad to the whole
    window; shorter windows more often, in proportion to how far the whole one is. The same clips always get the same
    window, and a resumed training goes on as it would have.
    """
    shortest, whole = fitted_seconds(extractor, max(lengths) / extractor.sampling_rate), int(extractor.chunk_length)
    return int(np.random.default_rng(lengths).triangular(shortest, shortest, whole + 1))
