"""A training recipe: YAML -> frozen dataclasses, and its run (`sotto train`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import PreTrainedModel

from sotto.augmentation import Augmentation, Splicing
from sotto.checkpoint import DTYPES, Recognizer, load, save
from sotto.configuration import nearest, parse, read_yaml, to_plain
from sotto.data import ClipSource, DataConfig, check_disjoint, fingerprint, open_data
from sotto.data.hub import HubListing
from sotto.distribution import processes
from sotto.errors import SottoError
from sotto.examples import ClipExamples, SplicedExamples, examples_of
from sotto.families import family_of
from sotto.named_checkpoints import checkpoints_in, local_or_hub, mark_of
from sotto.new_models import new_models
from sotto.objectives import Setting, built, check_training, objectives
from sotto.run_folder import claimed
from sotto.text import get_normalizer
from sotto.training import Training, kept_wer, train

SAMPLING_RATE = 16_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Clips to learn from (one folder, or a list of them) and clips to choose the best checkpoint by.

    Without a `validation` folder, `hold_out` clips of `train`, drawn with the recipe's seed, are kept for validation.
    """

    train: DataConfig | tuple[DataConfig, ...]
    validation: DataConfig | None = None
    hold_out: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    splicing: Splicing | None = None
    validation_strings: int = 200
    """how many strings are spliced from the validation clips, where there is splicing; 0 takes the clips one by one"""
    window_seconds: float | None = None
    """Whisper hears windows of this length while it is trained, if given, and clips that fit them; its own is longer"""
    timestamp_share: float = 0.0
    """share of spliced strings labelled with times"""
    transcripts: str = "none"
    """name of the normalizer that the training transcripts go through: the model learns to write what it gives"""

    def __post_init__(self) -> None:
        if self.train == ():
            raise SottoError("data.train is an empty list; name a folder")
        if self.hold_out < 0 or self.validation_strings < 0:
            raise SottoError("hold_out and validation_strings must not be negative")
        if not 0 <= self.timestamp_share <= 1:
            raise SottoError(f"timestamp_share must be between 0 and 1, found {self.timestamp_share}")
        if (self.validation is None) == (self.hold_out == 0):
            raise SottoError("give either validation (a folder) or hold_out (a number of training clips)")
        if self.hold_out and len(self.folders) > 1:
            raise SottoError("hold_out takes clips out of one folder; give validation where train is a list")
        get_normalizer(self.transcripts)

    @property
    def folders(self) -> tuple[DataConfig, ...]:
        return self.train if isinstance(self.train, tuple) else (self.train,)


@dataclass(frozen=True)
class TrainingRecipe:
    """What `sotto train` carries out: a base (a checkpoint, or a new model), data, objectives, and the training."""

    data: TrainingData
    training: Training
    language: str
    base: str | None = None
    new: Any = None
    weights_from: str | None = None
    """a checkpoint whose weights the new model takes over where they have the same name and shape: one of another
    language, say, whose vocabulary is another"""
    vocabulary_from: str | None = None
    """a checkpoint whose vocabulary the new model has, in place of one learnt from the transcripts: that of a model
    which is to teach it, say"""
    normalizer: str | None = None
    objectives: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if (self.base is None) == (self.new is None):
            raise SottoError("give either base (a checkpoint) or new (the dimensions of a new model)")
        if self.weights_from is not None and self.new is None:
            raise SottoError("weights_from is for a new model; a base brings all of its weights")
        if self.vocabulary_from is not None and self.new is None:
            raise SottoError("vocabulary_from is for a new model; a base brings its own")
        check_training(self.objectives, self.training.steps, self.training.keep)


