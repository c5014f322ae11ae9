"""A dataset of the Hugging Face hub -> references, streamed."""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import datasets
from datasets.utils.file_utils import xopen

from sotto.data.clips import (
    BadClip,
    ClipReference,
    DataConfig,
    choose,
    first_column,
    reference_from_row,
    text_column,
)
from sotto.errors import SottoError

SMALLEST_POOL = 1000
POOL_FACTOR = 10


def is_hub_id(path: str) -> bool:
    """Whether `path` could be an `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path) is not None


class HubListing:
    """One split of a hub dataset. Audio comes as encoded bytes; nothing is decoded here.

    With `samples`, the choice is made among the first max(1000, 10 x samples) clips, so that a few clips of a
    large dataset do not cost its whole download.

    Raises SottoError if the dataset cannot be opened or has no audio column.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        stream, self.split = _one_split(_open(config), config)
        # Dataset, configuration and split: with the index, what makes two clips the same.
        self.identity = (config.path, stream.info.config_name or config.name or "", self.split)
        self.columns = _columns(stream)
        self._audio = _audio_column(stream, self.columns, config.path)
        self.text_column = text_column(self.columns, config.text, f"hub dataset {config.path}")
        self._stream = _undecoded(stream)
        # Indices in the split of the chosen clips: open-ended, and `size` None, if the hub states no number.
        self.size, self.positions = self._choose()
        self._table: Any = None

    def stream(self, first: int, step: int) -> Iterator[ClipReference]:
        """Every `step`-th clip from the `first` on, with its audio."""
        for index, row in itertools.islice(self._rows(self.positions), first, None, step):
            reference = self._reference(index, row)
            try:
                encoded = _audio_bytes(row[self._audio])
            except BadClip as bad:
                yield replace(reference, fault=bad.reason)
            else:
                yield replace(reference, encoded=encoded)

    def references(self) -> list[ClipReference]:
        """All chosen clips, without their audio."""
        return [self._reference(index, row) for index, row in self._rows(self.positions)]

    def encoded(self, reference: ClipReference) -> bytes:
        """The audio of any clip. The first call downloads the split: a stream is not read out of order."""
        if self._table is None:
            self._table = _undecoded(_download(self.config, self.split))
        row = self._table[int(reference.name.rsplit("/", 1)[1])]
        return _audio_bytes(_row(row)[self._audio])

    def _reference(self, index: int, row: dict[str, Any]) -> ClipReference:
        return reference_from_row(f"{self.split}/{index}", row, self.text_column)

    def _rows(self, positions: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows at ascending positions, as far as there are rows."""
        wanted = iter(positions)
        target = next(wanted, None)
        with _as_one_line(f"hub dataset {self.config.path} broke off", "try again"):
            for index, table in enumerate(self._stream):
                if index == target:
                    yield index, _row(table)
                    target = next(wanted, None)
                if target is None:
                    return

    def _choose(self) -> tuple[int | None, range | list[int]]:
        """How many clips there are to read (None: not known), and which."""
        total = _stated_size(self._stream, self.split)
        samples = self.config.samples
        if samples is None:
            return total, range(sys.maxsize if total is None else total)
        pool = max(SMALLEST_POOL, POOL_FACTOR * samples)
        if total is None:
            total = sum(1 for _ in self._rows(range(pool)))
        chosen = choose(min(total, pool), samples, self.config.seed)
        return len(chosen), chosen


def _open(config: DataConfig) -> Any:
    with _as_one_line(
        f"no such folder, and no dataset of that id could be opened: {config.path}",
        "if you meant a folder, check the path",
    ):
        return datasets.load_dataset(config.path, config.name, split=config.split, streaming=True)


def _download(config: DataConfig, split: str) -> Any:
    with _as_one_line(
        f"hub dataset {config.path} can only be streamed",
        f"run `hf download {config.path} --repo-type dataset --local-dir FOLDER` and set data path: to it",
    ):
        return datasets.load_dataset(config.path, config.name, split=split, streaming=False)


def _undecoded(dataset: Any) -> Any:
    """Rows as Arrow tables: any other format encodes or decodes audio, which asks for torchcodec."""
    return dataset.with_format("arrow")


def _row(table: Any) -> dict[str, Any]:
    return dict(table.to_pylist()[0])


def _one_split(loaded: Any, config: DataConfig) -> tuple[Any, str]:
    if not isinstance(loaded, dict):
        return loaded, str(config.split or loaded.split or "all")
    if len(loaded) != 1:
        raise SottoError(f"hub dataset {config.path} has the splits {', '.join(loaded)}; choose one with data split:")
    split, stream = next(iter(loaded.items()))
    return stream, str(split)


def _columns(stream: Any) -> list[str]:
    if stream.features is not None:
        return list(stream.features)
    with _as_one_line("hub dataset gives no clip", "try again"):
        first = next(iter(_undecoded(stream)), None)
    return [] if first is None else list(first.column_names)


def _audio_column(stream: Any, columns: list[str], path: str) -> str:
    features = stream.features or {}
    typed = next((key for key, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    column = typed or first_column(columns, ("audio",))
    if column is None:
        raise SottoError(f"hub dataset {path} has no audio column (columns: {', '.join(columns)}); choose one that has")
    return column


def _stated_size(stream: Any, split: str) -> int | None:
    splits = getattr(stream.info, "splits", None) or {}
    return splits[split].num_examples or None if split in splits else None


def _audio_bytes(value: dict[str, Any] | None) -> bytes:
    """The bytes of an undecoded audio cell; a loose file is fetched by its address."""
    content, address = (value or {}).get("bytes"), (value or {}).get("path")
    if content:
        return bytes(content)
    if not address:
        raise BadClip("holds no audio")
    try:
        with xopen(address, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise BadClip("is missing") from error
    except Exception as error:
        raise SottoError(f"{address} cannot be fetched ({_one_line(error)}); try again") from error


@contextmanager
def _as_one_line(what: str, remedy: str) -> Iterator[None]:
    """The hub's libraries raise exceptions of many kinds, some of many lines: say them in one."""
    try:
        yield
    except Exception as error:
        raise SottoError(f"{what} ({_one_line(error.__cause__ or error)}); {remedy}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
