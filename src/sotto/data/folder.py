"""A folder, a list or a file -> references, by the `audiofolder` convention of Hugging Face datasets."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sotto.data.audio import EXTENSIONS, header_seconds
from sotto.data.clips import ClipReference, DataConfig, choose, reference_from_row, text_column
from sotto.errors import SottoError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
SPLIT_NAMES = frozenset({"calibration", "train", "training", "validation", "valid", "dev", "test"})
UNREADABLE_EXTENSIONS = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".mkv", ".amr"})


def list_local(path: Path, config: DataConfig) -> list[ClipReference]:
    """The clips of a folder, an audio file or a .txt list, with the bounds on seconds and `samples` applied.

    Metadata order where there is a metadata.csv or metadata.jsonl, else sorted by path. A file that the
    metadata names but that is missing stays in the list and is found out when it is read. Raises SottoError
    if nothing is found, or if a folder or its metadata cannot be read.
    """
    try:
        references = _within_bounds(_everything(path, config), config, path)
    except OSError as error:
        raise SottoError(
            f"{error.filename or path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    return [references[position] for position in choose(len(references), config.samples, config.seed)]


def _everything(path: Path, config: DataConfig) -> list[ClipReference]:
    if path.is_file():
        if config.split is not None:
            raise SottoError(f"{path} is a file, it has no split {config.split!r}; leave out data split:")
        if path.suffix.lower() == ".txt":
            return _read_list(path)
        return [ClipReference(name=path.name, path=path)]
    if _metadata_file(path) is not None:
        references = list(_walk(path, path, config.text))
        if config.split is not None:
            references = [item for item in references if item.name.startswith(f"{config.split}/")]
    else:
        references = list(_walk(path, _split_folder(path, config.split), config.text))
    if not references:
        raise SottoError(_nothing_found(path, config.split))
    return references


def _split_folder(path: Path, split: str | None) -> Path:
    """The folder to walk: the one of the split, or `path` itself where there are no splits to choose from."""
    folders = [child.name for child in _children(path) if child.is_dir()]
    if split is not None:
        if split not in folders:
            raise SottoError(f"no split {split!r} in {path}; its folders are: {', '.join(folders) or 'none'}")
        return path / split
    splits = [name for name in folders if name in SPLIT_NAMES]
    has_audio = any(_is_audio(child) for child in _children(path))
    if len(splits) > 1 and not has_audio:
        raise SottoError(f"{path} has the splits {', '.join(splits)}; choose one with data split:")
    return path


def _walk(base: Path, folder: Path, text: str) -> Iterator[ClipReference]:
    """Clips below `folder`, named relative to `base`. Metadata in a folder speaks for everything below it."""
    metadata = _metadata_file(folder)
    if metadata is not None:
        yield from _read_metadata(base, metadata, text)
        return
    children = _children(folder)
    for child in children:
        if _is_audio(child):
            yield ClipReference(name=child.relative_to(base).as_posix(), path=child)
    for child in children:
        if child.is_dir():
            yield from _walk(base, child, text)


def _read_metadata(base: Path, metadata: Path, text: str) -> Iterator[ClipReference]:
    try:
        rows = _csv_rows(metadata) if metadata.suffix == ".csv" else _json_rows(metadata)
    except UnicodeDecodeError as error:
        raise SottoError(f"{metadata} is not UTF-8 text; save it as UTF-8") from error
    if not rows:
        raise SottoError(f"{metadata} lists no clip; add a line for each audio file")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if "file_name" not in columns:
        raise SottoError(f"{metadata} has no column file_name (columns: {', '.join(columns)}); add it")
    transcript = text_column(columns, text, str(metadata))
    folder = metadata.parent
    for number, row in enumerate(rows, start=1):
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise SottoError(f"{metadata} names no file in clip {number}; fill in file_name")
        name = (folder.relative_to(base) / file_name).as_posix()
        yield reference_from_row(name, row, transcript, path=folder / file_name)


def _csv_rows(metadata: Path) -> list[dict[str, Any]]:
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        try:
            # A row with more cells than the header has puts the rest under None, which is no column.
            return [{key: row[key] for key in row if key is not None} for row in csv.DictReader(file)]
        except csv.Error as error:
            raise SottoError(f"{metadata} is not a CSV table: {error}; write it again") from error


def _json_rows(metadata: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(metadata.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SottoError(f"{metadata} line {number} is not JSON ({error.msg}); one object a line") from error
        if not isinstance(row, dict):
            raise SottoError(f"{metadata} line {number} is not a JSON object; one object a line")
        rows.append(row)
    return rows


def _read_list(path: Path) -> list[ClipReference]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SottoError(f"{path} is not a list of audio files in UTF-8; one path a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise SottoError(f"{path} lists no audio file; one path a line, relative to the list")
    return [ClipReference(name=name, path=path.parent / Path(name).expanduser()) for name in names]


def _within_bounds(references: list[ClipReference], config: DataConfig, path: Path) -> list[ClipReference]:
    """Leave out what is too short or too long. What has no length yet stays and is found out on reading."""
    shortest = config.minimum_seconds or 0.0
    longest = config.maximum_seconds or float("inf")
    if shortest == 0.0 and longest == float("inf"):
        return references
    kept = [item for item in references if shortest <= _seconds(item, shortest) <= longest]
    if not kept:
        raise SottoError(
            f"none of the {len(references)} clips in {path} is between {shortest:g} and {longest:g} seconds; "
            "change minimum_seconds or maximum_seconds"
        )
    return kept


def _seconds(reference: ClipReference, unknown: float) -> float:
    seconds = reference.seconds
    if seconds is None and reference.path is not None:
        seconds = header_seconds(reference.path)
    return unknown if seconds is None else seconds


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith((".", "__")))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _nothing_found(path: Path, split: str | None) -> str:
    where = f"{path} (split {split})" if split else str(path)
    suffixes = {child.suffix.lower() for child in path.rglob("*")} & UNREADABLE_EXTENSIONS
    if suffixes:
        return f"no readable audio in {where}; convert its {', '.join(sorted(suffixes))} files to wav or flac"
    return f"no audio in {where}; expected wav, flac, ogg, opus or mp3 files, or a metadata.csv"
