"""From audio to pieces that a CTC model takes at once, and from the labels of its frames to words with their times.

Long audio is cut where it is quietest, and each piece is heard with the seconds before and after it, whose frames are
then dropped. So every frame of the clip is decided on once, with sound on both sides of it, and few words lie across a
seam; and since frames have fixed places, the pieces are put together without comparing texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotto.decoding import Segment

CONTEXT_SECONDS = 3.0  # heard on both sides of a piece, and dropped
SEARCH_SECONDS = 8.0  # how far before the latest possible place a cut may lie
QUIET_SECONDS = 0.2  # length over which quiet is measured: a pause between words


@dataclass(frozen=True)
class Piece:
    """A stretch of audio of shape (samples,) that goes through the model at once; frames `first` to `end` are kept."""

    audio: NDArray[np.float32]
    first: int = 0
    end: int | None = None


def pieces(audio: NDArray[np.float32], rate: int, frame: int, longest_seconds: float) -> list[Piece]:
    """`audio` (samples,) at `rate` Hz as pieces of at most `longest_seconds`, for frames of `frame` samples.

    The kept frames of all pieces, one after the other, are those of the whole.
    """
    longest = int(longest_seconds * rate)
    if len(audio) <= longest:
        return [Piece(audio)]
    context = int(CONTEXT_SECONDS * rate) // frame * frame
    found = []
    start = 0
    while len(audio) - max(0, start - context) > longest:
        latest = start + longest - 2 * context
        cut = quietest(audio, latest - int(SEARCH_SECONDS * rate), latest, int(QUIET_SECONDS * rate)) // frame * frame
        begin = max(0, start - context)
        found.append(Piece(audio[begin : cut + context], (start - begin) // frame, (cut - begin) // frame))
        start = cut
    begin = max(0, start - context)
    return [*found, Piece(audio[begin:], (start - begin) // frame)]


def quietest(audio: NDArray[np.float32], start: int, end: int, length: int) -> int:
    """The middle of the quietest `length` samples between `start` and `end`."""
    blocks = audio[start : start + (end - start) // length * length].reshape(-1, length)
    return start + int(np.square(blocks).mean(1).argmin()) * length + length // 2


@dataclass(frozen=True)
class Token:
    """A label and the frames that it was heard in, up to `end`."""

    label: int
    start: int
    end: int


def tokens_of(labels: Sequence[int], blank: int) -> list[Token]:
    """What frames with these labels say: equal neighbours are one token, blanks none (Graves et al. 2006)."""
    found = []
    start = 0
    for label, group in itertools.groupby(labels):
        end = start + len(list(group))
        if label != blank:
            found.append(Token(label, start, end))
        start = end
    return found


def text_of(tokenizer: Any, labels: Sequence[int]) -> str:
    """The text of labels that are tokens already: told to group them, the tokenizers would swallow double letters."""
    text: str = tokenizer.decode(list(labels), group_tokens=False, skip_special_tokens=True)
    return text.strip()


def words_of(tokenizer: Any, tokens: Sequence[Token], frame_seconds: float) -> list[Segment]:
    """What stands between spaces, from the first frame of its first token to the end of its last."""
    words: list[Segment] = []
    labels: list[int] = []
    for token in tokens:
        before, after = text_of(tokenizer, labels), text_of(tokenizer, [*labels, token.label])
        if before and len(after.split()) > len(before.split()):
            labels, before, after = [], "", text_of(tokenizer, [token.label])
        labels.append(token.label)
        if after == before:  # the space after a word
            continue
        start = words.pop().start if before else token.start * frame_seconds
        words.append(Segment(start, token.end * frame_seconds, after))
    return words
