"""How far layers of a student and of its teacher are apart, in what they compute or in their weights.

Where widths differ, adapters bring what the teacher has to the student's width, as in Whisper-KDQ's code; they are
trained beside the student and not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sotto.architectures import FeedForward, Stack
from sotto.methods.layer_states import Inside, States, modules_inside
from sotto.methods.quantization_error import unrounded
from sotto.surgery import get_any_linear, layers_of

Widths = Iterable[tuple[str, int]]
"""(module, width)."""


class Adapters(nn.Module):
    """One for every module and pair of widths, shared by all layers."""

    def __init__(self, own: Widths, wanted: Widths) -> None:
        super().__init__()
        pairs = {(name, old, new) for name, new in own for other, old in wanted if name == other and old != new}
        self.linears = nn.ModuleDict({f"{name}_{old}_{new}": nn.Linear(old, new) for name, old, new in sorted(pairs)})

    def forward(self, name: str, wanted: torch.Tensor, width: int) -> torch.Tensor:
        """(…, width)."""
        if wanted.shape[-1] == width:
            return wanted
        adapted: torch.Tensor = self.linears[f"{name}_{wanted.shape[-1]}_{width}"](wanted)
        return adapted


@dataclass(frozen=True)
class Compared:
    """Softmaxes of what is compared: the student's by layer and module; the teacher's by layer, module and the shape
    that the student's has."""

    own: dict[int, dict[str, torch.Tensor]]
    wanted: dict[int, dict[tuple[str, torch.Size], torch.Tensor]]
    power: int
    scale: float

    def fit(self, layer: int, other: int) -> bool:
        """Whether the teacher's layer has all that is compared of the student's."""
        return all((name, each.shape) in self.wanted[other] for name, each in self.own[layer].items())

    def apart(self, layer: int, other: int, is_learnt: bool = True) -> torch.Tensor:
        """The difference of two layers that fit, with gradients for the student where `is_learnt`: the mean of their
        rows, summed over modules."""
        changes = [
            (each if is_learnt else each.detach()) - self.wanted[other][name, each.shape]
            for name, each in self.own[layer].items()
        ]
        return self.scale * torch.stack([change.abs().pow(self.power).sum(-1).mean() for change in changes]).sum()


class HiddenStates(nn.Module):
    """Compares states inside of modules: squares of the differences of softmaxes, of a position."""

    def __init__(self, student: Any, teacher: Any, stack: Stack, inside: Sequence[Inside], temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.adapters = Adapters(*(widths_of_states(model, stack, inside) for model in (student, teacher)))

    def forward(self, own: States, wanted: States) -> Compared:
        """Of states (positions, width)."""

        def adapted(name: str, states: torch.Tensor, shape: torch.Size) -> torch.Tensor:
            found: torch.Tensor = self.adapters(name, states, shape[-1])
            return found

        return compared(own, wanted, adapted, self.temperature, 2)


class FirstWeights(nn.Module):
    """Compares the first weights of feed-forward networks: sizes of the differences of softmaxes, of an output.

    Whisper-KDQ's code calls it the quantization loss, though no quantized weight is in it.
    """

    def __init__(self, student: Any, teacher: Any, stack: Stack, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        layers = [list(first_weights(model, stack).values()) for model in (student, teacher)]
        self.outputs, self.inputs = (
            Adapters(
                *([(name, each.shape[axis]) for layer in model for name, each in layer.items()] for model in layers)
            )
            for axis in (0, 1)
        )

    def forward(self, own: States, wanted: States) -> Compared:
        """Of weights (outputs, inputs); the teacher's outputs are adapted first, then its inputs."""

        def adapted(name: str, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
            found: torch.Tensor = self.inputs(name, self.outputs(name, weight.t(), shape[0]).t(), shape[1])
            return found

        return compared(own, wanted, adapted, self.temperature, 1)


def compared(
    own: States,
    wanted: States,
    adapted: Callable[[str, torch.Tensor, torch.Size], torch.Tensor],
    temperature: float,
    power: int,
) -> Compared:
    """Every softmax is taken once, and not for every pair of layers; the square of the temperature is in the scale."""
    shapes = {(name, each.shape) for modules in own.values() for name, each in modules.items()}
    students = {
        layer: {name: (each.float() / temperature).softmax(-1) for name, each in modules.items()}
        for layer, modules in own.items()
        if modules
    }
    teachers = {
        layer: {
            (name, shape): (adapted(name, modules[name], shape).float() / temperature).softmax(-1)
            for name, shape in shapes
            if name in modules
        }
        for layer, modules in wanted.items()
        if modules
    }
    return Compared(students, teachers, power, temperature**2)


def widths_of_states(model: Any, stack: Stack, inside: Sequence[Inside]) -> list[tuple[str, int]]:
    found = []
    for index in range(len(model.get_submodule(stack.layers))):
        for module in modules_inside(model, stack, index, inside):
            last = get_any_linear(model, stack, index, module.linears[-1])
            found.append((module.name, last.in_features if isinstance(module, FeedForward) else last.out_features))
    return found


def first_weights(model: Any, stack: Stack) -> States:
    """For every layer, the first weights of its feed-forward networks as they are trained, by module."""
    return {
        index: {
            network.name: unrounded(get_any_linear(model, stack, index, network.up)) for network in layer.feed_forwards
        }
        for layer, index in layers_of(model)
        if layer.name == stack.name
    }
