"""No clip may be in two roles."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from sotto.data.hub import HubListing
from sotto.data.sources import ClipSource
from sotto.errors import SottoError


def check_disjoint(sources: Mapping[str, ClipSource]) -> None:
    """Compare the clips of all roles (calibration, train, validation, test); only those that `samples` chose.

    Files are the same where their bytes are the same, whatever their names; hub clips where dataset,
    configuration, split and index are. Raises SottoError that names two roles and a clip.
    """
    _check_files(sources)
    for first, second in itertools.combinations(sources, 2):
        _check_hub(first, sources[first].listing, second, sources[second].listing)


def _check_files(sources: Mapping[str, ClipSource]) -> None:
    by_size: dict[int, list[tuple[str, str, Path]]] = defaultdict(list)
    for role, name, path in _files(sources):
        by_size[path.stat().st_size].append((role, name, path))
    for same_size in by_size.values():
        if len({role for role, _, _ in same_size}) < 2:
            continue
        seen: dict[bytes, tuple[str, str]] = {}
        for role, name, path in same_size:
            other_role, other_name = seen.setdefault(_digest(path), (role, name))
            if other_role != role:
                raise SottoError(_message(other_role, other_name, role, name))


def _files(sources: Mapping[str, ClipSource]) -> Iterator[tuple[str, str, Path]]:
    for role, source in sources.items():
        if isinstance(source.listing, HubListing):
            continue
        for reference in source.listing:
            if reference.path is not None and reference.path.is_file():
                yield role, reference.name, reference.path


def _check_hub(first: str, one: object, second: str, other: object) -> None:
    if not isinstance(one, HubListing) or not isinstance(other, HubListing) or one.identity != other.identity:
        return
    fewer, more = sorted((one.positions, other.positions), key=len)
    members = more if isinstance(more, range) else frozenset(more)
    common = next((position for position in fewer if position in members), None)
    if common is not None:
        name = f"{one.config.path} {one.split}/{common}"
        raise SottoError(_message(first, name, second, name))


def _message(first: str, first_name: str, second: str, second_name: str) -> str:
    clip = first_name if first_name == second_name else f"{first_name} = {second_name}"
    return f"data: {first} and {second} share a clip ({clip}); take it out of one, a clip has one role"


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
