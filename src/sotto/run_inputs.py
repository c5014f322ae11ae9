"""What a recipe starts from: its base and its data, found and checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sotto.data import ClipSource, DataConfig, check_disjoint, open_data
from sotto.errors import SottoError
from sotto.methods import methods
from sotto.recipe import Recipe

ROLES = ("calibration", "validation", "test")
MEGABYTE = 2**20


def check_needs(recipe: Recipe) -> None:
    """Raises SottoError where a step needs a data role that the recipe does not give."""
    for step in recipe.steps:
        for role in getattr(step, "needs", ()):
            if getattr(recipe.data, role) is None:
                raise SottoError(f"{methods.name_of(step)} needs data.{role}; give it a folder of audio")
            if role == "train" and recipe.language is None:
                raise SottoError(f"{methods.name_of(step)} trains, and needs the language of the clips; give language")


def base_of(recipe: Recipe, root: Path) -> str | Path:
    """A folder relative to the recipe where there is one, else the id of a checkpoint on the hub."""
    return local_or_hub(recipe.base, root)


def local_or_hub(name: str, root: Path) -> str | Path:
    local = root / Path(name).expanduser()
    return local if local.exists() else name


def open_sources(recipe: Recipe, root: Path, sampling_rate: int) -> dict[str, ClipSource]:
    """The data roles that the recipe names, but for `train`. Raises SottoError where a clip is in two of them."""
    sources = {}
    for role in ROLES:
        config: DataConfig | None = getattr(recipe.data, role)
        if config is not None:
            sources[role] = open_data(config, sampling_rate=sampling_rate, root=root)
    for role in ("validation", "test"):
        if role in sources:
            sources[role].require_transcripts()
    check_disjoint(sources)
    return sources


def open_train(
    recipe: Recipe, root: Path, sampling_rate: int, others: Mapping[str, ClipSource]
) -> tuple[ClipSource, ...]:
    """The training folders. Raises SottoError where a clip is in another role too."""
    found = tuple(open_data(config, sampling_rate=sampling_rate, root=root) for config in recipe.data.train_folders)
    for source in found:
        check_disjoint({**others, "train": source})
    return found


def digest_of_weights(folder: Path) -> str:
    """Of the size and both ends of every file of weights; large ones are not read whole."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(MEGABYTE)
            file.seek(max(0, size - MEGABYTE))
            digest.update(repr((path.name, size)).encode() + first + file.read())
    return digest.hexdigest()
