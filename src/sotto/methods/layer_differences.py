"""How far a layer of a student and one of its teacher are apart, in what they compute or in their weights.

Where widths differ, adapters bring what the teacher has to the student's width, as in Whisper-KDQ's code; they are
trained beside the student and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sotto.architectures import FeedForward, Stack
from sotto.methods.guided_matching import states_apart, weights_apart
from sotto.methods.layer_states import Inside, modules_inside
from sotto.surgery import get_any_linear, present

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


class HiddenDifference(nn.Module):
    """Of what is inside of modules: states (positions, width) by module."""

    def __init__(self, student: Any, teacher: Any, stack: Stack, inside: Sequence[Inside], temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        own, wanted = (list(widths_of_states(model, stack, inside)) for model in (student, teacher))
        self.adapters = Adapters(own, wanted)

    def forward(self, own: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Summed over the modules that both layers have."""
        found = [
            states_apart(own[name], self.adapters(name, wanted[name], own[name].shape[-1]), self.temperature)
            for name in own
            if name in wanted
        ]
        return torch.stack(found).sum() if found else torch.zeros(())


def widths_of_states(model: Any, stack: Stack, inside: Sequence[Inside]) -> Widths:
    for index in range(len(model.get_submodule(stack.layers))):
        for module in modules_inside(model, stack, index, inside):
            last = get_any_linear(model, stack, index, module.linears[-1])
            yield module.name, last.in_features if isinstance(module, FeedForward) else last.out_features


class WeightDifference(nn.Module):
    """Of the first linears of feed-forward networks: weights (outputs, inputs) by module."""

    def __init__(self, student: Any, teacher: Any, stack: Stack, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        layers = [first_weights(model, stack) for model in (student, teacher)]
        self.outputs, self.inputs = (
            Adapters(
                *([(name, each.shape[axis]) for layer in model for name, each in layer.items()] for model in layers)
            )
            for axis in (0, 1)
        )

    def forward(self, own: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Summed over the modules that both layers have; the teacher's outputs are adapted first, then its inputs."""
        found = []
        for name in own:
            if name in wanted:
                outputs, inputs = own[name].shape
                weights = self.outputs(name, wanted[name].t(), outputs).t()
                found.append(weights_apart(own[name], self.inputs(name, weights, inputs), self.temperature))
        return torch.stack(found).sum() if found else torch.zeros(())


def first_weights(model: Any, stack: Stack) -> list[dict[str, torch.Tensor]]:
    """For every layer, the weights of the first linears of its feed-forward networks, by module."""
    return [
        {
            each.name: get_any_linear(model, stack, index, each.up).weight
            for each in present(model, stack, index).feed_forwards
        }
        for index in range(len(model.get_submodule(stack.layers)))
    ]
