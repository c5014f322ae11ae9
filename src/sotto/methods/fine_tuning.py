"""Fine-tuning as a step: before a method that needs it, or to recover from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer
from sotto.configuration import to_plain
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.examples import ClipExamples, examples_of
from sotto.methods.method import StepContext, methods
from sotto.methods.pseudo_transcripts import transcribed
from sotto.objectives import Objective, Setting, built, check_training, objectives
from sotto.text import get_normalizer
from sotto.training import Training, kept_wer, train


@dataclass(frozen=True)
class FineTuning:
    """Trains on the recipe's `train` clips; WER on its `validation` clips tells which weights are the best."""

    training: Training
    objectives: tuple[Any, ...] = ()
    """terms of the loss: their configurations, or entries as in a training recipe"""
    augmentation: Augmentation = field(default_factory=Augmentation)
    transcripts: str = "none"
    """name of the normaliser that the transcripts go through before they are learnt"""
    transcripts_from: str | None = None
    """a checkpoint whose transcripts of the clips are learnt, which then need none of their own"""
    transcripts_within: float | None = None
    """the largest word error rate at which such a transcript is learnt of a clip that has a text of its own"""

    needs: ClassVar[tuple[str, ...]] = ("train", "validation")

    def __post_init__(self) -> None:
        get_normalizer(self.transcripts)
        if self.transcripts_within is not None and (self.transcripts_from is None or self.transcripts_within < 0):
            raise SottoError("transcripts_within must not be negative, and goes with transcripts_from")
        parsed = tuple(
            entry if type(entry) in objectives.handlers else objectives.parse(entry, f"objectives[{index}]")
            for index, entry in enumerate(self.objectives)
        )
        check_training(parsed, self.training.steps, self.training.keep)
        object.__setattr__(self, "objectives", parsed)  # the one way to set a field of a frozen class

    def plain(self) -> dict[str, Any]:
        """As in a recipe, every objective under its name."""
        values = {field.name: to_plain(getattr(self, field.name)) for field in fields(self)}
        return values | {"objectives": objectives.to_plain(self.objectives)}


@methods.register("fine_tuning", FineTuning)
def apply_fine_tuning(recognizer: Recognizer, config: FineTuning, context: StepContext) -> list[str]:
    """Train `recognizer` in place."""
    wer = fine_tune(recognizer, config, context, context.folder)
    return [f"trained for {config.training.steps} steps; validation WER {wer:.2%}"]


def fine_tune(
    recognizer: Recognizer,
    config: FineTuning,
    context: StepContext,
    folder: Path,
    more_objectives: Sequence[Objective] = (),
) -> float:
    """Validation WER of the weights that are kept. Checkpoints go to `folder`; a second call goes on from the last.

    Raises SottoError without training or validation clips, or without the recipe's language.
    """
    language, validation = heard(context)
    sources = transcribed_sources(config, context, folder)
    family = recognizer.family
    seconds, seed = family.longest_seconds, config.training.seed
    written = get_normalizer(config.transcripts)
    log = train(
        family,
        config.training,
        training_data=examples_of(sources, config.augmentation, seconds, seed, written),
        validation_data=ClipExamples(validation, Augmentation(), seconds, seed),
        language=language,
        normalizer=context.normalizer,
        folder=folder,
        objectives=[*built(config.objectives, Setting(family, context.open), seed), *more_objectives],
        device=recognizer.model.device.type,
    )
    return kept_wer(log, config.training.keep)


def heard(context: StepContext) -> tuple[str, ClipSource]:
    """The language and the validation clips. Raises SottoError where they, or training clips, are missing."""
    if not context.train or context.validation is None or context.language is None:
        raise SottoError("fine-tuning needs data.train, data.validation and language")
    return context.language, context.validation


def transcribed_sources(config: FineTuning, context: StepContext, folder: Path) -> tuple[ClipSource, ...]:
    """The training clips with the transcripts that are learnt. Raises SottoError where a folder has none."""
    language, _ = heard(context)
    if config.transcripts_from is None:
        for source in context.train:
            source.require_transcripts()
        return context.train
    teacher = cache(partial(context.open, config.transcripts_from))
    return tuple(
        transcribed(
            source,
            teacher,
            language,
            folder / f"transcripts-{number}.json",
            context.normalizer,
            config.transcripts_within,
        )
        for number, source in enumerate(context.train, start=1)
    )
