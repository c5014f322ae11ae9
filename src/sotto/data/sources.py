"""Clips, one at a time."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sotto.data.audio import EXTENSIONS, decode, has_broken_off
from sotto.data.clips import BadClip, Clip, ClipReference, DataConfig, SkippedClip
from sotto.data.folder import list_local
from sotto.data.hub import HubListing, is_hub_id
from sotto.errors import SottoError

REASONS_SHOWN = 3
# Resampling rounds a clip to whole samples, so a length at the very bound still counts as within it.
BOUND_TOLERANCE_SECONDS = 0.001


class ClipSource:
    """The clips of one role. Can be iterated over again; decodes one clip at a time.

    Bad clips are left out and noted in `skipped`. Made by `open_data`.
    """

    def __init__(
        self,
        config: DataConfig,
        listing: Sequence[ClipReference] | HubListing,
        *,
        sampling_rate: int,
        shard: tuple[int, int] = (0, 1),
        needs_text: bool = False,
        skipped: dict[str, SkippedClip] | None = None,
    ) -> None:
        self.config = config
        self.listing = listing
        self.sampling_rate = sampling_rate
        self._shard = shard
        self._needs_text = needs_text
        self._skipped: dict[str, SkippedClip] = {} if skipped is None else skipped

    @property
    def skipped(self) -> list[SkippedClip]:
        """The clips that iterations have left out so far, each once."""
        return list(self._skipped.values())

    @cached_property
    def references(self) -> list[ClipReference]:
        """All clips, bad ones too, without their audio. Streams a hub dataset through, once."""
        listing = self.listing.references() if isinstance(self.listing, HubListing) else self.listing
        index, count = self._shard
        return list(itertools.islice(listing, index, None, count))

    def __len__(self) -> int:
        """Number of clips, bad ones included. Raises TypeError where a hub dataset does not say."""
        size = self.listing.size if isinstance(self.listing, HubListing) else len(self.listing)
        if size is None:
            raise TypeError(f"hub dataset {self.config.path} does not state its number of clips")
        index, count = self._shard
        return len(range(index, size, count))

    def __iter__(self) -> Iterator[Clip]:
        """Decode the clips in order.

        Raises SottoError at the end if every clip was bad. A shard does not: its share may be one bad clip.
        """
        good = 0
        for reference in self._stream():
            try:
                clip = self.read(reference)
            except BadClip as bad:
                self._skipped[reference.name] = SkippedClip(reference.name, bad.reason)
                continue
            good += 1
            yield clip
        if good == 0 and self._shard[1] == 1:
            raise SottoError(self._all_bad())

    def read(self, reference: ClipReference) -> Clip:
        """Decode one clip. Raises BadClip if it cannot be used."""
        if reference.fault is not None:
            raise BadClip(reference.fault)
        if self._needs_text and reference.text is None:
            raise BadClip("has no transcript")
        self._check_bounds(reference.seconds)
        audio = decode(self._encoded(reference), self.sampling_rate)
        clip = Clip(
            name=reference.name,
            audio=audio,
            sampling_rate=self.sampling_rate,
            text=reference.text,
            speaker=reference.speaker,
            language=reference.language,
        )
        if reference.seconds is None:
            self._check_bounds(clip.seconds)
        elif has_broken_off(clip.seconds, reference.seconds):
            raise BadClip(f"breaks off: {clip.seconds:.2f} of {reference.seconds:.2f} s are there")
        return clip

    def shard(self, index: int, count: int) -> "ClipSource":
        """Every `count`-th clip from `index` on: the share of one process of a distributed run.

        What it skips is noted in the whole's `skipped` too.

        Raises SottoError unless 0 <= index < count.
        """
        if not 0 <= index < count:
            raise SottoError(f"shard {index} of {count} does not exist; the index runs from 0 to count - 1")
        own_index, own_count = self._shard
        return ClipSource(
            self.config,
            self.listing,
            sampling_rate=self.sampling_rate,
            shard=(own_index + index * own_count, own_count * count),
            needs_text=self._needs_text,
            skipped=self._skipped,
        )

    def spread(self, most: int, offset: int = 0) -> "ClipSource":
        """Every n-th clip from all over the data, at most `most`; another `offset` gives others where there are enough.

        All processes of a distributed run hear the same ones: they are few, and the result is that of one process.
        """
        try:
            step = max(1, math.ceil(len(self) / most))
        except TypeError:  # a hub dataset that does not say how many clips it has
            return self
        return self.shard(offset % step, step)

    def with_texts(self, texts: Mapping[str, str]) -> "ClipSource":
        """The clips that `texts` names, with its texts in place of their own, to be read by their references.

        Iterating over a hub dataset still gives all that it has.
        """
        found = copy.copy(self)
        found.references = [
            replace(reference, text=texts[reference.name]) for reference in self.references if reference.name in texts
        ]
        if not isinstance(self.listing, HubListing):
            found.listing, found._shard = found.references, (0, 1)
        return found

    def require_transcripts(self) -> None:
        """Say that the clips are of use only with their text. From then on a clip without one is skipped.
        An empty text is one: nothing is said.

        Raises SottoError if there is no text at all.
        """
        if isinstance(self.listing, HubListing):
            if self.listing.text_column is None:
                raise SottoError(
                    f"no transcripts in hub dataset {self.config.path}; name the column with data text: "
                    f"(columns: {', '.join(self.listing.columns)})"
                )
        elif not any(reference.text for reference in self.listing):
            raise SottoError(f"no transcripts in {self.config.path}; add a metadata.csv with columns file_name,text")
        self._needs_text = True

    def _stream(self) -> Iterator[ClipReference]:
        if isinstance(self.listing, HubListing):
            return self.listing.stream(*self._shard)
        return iter(self.references)

    def _encoded(self, reference: ClipReference) -> Path | bytes:
        if reference.encoded is not None:
            return reference.encoded
        if isinstance(self.listing, HubListing):
            return self.listing.encoded(reference)
        if reference.path is None:
            raise BadClip("has neither a file nor bytes")
        return reference.path

    def _check_bounds(self, seconds: float | None) -> None:
        if seconds is None:
            return
        shortest, longest = self.config.minimum_seconds, self.config.maximum_seconds
        if shortest is not None and seconds < shortest - BOUND_TOLERANCE_SECONDS:
            raise BadClip(f"{seconds:.2f} s long, below minimum_seconds {shortest:g}")
        if longest is not None and seconds > longest + BOUND_TOLERANCE_SECONDS:
            raise BadClip(f"{seconds:.2f} s long, above maximum_seconds {longest:g}")

    def _all_bad(self) -> str:
        if not self._skipped:
            return f"no clips in {self.config.path}; check the dataset"
        shown = "; ".join(f"{clip.name} {clip.reason}" for clip in self.skipped[:REASONS_SHOWN])
        return f"none of the {len(self._skipped)} clips in {self.config.path} can be used: {shown}"


def open_data(config: DataConfig, *, sampling_rate: int, root: Path | None = None) -> ClipSource:
    """The clips of `config`, at `sampling_rate` Hz. A relative path starts from the folder `root`.

    Raises SottoError if the path does not exist and is no dataset of the hub, or if no clip is found.
    """
    if sampling_rate < 1:
        raise SottoError(f"sampling_rate must be above 0 Hz, not {sampling_rate}")
    path = (root or Path()) / Path(config.path).expanduser()
    if path.exists():
        return ClipSource(config, list_local(path, config), sampling_rate=sampling_rate)
    # `clips/tran` beside a folder `clips` is a slip of the pen; the hub need not be asked.
    means_file = path.suffix.lower() in EXTENSIONS | {".txt"} or path.parent.is_dir()
    if means_file or not is_hub_id(config.path):
        raise SottoError(f"no such file or folder: {path}; check the path")
    return ClipSource(config, HubListing(config), sampling_rate=sampling_rate)