def read_training_recipe(path: Path) -> TrainingRecipe:
    """Raises SottoError on a missing file, bad YAML, or an unknown or missing key."""
    values = read_yaml(path)
    listed = values.pop("objectives", [])
    if not isinstance(listed, list):
        raise SottoError(f"{path.name}: objectives: expected a list, found {listed!r}")
    parsed = tuple(objectives.parse(entry, f"{path.name}: objectives[{index}]") for index, entry in enumerate(listed))
    if values.get("new") is not None:
        values["new"] = new_models.parse(values["new"], f"{path.name}: new")
    return parse(TrainingRecipe, values | {"objectives": parsed}, path.name)


def training_recipe_as_yaml(recipe: TrainingRecipe) -> str:
    """The resolved recipe: every setting, defaults included."""
    plain = to_plain(recipe)
    plain["objectives"] = objectives.to_plain(recipe.objectives)
    if recipe.new is not None:
        (plain["new"],) = new_models.to_plain([recipe.new])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def build_data(data: TrainingData, root: Path, window_seconds: float, seed: int) -> tuple[Any, Any]:
    """(training, validation) examples. Raises SottoError where a clip is in both or a transcript is missing."""
    sources = open_sources(data, root)
    if data.validation is None:
        rest, held_out = hold_out(sources[0], data.hold_out, seed)
        sources = [rest]
    else:
        held_out = open_data(data.validation, sampling_rate=SAMPLING_RATE, root=root)
        held_out.require_transcripts()
    for source in sources:
        check_disjoint({"train": source, "validation": held_out})
    written = get_normalizer(data.transcripts)
    if data.splicing is None:
        learnt = examples_of(sources, data.augmentation, window_seconds, seed, written)
        return learnt, ClipExamples(held_out, Augmentation(), window_seconds, seed)
    clips = [replace(clip, text=written(clip.text or "")) for source in sources for clip in source]
    return (
        SplicedExamples(clips, data.splicing, data.augmentation, window_seconds, data.timestamp_share, seed),
        spliced_validation(data, held_out, window_seconds, seed),
    )


def open_sources(data: TrainingData, root: Path) -> list[ClipSource]:
    """The training folders. Raises SottoError where one has no transcripts."""
    sources = [open_data(folder, sampling_rate=SAMPLING_RATE, root=root) for folder in data.folders]
    for source in sources:
        source.require_transcripts()
    return sources


def spliced_validation(data: TrainingData, held_out: ClipSource, window_seconds: float, seed: int) -> Any:
    """Validation strings as noisy as those of training, at their own speed; or the clips one by one, as they are."""
    assert data.splicing is not None
    if data.validation_strings == 0:
        return ClipExamples(held_out, Augmentation(), window_seconds, seed)
    splicing = replace(data.splicing, strings=data.validation_strings, cut_probability=0.0)
    own_speed = replace(data.augmentation, speed=(1.0,))
    return SplicedExamples(list(held_out), splicing, own_speed, window_seconds, 0.0, seed + 1)


def hold_out(source: ClipSource, count: int, seed: int) -> tuple[ClipSource, ClipSource]:
    """`source` without `count` randomly drawn clips, and those clips."""
    if isinstance(source.listing, HubListing):
        raise SottoError(f"{source.config.path}: hold_out needs clips in a folder; give validation with another split")
    references = source.references
    if count >= len(references):
        raise SottoError(f"hold_out {count} would leave none of the {len(references)} training clips")
    held = set(np.random.default_rng(seed).permutation(len(references))[:count].tolist())
    parts = ([r for i, r in enumerate(references) if (i in held) is wanted] for wanted in (False, True))
    rest, kept = (ClipSource(source.config, part, sampling_rate=source.sampling_rate) for part in parts)
    for part in (rest, kept):
        part.require_transcripts()
    return rest, kept


