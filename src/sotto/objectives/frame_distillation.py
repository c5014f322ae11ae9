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
    """Divergence of a head on Whisper's encoder from a CTC model's labels of the same audio, and what led to them.

    From nothing an encoder finds out slowly which of its positions belong to which part of a text. A model that has
    found out tells it directly: every frame has a label. Most of the labels are blank, from which there is little to
    learn at first; the states that the teacher's head hears say something in every frame.
    """

    teacher: str
    """a checkpoint with a CTC head; its path is seen from the recipe's folder"""
    weight: float = 1.0
    states: float = 0.0
    """weight of the mean squared error in the states of the teacher's frames, each brought to mean 0 and deviation 1"""
    temperature: float = 1.0
    """scores of both are divided by it, and the divergence is multiplied by its square (Hinton et al., 2015)"""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if getattr(self, name) <= 0:
                raise SottoError(f"{name} must be positive, found {getattr(self, name)}")
        if self.states < 0:
            raise SottoError(f"states must not be negative, found {self.states}")


@dataclass(frozen=True)
class TeacherCollator:
    """Examples -> what the teacher hears, under names that begin with `teacher_`."""

    processor: Any

    def __call__(self, examples: list[Example]) -> Batch:
        inputs = heard(self.processor, [example.audio for example in examples])
        return {PREFIX + name: tensor for name, tensor in inputs.items()}


@dataclass(frozen=True)
class Taught:
    """What a teacher makes of a batch: scores and states (batch, frames, …), and which frames (batch, frames) count."""

    scores: torch.Tensor
    states: torch.Tensor
    heard: torch.Tensor


class FrameDistillationObjective(Objective):
    """Kullback-Leibler divergence and error of the states, summed over the teacher's frames that both heard."""

    name = "frame_distillation"

    def __init__(self, config: FrameDistillation, teacher: Ctc, width: int, positions: int) -> None:
        """`width` of the encoder's states, of which `positions` make up a frame of the teacher."""
        super().__init__()
        self.config = config
        self.teacher = teacher  # not a module: it is neither trained nor kept in checkpoints
        self.positions = positions
        self.head = nn.Linear(width, int(teacher.model.config.vocab_size))
        self.to_states = nn.Linear(width, teacher.width) if config.states else None
        self.collate = TeacherCollator(teacher.processor)

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        own = frames_of(outputs.encoder_last_hidden_state, self.positions)
        taught = self.taught(batch, own.device)
        length = min(own.shape[1], taught.scores.shape[1])
        heard = taught.heard[:, :length]
        loss = self.config.weight * (self.divergence(own[:, :length], taught.scores[:, :length]) * heard).sum()
        if self.to_states is not None:
            loss = loss + self.config.states * (self.error(own[:, :length], taught.states[:, :length]) * heard).sum()
        return loss / tokens

    def divergence(self, own: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(batch, frames), times the square of the temperature."""
        temperature = self.config.temperature
        divergence = nn.functional.kl_div(
            (self.head(own).float() / temperature).log_softmax(-1),
            (scores.float() / temperature).softmax(-1),
            reduction="none",
        )
        return temperature**2 * divergence.sum(-1)

    def error(self, own: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """(batch, frames)."""
        assert self.to_states is not None
        wanted = nn.functional.layer_norm(states.float(), states.shape[-1:])
        found: torch.Tensor = self.to_states(own).float()
        return (found - wanted).square().mean(-1)

    @torch.no_grad()
    def taught(self, batch: Batch, device: torch.device) -> Taught:
        self.teacher.model.to(device)
        inputs = {name.removeprefix(PREFIX): tensor for name, tensor in batch.items() if name.startswith(PREFIX)}
        outputs = self.teacher.outputs(inputs, output_hidden_states=True)
        frames = torch.arange(outputs.logits.shape[1], device=device)
        heard = frames < self.teacher.frame_counts(inputs)[:, None]
        return Taught(outputs.logits, outputs.hidden_states[-1], heard)


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
    return FrameDistillationObjective(config, teacher, width, round(positions))
