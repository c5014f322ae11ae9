"""What a recipe says about data, and what a clip is."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotto.errors import SottoError

DEFAULT_TEXT = "text"
TEXT_COLUMNS = (DEFAULT_TEXT, "transcription", "sentence")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
LANGUAGE_COLUMNS = ("language", "locale")
SECONDS_COLUMNS = ("seconds",)


class BadClip(Exception):  # noqa: N818 - it is about a clip, the program has no error
    """One clip that cannot be used. `reason` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class DataConfig:
    """The data of one role, as a recipe writes it.

    path: a folder, an audio file, a .txt list of audio files (one a line), or a hub dataset `owner/name`.
    split, name: the split, and the hub configuration. text: the transcript column.
    samples: a random choice of that many clips, fixed by `seed`; all clips when None or when there are fewer.
    minimum_seconds, maximum_seconds: clips outside of these bounds are left out.

    Raises SottoError where a value is of the wrong type or out of range.
    """

    path: str
    split: str | None = None
    name: str | None = None
    text: str = DEFAULT_TEXT
    samples: int | None = None
    seed: int = 0
    minimum_seconds: float | None = None
    maximum_seconds: float | None = None

    def __post_init__(self) -> None:
        for key in ("path", "text"):
            _require(_is_text(getattr(self, key)), key, getattr(self, key), "a text that is not empty")
        for key in ("split", "name"):
            value = getattr(self, key)
            _require(value is None or _is_text(value), key, value, "a text that is not empty, or left out")
        _require(
            self.samples is None or (_is_integer(self.samples) and self.samples > 0),
            "samples",
            self.samples,
            "a whole number of clips above 0",
        )
        _require(_is_integer(self.seed), "seed", self.seed, "a whole number")
        for key in ("minimum_seconds", "maximum_seconds"):
            value = getattr(self, key)
            _require(value is None or _is_positive(value), key, value, "a number of seconds above 0")
        if self.minimum_seconds and self.maximum_seconds and self.minimum_seconds > self.maximum_seconds:
            raise SottoError(
                f"data: minimum_seconds {self.minimum_seconds} is above maximum_seconds "
                f"{self.maximum_seconds}; exchange them"
            )


@dataclass(frozen=True)
class ClipReference:
    """What is known of a clip without decoding it.

    name: the path relative to the data folder, or `split/index` of a hub dataset. The audio is in the file
    `path`, or `encoded` in memory; a reference to a hub dataset may have neither and is then fetched when
    it is read. fault: why the clip cannot be used, where that is known already.
    """

    name: str
    path: Path | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    seconds: float | None = None
    encoded: bytes | None = field(default=None, repr=False, compare=False)
    fault: str | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """Decoded audio: mono float32 of shape (samples,) at `sampling_rate` Hz, with what is known about it."""

    name: str
    audio: NDArray[np.float32] = field(repr=False)
    sampling_rate: int
    text: str | None = None
    speaker: str | None = None
    language: str | None = None

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sampling_rate

    def cut(self, seconds: float) -> "Clip":
        """Its beginning, of at most that length; the rest is not kept in memory."""
        samples = int(seconds * self.sampling_rate)
        return self if len(self.audio) <= samples else replace(self, audio=self.audio[:samples].copy())


@dataclass(frozen=True)
class SkippedClip:
    """A clip that an iteration left out, and why."""

    name: str
    reason: str


def first_column(columns: Mapping[str, Any] | list[str], candidates: tuple[str, ...]) -> str | None:
    """The first candidate that is among the columns."""
    return next((candidate for candidate in candidates if candidate in columns), None)


def text_column(columns: list[str], asked: str, where: str) -> str | None:
    """The transcript column; None where there is none.

    Raises SottoError if a column was asked for by name and is absent.
    """
    if asked == DEFAULT_TEXT:
        return first_column(columns, TEXT_COLUMNS)
    if asked not in columns:
        raise SottoError(f"{where} has no column {asked!r}; set data text: to one of {', '.join(columns)}")
    return asked


def reference_from_row(
    name: str,
    row: Mapping[str, Any],
    text: str | None,
    *,
    path: Path | None = None,
) -> ClipReference:
    """A reference from a line of metadata; `text` is the transcript column."""
    seconds = _value(row, first_column(row, SECONDS_COLUMNS))
    return ClipReference(
        name=name,
        path=path,
        text=_value(row, text),
        speaker=_value(row, first_column(row, SPEAKER_COLUMNS)),
        language=_value(row, first_column(row, LANGUAGE_COLUMNS)),
        seconds=_seconds(seconds),
    )


def choose(total: int, samples: int | None, seed: int) -> range | list[int]:
    """Positions of a random choice of `samples` out of `total`, ascending; all where samples is None."""
    if samples is None or samples >= total:
        return range(total)
    return sorted(random.Random(seed).sample(range(total), samples))


def _value(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return None if value is None else str(value)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise SottoError(f"data: {key} must be {wanted}, not {value!r}")
