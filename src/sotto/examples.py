"""Training examples: clips, or strings spliced from them, varied anew in every epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Dataset

from sotto.augmentation import Augmentation, Splicer, Splicing, augment
from sotto.data import BadClip, Clip, ClipReference, ClipSource
from sotto.data.audio import header_seconds
from sotto.errors import SottoError

IGNORED = -100  # the label that losses leave out (torch's ignore_index)
LABEL_MULTIPLE = 16  # few different lengths, so that torch.compile seldom has to start anew

logger = logging.getLogger(__name__)


Batch = dict[str, torch.Tensor]
"""The inputs of a model by name, and `labels` (batch, tokens) int64, padded with -100."""


@dataclass(frozen=True)
class Span:
    """Where the transcribed speech lies in the window, in seconds; `cut` where speech runs on past the window."""

    start: float
    end: float
    cut: bool


@dataclass(frozen=True)
class Example:
    """`audio` (samples,) with what is said in it; `span` where the model is to write the times too."""

    audio: NDArray[np.float32]
    text: str
    language: str | None
    span: Span | None


class ClipExamples(Dataset[Example]):
    """One example a clip, varied anew in every epoch; the same index and epoch give the same example.

    A clip that turns out to be bad is reported, and the next one takes its place.
    """

    def __init__(
        self,
        source: ClipSource,
        augmentation: Augmentation,
        window_seconds: float,
        seed: int,
        written: Callable[[str], str] = str,
    ) -> None:
        """`written` gives the text to learn from the transcript."""
        self.source = source
        self.written = written
        fitting = [(clip, seconds) for clip, seconds in usable(source, window_seconds) if written(clip.text or "")]
        self.references = [reference for reference, _ in fitting]
        self.lengths = [seconds for _, seconds in fitting]
        self.augmentation = augmentation
        self.window_seconds = window_seconds
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        clip = self.read(index)
        audio, _ = augment(clip.audio, self.augmentation, clip.sampling_rate, rng)
        if len(audio) > round(self.window_seconds * clip.sampling_rate):  # slowed down past the window
            audio = clip.audio
        return Example(audio, self.written(clip.text or ""), clip.language, None)

    def read(self, index: int) -> Clip:
        """The clip at `index`, or the next good one. Raises SottoError where there is none."""
        for offset in range(len(self)):
            reference = self.references[(index + offset) % len(self)]
            try:
                clip = self.source.read(reference)
                if len(clip.audio) > round(self.window_seconds * clip.sampling_rate):
                    raise BadClip(f"{clip.seconds:.2f} s long, more than the window")
                return clip
            except BadClip as bad:
                logger.warning("%s left out: %s", reference.name, bad.reason)
        raise SottoError(f"none of the {len(self)} clips in {self.source.config.path} can be used; check the files")


class JoinedExamples(ConcatDataset[Example]):
    """The examples of several folders, one after the other."""

    def __init__(self, parts: Sequence[ClipExamples]) -> None:
        super().__init__(parts)
        self.parts = parts
        self.lengths = [seconds for part in parts for seconds in part.lengths]

    def set_epoch(self, epoch: int) -> None:
        for part in self.parts:
            part.set_epoch(epoch)


def examples_of(
    sources: Sequence[ClipSource],
    augmentation: Augmentation,
    window_seconds: float,
    seed: int,
    written: Callable[[str], str] = str,
) -> JoinedExamples:
    """The clips of all folders; one that is named twice is varied in another way each time."""
    return JoinedExamples(
        [
            ClipExamples(source, augmentation, window_seconds, seed + number, written)
            for number, source in enumerate(sources)
        ]
    )


class SplicedExamples(Dataset[Example]):
    """Strings spliced from short clips; the same index and epoch give the same string.

    A share `timestamp_share` of them, and all that are cut by the window, carry their span.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        splicing: Splicing,
        augmentation: Augmentation,
        window_seconds: float,
        timestamp_share: float,
        seed: int,
    ) -> None:
        self.timestamp_share = timestamp_share
        self.splicer = Splicer(clips, splicing, window_seconds)
        self.strings = splicing.strings
        self.lengths = [window_seconds] * self.strings
        self.augmentation = augmentation
        self.window_seconds = window_seconds
        self.rate = clips[0].sampling_rate
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.strings

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        string = self.splicer.draw(rng)
        audio, speed = augment(string.audio, self.augmentation, self.rate, rng)
        end = string.end / speed
        if end > self.window_seconds:  # slowed down past the window: the text would no longer be all there
            audio, end, speed = string.audio, string.end, 1.0
        audio = audio[: round(self.window_seconds * self.rate)]
        timed = string.cut or rng.random() < self.timestamp_share
        span = Span(string.start / speed, end, string.cut) if timed else None
        return Example(audio, string.text, None, span)


def usable(source: ClipSource, window_seconds: float) -> list[tuple[ClipReference, float]]:
    """The clips that have a transcript and fit the window (a longer clip's text would not be all there).

    Each with its length in seconds, 0 where that is not known before decoding.
    """
    transcribed = [(reference, seconds_of(reference)) for reference in source.references if reference.text]
    fitting = [(reference, seconds) for reference, seconds in transcribed if seconds <= window_seconds]
    if not fitting:
        raise SottoError(
            f"no clip has a transcript and fits the window of {window_seconds:g} s; "
            "training needs a metadata.csv with columns file_name,text"
        )
    return fitting


def seconds_of(reference: ClipReference) -> float:
    if reference.seconds is not None or reference.path is None:
        return reference.seconds or 0.0
    return header_seconds(reference.path) or 0.0


def padded(labels: Sequence[list[int]], most: int | None = None) -> torch.Tensor:
    """(batch, tokens) int64, padded with -100 to one of few lengths, which is at most `most`."""
    length = -(-max(map(len, labels)) // LABEL_MULTIPLE) * LABEL_MULTIPLE
    length = length if most is None else min(length, most)
    return torch.tensor([ids + [IGNORED] * (length - len(ids)) for ids in labels], dtype=torch.int64)