def run_training(
    recipe: TrainingRecipe,
    root: Path,
    folder: Path,
    opened: Callable[[str], Recognizer],
    inputs: Mapping[str, str],
) -> tuple[PreTrainedModel, Any, list[dict[str, float]]]:
    """Train in `folder`/checkpoints, going on from the last of them if there is one. `opened` opens a checkpoint;
    `inputs`: what tells the run's checkpoints and clips from others of the same name.

    Returns the model, its processor and the log.
    """
    if recipe.base:
        base = opened(recipe.base)
        model, processor = base.model, base.processor
    else:
        known = opened(recipe.vocabulary_from).processor.tokenizer if recipe.vocabulary_from else None
        model, processor = build_new(recipe, root, known)
        if recipe.weights_from:
            take_over(model, opened(recipe.weights_from).model, recipe.weights_from)
    family = family_of(model.config)(model, processor)
    family.collator(recipe.language)
    terms = built(recipe.objectives, Setting(family, opened), recipe.training.seed)
    main = processes().is_main_process
    with family.window(recipe.data.window_seconds):
        data = build_data(recipe.data, root, family.longest_seconds, recipe.training.seed)
        with claimed(folder, training_recipe_as_yaml(recipe), inputs) if main else nullcontext():
            processes().wait_for_everyone()
            log = train(
                family,
                recipe.training,
                training_data=data[0],
                validation_data=data[1],
                language=recipe.language,
                normalizer=get_normalizer(recipe.normalizer, recipe.language),
                folder=folder / "checkpoints",
                objectives=terms,
            )
    return model, processor, log


def inputs_of(recipe: TrainingRecipe, root: Path) -> dict[str, str]:
    """What tells checkpoints and clips from others of the same name."""
    teachers = (name for term in recipe.objectives for name in checkpoints_in(term))
    named = [recipe.base, recipe.vocabulary_from, recipe.weights_from, *teachers]
    marks = {name: mark_of(local_or_hub(name, root)) for name in dict.fromkeys(named) if name}
    clips = [*recipe.data.folders, *([recipe.data.validation] if recipe.data.validation is not None else [])]
    sources = [open_data(each, sampling_rate=SAMPLING_RATE, root=root) for each in clips]
    return marks | {"data": " ".join(map(fingerprint, sources))}


def build_new(recipe: TrainingRecipe, root: Path, tokenizer: Any) -> tuple[PreTrainedModel, Any]:
    """A new model, with a vocabulary learnt from the training transcripts where no tokenizer is given."""
    written = get_normalizer(recipe.data.transcripts)
    sources = open_sources(recipe.data, root)
    texts = [written(reference.text) for source in sources for reference in source.references if reference.text]
    return new_models.handler(recipe.new)(recipe.new, texts, recipe.training.seed, tokenizer)


def take_over(model: PreTrainedModel, other: PreTrainedModel, name: str) -> None:
    """Copy what `other` has under the same name in the same shape. Raises SottoError where that is less than half."""
    own, found = model.state_dict(), other.state_dict()
    same = {key: found[key] for key, tensor in own.items() if key in found and found[key].shape == tensor.shape}
    if 2 * sum(tensor.numel() for tensor in same.values()) < sum(tensor.numel() for tensor in own.values()):
        raise SottoError(f"weights_from: '{name}' fits less than half of the new model; give both the same dimensions")
    model.load_state_dict(same, strict=False)
    logger.info("%d of %d tensors are those of %s", len(same), len(own), name)


def train_by_recipe(recipe: TrainingRecipe, root: Path, folder: Path, dtype: str | None = None) -> float:
    """Train in `folder`/checkpoints, save the best weights to `folder`/model, and return their validation WER.

    Raises SottoError where `folder` holds anything but a run of this recipe.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SottoError(f"unknown dtype '{dtype}'{nearest(dtype, DTYPES)}")

    def opened(name: str) -> Recognizer:
        return load(local_or_hub(name, root))

    model, processor, log = run_training(recipe, root, folder, opened, inputs_of(recipe, root))
    state = processes()
    if state.is_main_process:
        save(Recognizer(model, processor), folder / "model", dtype=dtype)
        (folder / "log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    state.wait_for_everyone()
    return kept_wer(log, recipe.training.keep)
