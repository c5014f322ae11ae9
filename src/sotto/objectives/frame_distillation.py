"""A CTC model teaches Whisper's encoder, frame by frame, what is said where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sotto.errors import SottoError
from sotto.examples import Batch, Example
from sotto.families import Family
from sotto.families.ctc import Ctc, heard
from sotto.families.whisper_transcription import TIME_STEP
from sotto.objectives.objective import Objective, Setting, objectives

PREFIX = "teacher_"


@dataclass(frozen=True)
class FrameDistillation:
    """Divergence of a head on Whisper's encoder from a CTC model's labels of the same audio.

    From nothing an encoder finds out slowly which of its positions belong to which part of a text. A model that has
    found out tells it directly: every frame has a label.
    """

    teacher: str
    """a checkpoint with a CTC head; its path is seen from the recipe's folder"""
    weight: float = 1.0
    temperature: float = 1.0
    """scores of both are divided by it, and the divergence is multiplied by its square (Hinton et al., 2015)"""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if getattr(self, name) <= 0:
                raise SottoError(f"{name} must be positive, found {getattr(self, name)}")


@dataclass(frozen=True)
class TeacherCollator:
    """Examples -> what the teacher hears, under names that begin with `teacher_`."""

    processor: Any

    def __call__(self, examples: list[Example]) -> Batch:
        inputs = heard(self.processor, [example.audio for example in examples])
        return {PREFIX + name: tensor for name, tensor in inputs.items()}


class FrameDistillationObjective(Objective):
    """Kullback-Leibler divergence, summed over the teacher's frames that both heard."""

    name = "frame_distillation"

    def __init__(self, teacher: Ctc, width: int, positions: int, weight: float, temperature: float) -> None:
        """`width` of the encoder's states, of which `positions` make up a frame of the teacher."""
        super().__init__()
        self.teacher = teacher  # not a module: it is neither trained nor kept in checkpoints
        self.positions = positions
        self.weight = weight
        self.temperature = temperature
        self.head = nn.Linear(width, int(teacher.model.config.vocab_size))
        self.collate = TeacherCollator(teacher.processor)

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        states = outputs.encoder_last_hidden_state
        own = self.head(frames_of(states, self.positions)) / self.temperature
        scores, counts = self.taught(batch, states.device)
        length = min(own.shape[1], scores.shape[1])
        divergence = nn.functional.kl_div(
            own[:, :length].float().log_softmax(-1),
            (scores[:, :length].float() / self.temperature).softmax(-1),
            reduction="none",
        ).sum(-1)
        heard_by_both = torch.arange(length, device=states.device) < counts[:, None]
        return self.weight * self.temperature**2 * (divergence * heard_by_both).sum() / tokens

    @torch.no_grad()
    def taught(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's scores (batch, frames, vocabulary), and how many frames (batch,) are not padding."""
        self.teacher.model.to(device)
        inputs = {name.removeprefix(PREFIX): tensor for name, tensor in batch.items() if name.startswith(PREFIX)}
        return self.teacher.run(inputs), self.teacher.frame_counts(inputs)


def frames_of(states: torch.Tensor, positions: int) -> torch.Tensor:
    """Means (batch, frames, width) over every `positions` states (batch, positions, width); a rest is left out."""
    return nn.functional.avg_pool1d(states.transpose(1, 2), positions).transpose(1, 2)


@objectives.register("frame_distillation", FrameDistillation)
def build_frame_distillation(config: FrameDistillation, setting: Setting) -> FrameDistillationObjective:
    """Raises SottoError for a student or a teacher that the term is not for."""
    student: Family = setting.family
    if not student.model.config.is_encoder_decoder:
        raise SottoError("the objective frame_distillation is for the encoder of a Whisper")
    teacher = setting.open(config.teacher).family
    if not isinstance(teacher, Ctc):
        raise SottoError(f"frame_distillation: the teacher must have a CTC head; '{config.teacher}' has none")
    if teacher.sampling_rate != student.sampling_rate:
        raise SottoError(
            f"frame_distillation: the teacher hears {teacher.sampling_rate} Hz, the student {student.sampling_rate} Hz"
        )
    positions = teacher.samples_per_frame / (TIME_STEP * teacher.sampling_rate)
    if positions < 1 or round(positions) != positions:
        raise SottoError(
            f"frame_distillation: a frame of the teacher must be a multiple of {1000 * TIME_STEP:.0f} ms, found "
            f"{1000 * TIME_STEP * positions:.0f} ms"
        )
    teacher.model.eval().requires_grad_(False)
    width = int(student.model.config.d_model)
    return FrameDistillationObjective(teacher, width, round(positions), config.weight, config.temperature)
