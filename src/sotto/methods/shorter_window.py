"""A shorter window for a model whose users say little at a time.

Whisper pads every clip to the window of its encoder, mostly 30 s, and computes all of it; what a window costs falls
with its length, in every runtime. The positions of its encoder are sinusoids (Radford et al., 2022, arXiv:2212.04356,
section 2.2), so that those of a shorter window are the first ones, and no weight changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.method import StepContext, methods


@dataclass(frozen=True)
class ShorterWindow:
    """Longer clips are then heard window after window, by the times that the model writes."""

    seconds: int
    """of the window from then on"""

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise SottoError(f"shorter_window: seconds must be at least 1, found {self.seconds}")


@methods.register("shorter_window", ShorterWindow)
def apply_shorter_window(recognizer: Recognizer, config: ShorterWindow, context: StepContext) -> list[str]:
    """Shorten the window of `recognizer` in place. Raises SottoError where it has none, or none that is longer."""
    before = recognizer.window_seconds
    recognizer.processor = copy.deepcopy(recognizer.processor)  # the model that this one is a copy of has it too
    recognizer.family.shorten_window(config.seconds)
    return [f"the window is {config.seconds} s long, and was {before:g} s"]
