"""Fine-tuning as a step: before a method that needs it, or to recover from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.examples import ClipExamples
from sotto.methods.method import StepContext, methods
from sotto.objectives import Objective, Setting, objectives
from sotto.text import get_normalizer
from sotto.training import Training, train


@dataclass(frozen=True)
class FineTuning:
    """Trains on the recipe's `train` clips and keeps the best weights by WER on its `validation` clips."""

    training: Training
    objectives: tuple[Mapping[str, Any], ...] = ()
    """terms of the loss, as in a training recipe"""
    augmentation: Augmentation = field(default_factory=Augmentation)
    transcripts: str = "none"
    """name of the normaliser that the transcripts go through before they are learnt"""

    needs: ClassVar[tuple[str, ...]] = ("train", "validation")

    def __post_init__(self) -> None:
        get_normalizer(self.transcripts)
        self.terms()

    def terms(self) -> list[Any]:
        """The configurations of the objectives. Raises SottoError on a bad one."""
        return [objectives.parse(entry, f"objectives[{index}]") for index, entry in enumerate(self.objectives)]


@methods.register("fine_tuning", FineTuning)
def apply_fine_tuning(recognizer: Recognizer, config: FineTuning, context: StepContext) -> list[str]:
    """Train `recognizer` in place."""
    setting = Setting(recognizer.family, load)
    terms = [objectives.handler(term)(term, setting) for term in config.terms()]
    wer = fine_tune(recognizer, config, context, context.folder, terms)
    return [f"trained for {config.training.steps} steps; best validation WER {wer:.2%}"]


def fine_tune(
    recognizer: Recognizer, config: FineTuning, context: StepContext, folder: Path, terms: list[Objective]
) -> float:
    """The best validation WER. Checkpoints go to `folder`; a second call goes on from the last of them.

    Raises SottoError without training or validation clips, or without the recipe's language.
    """
    if context.train is None or context.validation is None or context.language is None:
        raise SottoError("fine-tuning needs data.train, data.validation and language")
    context.train.require_transcripts()
    family = recognizer.family
    seconds, seed = family.longest_seconds, config.training.seed
    written = get_normalizer(config.transcripts)
    log = train(
        family,
        config.training,
        training_data=ClipExamples(context.train, config.augmentation, seconds, seed, written),
        validation_data=ClipExamples(context.validation, Augmentation(), seconds, seed),
        language=context.language,
        normalizer=context.normalizer,
        folder=folder,
        objectives=terms,
        device=recognizer.model.device.type,
    )
    return min(entry[name] for entry in log for name in ("eval_wer", "average_wer") if name in entry)
