"""How to write down what is heard, and what was heard: the words that all families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sotto.errors import SottoError

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class Decoding:
    """How a recogniser writes down what it hears.

    language: a code ("en") or a name ("english"); None takes the checkpoint's only one, or detects it clip by clip.
    beams: 1 is greedy. timestamps: segments for short clips too; Whisper always has them for longer ones.
    maximum_tokens: most tokens a window; None for as many as the decoder holds.

    A CTC model has no search, no prompt and no limit of tokens: it ignores the language and `maximum_tokens`, and
    refuses beams and translation. Its segments are words.

    Raises SottoError where a value is of the wrong type or out of range.
    """

    language: str | None = None
    task: Task = "transcribe"
    beams: int = 1
    timestamps: bool = False
    batch_size: int = 8
    maximum_tokens: int | None = None

    def __post_init__(self) -> None:
        named = self.language is None or (isinstance(self.language, str) and bool(self.language.strip()))
        require(named, "language", self.language, "a language, or left out")
        require(self.task in get_args(Task), "task", self.task, f"one of {', '.join(get_args(Task))}")
        for key in ("beams", "batch_size"):
            require(is_count(getattr(self, key)), key, getattr(self, key), "a whole number above 0")
        require(isinstance(self.timestamps, bool), "timestamps", self.timestamps, "true or false")
        tokens = self.maximum_tokens
        require(tokens is None or is_count(tokens), "maximum_tokens", tokens, "a whole number above 0, or left out")

    def describe(self) -> str:
        """The settings in one line, to stand beside a word error rate."""
        parts = [
            "greedy" if self.beams == 1 else f"{self.beams} beams",
            f"language {self.language or 'automatic'}",
            *(["translated to English"] if self.task == "translate" else []),
            "timestamps" if self.timestamps else "no timestamps",
            *([f"at most {self.maximum_tokens} tokens"] if self.maximum_tokens else []),
            f"batch {self.batch_size}",
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Segment:
    """A piece of text, and where it is said: seconds from the start of the clip."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcription:
    """What was heard in the clip `name` of `seconds`; no segments where no timestamps were decoded."""

    name: str
    text: str
    seconds: float
    segments: tuple[Segment, ...]


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise SottoError(f"decoding: {key} must be {wanted}, not {value!r}")
