"""Transcripts that a model writes of clips which have none, or in place of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import jiwer

from sotto.calibration import share
from sotto.checkpoint import Recognizer
from sotto.data import Clip, ClipSource
from sotto.decoding import Decoding
from sotto.distribution import found_together, processes
from sotto.errors import SottoError
from sotto.metrics.errors import is_repeated
from sotto.text import Normalizer


def transcribed(
    source: ClipSource,
    teacher: Callable[[], Recognizer],
    language: str,
    path: Path,
    normalizer: Normalizer,
    within: float | None = None,
) -> ClipSource:
    """`source` with the teacher's greedy transcripts, without clips whose transcript is not to be learnt.

    The teacher is told `language`, or that of a clip which names its own. Left out is what is empty, what loops
    (`sotto.metrics.errors.is_repeated`), and, where `within` is given, what differs from the clip's own text by a
    larger word error rate, both normalised (Distil-Whisper: 0.1). Each process of a distributed run writes its share, a
    line at a time beside `path`: one that was stopped goes on where it was, also with more or fewer processes. All are
    kept at `path`, from where a second call takes them without the teacher. Raises SottoError where none is left.
    """
    written = dict(found_together(path, lambda: list(written_by(source, teacher, language, path).items())))
    own = {reference.name: reference.text or "" for reference in source.references}
    texts = {name: text for name, text in written.items() if is_learnt(own.get(name, ""), text, normalizer, within)}
    for lines in lines_beside(path):
        lines.unlink(missing_ok=True)
    if not texts:
        raise SottoError(f"{source.config.path}: no transcript of the teacher can be learnt; train on the clips' own")
    left_out = len(written) - len(texts)
    processes().print(f"{source.config.path}: {len(texts)} clips with the teacher's transcripts, {left_out} left out")
    return source.with_texts(texts)


def lines_beside(path: Path) -> list[Path]:
    """What processes have written so far of what is to be at `path`, however many they were."""
    return list(path.parent.glob(f"{path.stem}.*.jsonl"))


def written_by(source: ClipSource, teacher: Callable[[], Recognizer], language: str, path: Path) -> dict[str, str]:
    """What the teacher writes of this process's share, by the clips' names, beside what any process has written of what
    is to be at `path`, which stays in a file until all is written: others may be about to read it."""
    known = {name: text for lines in lines_beside(path) for name, text in read_lines(lines).items()}
    own = share(source)
    if all(reference.name in known for reference in own.references):
        return known
    found = teacher()
    found.model.to(processes().device)
    missing: Iterator[Clip] = (clip for clip in own if clip.name not in known)
    lines = path.with_suffix(f".{processes().process_index}.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    whole = lines.with_suffix(".partial")  # without a last line that was broken off
    whole.write_text("".join(line_of(name, text) for name, text in known.items()), encoding="ascii")
    whole.replace(lines)
    with lines.open("a", encoding="ascii") as file:
        for own_language, clips in groupby(missing, lambda clip: clip.language or language):
            for each in found.family.transcribe(clips, Decoding(language=own_language, batch_size=16)):
                known[each.name] = each.text
                file.write(line_of(each.name, each.text))
                file.flush()
    return known


def line_of(name: str, text: str) -> str:
    return json.dumps([name, text]) + "\n"  # in ASCII: no line ends within a character, or at a strange space


def read_lines(path: Path) -> dict[str, str]:
    """Names and texts; a last line that was broken off is passed over."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
        try:
            name, text = json.loads(line)
        except ValueError:
            break
        found[name] = text
    return found


def is_learnt(own: str, text: str, normalizer: Normalizer, within: float | None) -> bool:
    """Whether a transcript says something, does not loop, and is near enough to the clip's own text, if it has one."""
    reference, hypothesis = normalizer(own), normalizer(text)
    if not hypothesis or is_repeated(reference, hypothesis):
        return False
    return within is None or not reference or float(jiwer.wer(reference, hypothesis)) <= within
