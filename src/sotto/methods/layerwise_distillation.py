"""Layerwise distillation: a smaller model learns what a larger one makes of the same audio, layer by layer.

After Jiang et al. (2023, arXiv:2305.19549), of which the idea is known; weights, temperature and the ordered matching
are those of CoFi (Xia et al., 2022, arXiv:2204.00408). The errors are taken relative to the spread of the teacher's
states, so that a weight means the same for layers and models whose states are larger; CoFi takes them as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.families import Family, family_of
from sotto.methods.layer_matching import Match, identical, ordered
from sotto.methods.layer_states import hooked
from sotto.methods.teaching import divergence_of_scores, hearing_alike, open_teacher
from sotto.objectives import Objective, Setting, objectives
from sotto.surgery import layer_path, structure_of

LayerOutputs = dict[int, torch.Tensor]
"""What layers give, by their index."""
Outputs = dict[str, LayerOutputs]
"""The same by stack."""


@dataclass(frozen=True)
class LayerwiseDistillation:
    """Error in the outputs of layers, and divergence of the scores, from those of a teacher."""

    teacher: str | None = None
    """a checkpoint, its path seen from the recipe; without it, the model as it is when its training begins"""
    layers: float = 0.9
    """weight of the mean error of the layers"""
    logits: float = 0.1
    """weight of the divergence (Kullback-Leibler), a sum over decisions like the loss that it joins"""
    temperature: float = 2.0
    """of the divergence"""
    matching: Literal["identity", "ordered"] = "identity"
    """identity: each layer from the one that it was. ordered: from the one whose outputs are nearest, in order"""

    def __post_init__(self) -> None:
        if self.layers < 0 or self.logits < 0 or self.layers + self.logits == 0:
            raise SottoError("layers and logits must not be negative, and one of them positive")
        if self.layers == 0 and self.matching != "identity":
            raise SottoError("matching says which layers teach which; give layers a weight")
        if self.temperature <= 0:
            raise SottoError(f"temperature must be positive, found {self.temperature}")


class LayerwiseDistillationObjective(Objective):
    """The teacher hears the batch without what is hidden from the student, and is neither trained nor kept."""

    name = "layerwise_distillation"

    def __init__(self, config: LayerwiseDistillation, student: Family, teacher: Family) -> None:
        super().__init__()
        self.config = config
        self.student, self.teacher = student, teacher
        teacher.model.eval().requires_grad_(False)
        self.stacks = architecture_of(student.model.config).stacks
        self.projections = nn.ModuleDict(
            {
                stack.name: nn.Linear(width, wanted)
                for stack in self.stacks
                if config.layers and (width := width_of(student, stack)) != (wanted := width_of(teacher, stack))
            }
        )
        self.outputs: Outputs = {}
        self.same: dict[str, list[Match]] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        self.same = {
            stack.name: identical(base_layers(self.teacher, stack), base_layers(self.student, stack))
            for stack in self.stacks
        }
        with keeping_outputs(model, self.stacks, self.outputs), hearing_alike(self.teacher, self.student):
            yield

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        taught: Outputs = {}
        with torch.no_grad(), keeping_outputs(self.teacher.model, self.stacks, taught):
            wanted, _ = self.teacher.loss(batch, 0.0)
        counted = self.student.counted_positions(batch, outputs)
        decided = counted[self.stacks[-1].name]
        apart = divergence_of_scores(outputs.logits, wanted.logits, decided, self.config.temperature)
        loss = self.config.logits * apart / tokens
        if self.config.layers:
            errors = [self.error(stack, taught, counted[stack.name]) for stack in self.stacks]
            share = (batch["labels"] != IGNORED).sum() / tokens
            loss = loss + self.config.layers * share * torch.stack(errors).mean()
        return loss

    def error(self, stack: Stack, taught: Outputs, counted: torch.Tensor) -> torch.Tensor:
        """The mean over those layers of a stack that took part: some families leave some out while they are trained."""
        own = {layer: states[counted].float() for layer, states in self.outputs.get(stack.name, {}).items()}
        if stack.name in self.projections:
            own = {layer: self.projections[stack.name](states) for layer, states in own.items()}
        wanted = {layer: states[counted].float() for layer, states in taught[stack.name].items()}
        matches = self.matches(stack, own, wanted)
        errors = [relative_error(own[student], wanted[teacher]) for teacher, student in matches]
        return torch.stack(errors).mean() if errors else torch.zeros((), device=counted.device)

    def matches(self, stack: Stack, own: LayerOutputs, wanted: LayerOutputs) -> list[Match]:
        if self.config.matching == "identity":
            return [(teacher, student) for teacher, student in self.same[stack.name] if student in own]
        layers = sorted(own)
        with torch.no_grad():
            errors = [[relative_error(own[layer], wanted[teacher]) for layer in layers] for teacher in sorted(wanted)]
            return [(teacher, layers[at]) for teacher, at in ordered(torch.tensor(errors))]


def relative_error(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error of states (positions, width), relative to their variance around the mean position."""
    return (own - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean().clamp(min=1e-6)


def base_layers(family: Family, stack: Stack) -> list[int]:
    return [layer.base_layer for layer in structure_of(family.model).stacks[stack.name].layers]


def base_depth(family: Family, stack: Stack) -> int:
    return structure_of(family.model).stacks[stack.name].base_layers


def width_of(family: Family, stack: Stack) -> int:
    return stack.dimensions(family.model.config).width


@contextmanager
def keeping_outputs(model: Any, stacks: Sequence[Stack], kept: Outputs) -> Iterator[None]:
    """While this lasts, `kept` has the outputs of the layers of every stack in the model's last pass."""

    def keeping(name: str, index: int) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            kept.setdefault(name, {})[index] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = {
        layer_path(stack, index): keeping(stack.name, index)
        for stack in stacks
        for index in range(len(model.get_submodule(stack.layers)))
    }
    with hooked(model, hooks, kept):
        yield


@objectives.register("layerwise_distillation", LayerwiseDistillation)
def build_layerwise_distillation(config: LayerwiseDistillation, setting: Setting) -> LayerwiseDistillationObjective:
    """Raises SottoError for a teacher of another family or with another vocabulary."""
    student: Family = setting.family
    if config.teacher is None:
        teacher = family_of(student.model.config)(copy.deepcopy(student.model), copy.deepcopy(student.processor))
    else:
        teacher = open_teacher(config.teacher, setting, "layerwise_distillation")
    named = "the model" if config.teacher is None else f"'{config.teacher}'"
    objective = LayerwiseDistillationObjective(config, student, teacher)
    for stack in objective.stacks:
        if config.matching != "identity":
            continue
        if base_depth(teacher, stack) != base_depth(student, stack):
            raise SottoError(
                f"layerwise_distillation: the {stack.name} does not come from the same model as that of {named}: "
                f"{base_depth(student, stack)} layers once, and {base_depth(teacher, stack)}; use matching: ordered"
            )
        if not identical(base_layers(teacher, stack), base_layers(student, stack)):
            raise SottoError(
                f"layerwise_distillation: no layer of the {stack.name} is one of {named}; use matching: ordered"
            )
    return objective
