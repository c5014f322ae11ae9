"""Transcripts as text, JSON or subtitles, on the terminal or as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sotto.configuration import nearest
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.opening import open_model
from sotto.subtitles import to_json, to_srt, to_vtt
from sotto.transcription import transcribe

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def transcribe_files(
    model: str, audio: Sequence[str], decoding: Decoding, style: str, folder: Path | None
) -> Iterator[str]:
    """Transcribe files and folders of audio; yields each transcript, or where it was written if there is a `folder`.

    Raises SottoError on an unknown style, a path that is not there, and, at the end, where clips were bad.
    """
    if style not in SUFFIXES:
        raise SottoError(f"unknown format '{style}'{nearest(style, SUFFIXES)}")
    for path in audio:
        if not Path(path).exists():
            raise SottoError(f"no such file or folder: {path}; check the path")
    recognizer = open_model(model)
    sources = [open_data(DataConfig(path), sampling_rate=recognizer.sampling_rate) for path in audio]

    def clips() -> Iterator[Clip]:
        for source in sources:
            try:
                yield from source
            except SottoError:
                if len(sources) == 1:
                    raise  # nothing at all could be read

    several = sum(len(source) for source in sources) > 1
    taken: set[Path] = set()
    for result in transcribe(recognizer, clips(), decoding):
        text = written(result, style)
        if folder is None:
            yield f"{result.name}: {text}" if several and style == "text" else text
        else:
            target = free_path(folder, result.name, SUFFIXES[style], taken)
            write_file(target, text)
            yield str(target)
    skipped = [clip for source in sources for clip in source.skipped]
    if skipped:
        raise SottoError("; ".join(f"{clip.name} {clip.reason}" for clip in skipped))


def free_path(folder: Path, name: str, suffix: str, taken: set[Path]) -> Path:
    """Where a clip's transcript goes: always inside of `folder`, and never over another clip's."""
    inside = Path(*(part for part in Path(name).parts if part not in ("..", Path(name).anchor)))
    target = (folder / inside).with_suffix(suffix)
    number = 1
    while target in taken:
        number += 1
        target = (folder / inside).with_name(f"{inside.stem}-{number}{suffix}")
    taken.add(target)
    return target


def write_file(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SottoError(f"{path}: cannot be written ({error.strerror})") from error


def written(result: Transcription, style: str) -> str:
    if style == "json":
        return json.dumps(to_json(result), ensure_ascii=False)
    if style == "srt":
        return to_srt(result.segments)
    if style == "vtt":
        return to_vtt(result.segments)
    if not result.segments:
        return result.text
    return "\n".join(f"[{part.start:.2f} - {part.end:.2f}] {part.text.strip()}" for part in result.segments)
