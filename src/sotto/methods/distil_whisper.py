"""Distil-Whisper's objective (Gandhi et al., 2023, arXiv:2311.00430), for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sotto.errors import SottoError
from sotto.methods.guided_distillation import GuidedDistillation, objective_of
from sotto.objectives import Objective, Setting, objectives

DIVERGENCE = {"paper": 0.8, "code": 1.25}
"""Weight of the divergence where the cross entropy has 1: the paper prints 0.8 to 1, its code has 1 to 0.8."""


@dataclass(frozen=True)
class DistilWhisper:
    """Divergence of the scores from a teacher's at a temperature of 2, beside the cross entropy of its transcripts.

    The transcripts are those of `transcripts_from`. The student is the teacher with its encoder and the first and last
    layer of its decoder (`layer_dropping: {decoder: 2}`).
    """

    teacher: str
    """a checkpoint, its path seen from the recipe"""
    weights: Literal["paper", "code"] = "paper"
    """the two differ"""
    freeze_encoder: bool = True

    @property
    def guided(self) -> GuidedDistillation:
        """The same in the words of guided distillation, without anything inside of layers."""
        return GuidedDistillation(
            self.teacher,
            weight=DIVERGENCE[self.weights],
            layers=0.0,
            temperature=2.0,
            frozen=("encoder",) if self.freeze_encoder else (),
        )


@objectives.register("distil_whisper", DistilWhisper)
def build_distil_whisper(config: DistilWhisper, setting: Setting) -> Objective:
    """Raises SottoError for a model without a decoder, and for a teacher of another family or vocabulary."""
    if not setting.family.model.config.is_encoder_decoder:
        raise SottoError("distil_whisper is for Whisper; for a CTC model take layerwise_distillation")
    return objective_of(config.guided, setting, "distil_whisper")
