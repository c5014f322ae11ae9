"""What a recipe starts from: its base and its data, found and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sotto.data import ClipSource, DataConfig, check_disjoint, open_data
from sotto.errors import SottoError
from sotto.methods import methods
from sotto.named_checkpoints import local_or_hub
from sotto.recipe import Recipe

ROLES = ("calibration", "validation", "test")


def check_needs(recipe: Recipe) -> None:
    """Raises SottoError where a step or an export needs a data role that the recipe does not give."""
    for step in recipe.steps:
        for role in getattr(step, "needs", ()):
            if getattr(recipe.data, role) is None:
                raise SottoError(f"{methods.name_of(step)} needs data.{role}; give it a folder of audio")
            if role == "train" and recipe.language is None:
                raise SottoError(f"{methods.name_of(step)} trains, and needs the language of the clips; give language")
    for each in recipe.export:
        if each.needs_calibration and recipe.data.calibration is None:
            raise SottoError(f"export: {each.name} takes its scales from data.calibration; give it a folder of audio")


def base_of(recipe: Recipe, root: Path) -> str | Path:
    """A folder relative to the recipe where there is one, else the id of a checkpoint on the hub."""
    return local_or_hub(recipe.base, root)


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
