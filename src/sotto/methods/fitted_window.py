"""Windows that are fitted to the clips of a batch, for a model that is then trained to hear them.

whisper.cpp has this as a smaller audio context (`audio_ctx`): the positions of Whisper's encoder are sinusoids
(Radford et al., 2022, arXiv:2212.04356, section 2.2), and silence after a clip says nothing. But a model has always
heard that silence, and errs more until it has learnt to do without.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.method import StepContext, methods


@dataclass(frozen=True)
class FittedWindow:
    """Batches are padded to whole seconds, at most to the model's own window."""

    silence: float = 0.5
    """seconds at least between the longest clip's end and that of the window"""

    def __post_init__(self) -> None:
        if self.silence < 0:
            raise SottoError(f"fitted_window: silence must not be negative, found {self.silence}")


@methods.register("fitted_window", FittedWindow)
def apply_fitted_window(recognizer: Recognizer, config: FittedWindow, context: StepContext) -> list[str]:
    """Fit the windows of `recognizer` in place. Raises SottoError where it has none."""
    recognizer.processor = copy.deepcopy(recognizer.processor)  # the model that this one is a copy of has it too
    recognizer.family.fit_windows(config.silence)
    return [f"windows end {config.silence:g} s or more after the longest clip of a batch, at most with the model's own"]
