"""Transcripts that a model writes of clips which have none, or in place of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.decoding import Decoding
from sotto.distribution import found_once
from sotto.errors import SottoError


def transcribed(source: ClipSource, teacher: Callable[[], Recognizer], language: str, path: Path) -> ClipSource:
    """`source` with the teacher's greedy transcripts, without clips of which it writes nothing.

    They are kept at `path`, from where a second call takes them, with no need of the teacher. Raises SottoError where
    nothing at all was written.
    """

    def said() -> dict[str, str]:
        decoding = Decoding(language=language, batch_size=16)
        return {found.name: found.text for found in teacher().family.transcribe(source, decoding)}

    texts = found_once(path, said)
    written = {name: text for name, text in texts.items() if text.strip()}
    if not written:
        raise SottoError(f"{source.config.path}: the teacher writes nothing of any clip; train on transcripts instead")
    return source.with_texts(written)
