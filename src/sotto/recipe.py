"""A recipe: base, data, steps, acceptance. YAML on disk, frozen dataclasses in memory, strict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml

from sotto.configuration import parse, to_plain
from sotto.data import DataConfig
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports import Export, parse_export
from sotto.methods import methods
from sotto.text import get_normalizer


@dataclass(frozen=True)
class DataRoles:
    """The four roles of data; `train` may be a list of folders. A clip is never in two roles."""

    calibration: DataConfig | None = None
    train: DataConfig | tuple[DataConfig, ...] | None = None
    validation: DataConfig | None = None
    test: DataConfig | None = None

    def __post_init__(self) -> None:
        if self.train == ():
            raise SottoError("data.train is an empty list; name a folder, or leave it out")

    @property
    def train_folders(self) -> tuple[DataConfig, ...]:
        if self.train is None:
            return ()
        return self.train if isinstance(self.train, tuple) else (self.train,)


@dataclass(frozen=True)
class Acceptance:
    """The most that a step may cost."""

    wer_increase: float
    """percentage points of corpus WER on validation, against the base"""

    def __post_init__(self) -> None:
        if self.wer_increase < 0:
            raise SottoError(f"wer_increase must not be negative, found {self.wer_increase}")


@dataclass(frozen=True)
class Recipe:
    """What `sotto compress` carries out. `steps` holds one method configuration each, in order."""

    base: str
    steps: tuple[Any, ...]
    data: DataRoles = field(default_factory=DataRoles)
    title: str | None = None
    language: str | None = None
    normalizer: str | None = None
    beams: int = 1
    batch_size: int = 8
    accept: Acceptance | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """precision of the saved weights; None keeps the base's"""
    pack_zeros: bool | None = None
    """store zeros as a bit each, in checkpoints that need `import sotto`; None does as the base does"""
    seed: int = 0
    export: tuple[Export, ...] = ()
    """what the last step's checkpoint is written as, for other runtimes"""

    def __post_init__(self) -> None:
        if not self.steps:
            raise SottoError("a recipe needs at least one step")
        if self.accept is not None and self.data.validation is None:
            raise SottoError("accept needs data.validation, on which the word error rate is measured")
        get_normalizer(self.normalizer, self.language)

    @property
    def decoding(self) -> Decoding:
        return Decoding(language=self.language, beams=self.beams, batch_size=self.batch_size)


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Raises SottoError on an unknown or missing key, naming the nearest known one; `where` is said in messages."""
    listed = values.get("steps", [])
    if not isinstance(listed, list):
        raise SottoError(f"{where}: steps: expected a list, found {listed!r}")
    steps = tuple(methods.parse(entry, f"{where}: steps[{index}]") for index, entry in enumerate(listed))
    exports = values.get("export") or []
    if not isinstance(exports, list):
        raise SottoError(f"{where}: export: expected a list, found {exports!r}")
    written = tuple(parse_export(entry, f"{where}: export[{index}]") for index, entry in enumerate(exports))
    recipe = parse(Recipe, {**values, "steps": listed, "export": []}, where)
    return replace(recipe, steps=steps, export=written)


def recipe_as_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every setting, defaults included."""
    plain = to_plain(recipe)
    plain["steps"] = methods.to_plain(recipe.steps)
    plain["export"] = [{each.to: {"precision": each.precision}} for each in recipe.export]
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
