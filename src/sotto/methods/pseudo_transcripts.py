"""Transcripts that a model writes of clips which have none, or in place of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sotto.calibration import share
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.decoding import Decoding
from sotto.distribution import found_together, processes
from sotto.errors import SottoError


def transcribed(source: ClipSource, teacher: Callable[[], Recognizer], language: str, path: Path) -> ClipSource:
    """`source` with the teacher's greedy transcripts, without clips of which it writes nothing.

    Each process of a distributed run writes its share. They are kept at `path`, from where a second call takes them,
    with no need of the teacher. Raises SottoError where nothing at all was written.
    """

    def said() -> list[tuple[str, str]]:
        found = teacher()
        found.model.to(processes().device)
        decoding = Decoding(language=language, batch_size=16)
        return [(each.name, each.text) for each in found.family.transcribe(share(source), decoding)]

    written = {name: text for name, text in found_together(path, said) if text.strip()}
    if not written:
        raise SottoError(f"{source.config.path}: the teacher writes nothing of any clip; train on transcripts instead")
    return source.with_texts(written)
