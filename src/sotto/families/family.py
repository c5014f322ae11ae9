"""What a family of recognisers does in its own way: the one place where families differ, but for their tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from sotto.data import Clip
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.examples import Batch, Example

Inputs = dict[str, torch.Tensor]
"""What a model is called with, by name."""


@dataclass(frozen=True)
class Family(ABC):
    """One model of a family, with its processor."""

    model: Any
    processor: Any

    decision: ClassVar[str]
    """what the model decides on, one after the other: a token, or a frame"""
    loss_name: ClassVar[str]
    """what its loss is called in logs"""
    smooths_labels: ClassVar[bool]
    """whether its loss can be taken with smoothed labels"""

    @staticmethod
    @abstractmethod
    def load_processor(name: str | Path) -> Any:
        """The processor of a checkpoint. Raises SottoError where it is incomplete."""

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    @abstractmethod
    def window_seconds(self) -> float:
        """Length of audio over which FLOPs and latency are given."""

    @property
    @abstractmethod
    def longest_seconds(self) -> float:
        """The most audio that goes through the model at once; longer clips are cut."""

    @property
    def window_frames(self) -> int | None:
        return self.frames(self.window_seconds)

    @abstractmethod
    def frames(self, seconds: float) -> int | None:
        """Audio of that length as `sotto.metrics.cost` counts it; None where all is padded to a window of the model."""

    @property
    @abstractmethod
    def window_positions(self) -> int:
        """Positions of the encoder's output for a window."""

    @abstractmethod
    def inputs(self, audio: Sequence[NDArray[np.float32]]) -> Inputs:
        """Model inputs, on the model's device, for stretches of audio of shape (samples,)."""

    @abstractmethod
    def encode(self, inputs: Inputs) -> None:
        """Run the encoder alone."""

    @abstractmethod
    def with_transcript(self, inputs: Inputs, language: str | None = None) -> Inputs:
        """Inputs for one window that also hold the model's own transcript, where its decisions depend on one."""

    @abstractmethod
    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Scores (decisions, vocabulary) of all that the model decides on, given `with_transcript`; no padding."""

    @abstractmethod
    def probe(self) -> torch.Tensor:
        """Outputs for fixed noise: what two equal models agree on."""

    @abstractmethod
    def generation_config(self) -> GenerationConfig | None:
        """The decoding settings that belong beside the weights, if there are any."""

    @abstractmethod
    def transcribe(self, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
        """Transcribe clips in the order given. Raises SottoError at once where the model cannot decode like this."""

    @property
    def idle_weights(self) -> bool:
        """Whether some weights may take no part in the loss of a batch."""
        return False

    def shorten_window(self, seconds: float) -> None:
        """Have model and processor hear windows of so many whole seconds. Raises SottoError as `window` does."""
        raise SottoError("the model has no window of its own, and hears audio of any length")

    def fit_windows(self, silence: float) -> None:
        """Have windows end so many seconds after the clips of a batch. Raises SottoError where the model has none."""
        raise SottoError("the model has no window to fit: its batches are as long as their clips")

    @contextmanager
    def window(self, seconds: float | None) -> Iterator[None]:
        """For a while the model hears windows of this length; of its own where `seconds` is None.

        Raises SottoError where it has none, or a shorter one.
        """
        if seconds is not None:
            raise SottoError("the model has no window; leave out window_seconds")
        yield

    @abstractmethod
    def collator(self, language: str) -> Callable[[list[Example]], Batch]:
        """What makes a batch of examples, on the CPU, in a loader's process.

        Raises SottoError for a language that the model does not know.
        """

    @abstractmethod
    def loss(self, batch: Batch, label_smoothing: float) -> tuple[Any, torch.Tensor]:
        """(the model's outputs, the loss summed over label tokens) of a batch on the model's device."""

    @abstractmethod
    def counted_positions(self, batch: Batch, outputs: Any) -> dict[str, torch.Tensor]:
        """By stack, which positions (batch, positions) of `outputs` are of the clips and not padding."""


def batches(clips: Iterable[Clip], longest_seconds: float, size: int) -> Iterator[list[Clip]]:
    """Neighbouring clips that go through at once, at most `size` together; longer ones alone."""
    batch: list[Clip] = []
    for clip in clips:
        fits = clip.seconds <= longest_seconds
        if batch and not fits:
            yield batch
            batch = []
        batch.append(clip)
        if len(batch) == size or not fits:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
