"""Transcripts that a model writes of clips which have none, or in place of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.decoding import Decoding
from sotto.distribution import processes
from sotto.errors import SottoError


def transcribed(source: ClipSource, teacher: Callable[[], Recognizer], language: str, path: Path) -> ClipSource:
    """`source` with the teacher's greedy transcripts, without clips of which it writes nothing.

    They are kept at `path`, from where a second call takes them, with no need of the teacher. Raises SottoError where
    nothing at all was written.
    """
    state = processes()
    if state.is_main_process and not path.is_file():
        decoding = Decoding(language=language, batch_size=16)
        texts = {found.name: found.text for found in teacher().family.transcribe(source, decoding)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(texts, ensure_ascii=False, indent=1), encoding="utf-8")
        partial.replace(path)
    state.wait_for_everyone()
    texts = json.loads(path.read_text(encoding="utf-8"))
    written = {name: text for name, text in texts.items() if text.strip()}
    if not written:
        raise SottoError(f"{source.config.path}: the teacher writes nothing of any clip; train on transcripts instead")
    return source.with_texts(written)
