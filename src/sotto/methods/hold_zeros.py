"""Keeps a pattern of zeros while the other weights are trained: recovery after pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sotto.examples import Batch
from sotto.layers import FactoredLinear, trained_weight
from sotto.objectives import Objective, Setting, objectives
from sotto.surgery import get_linear, layer_path, linears_of


@dataclass(frozen=True)
class HoldZeros:
    """Weights of the layers' linears that are zero before training are zero after every step."""


class HoldZerosObjective(Objective):
    """No term of the loss: after each step, weights are zero again where `patterns` (path of a linear -> where) say."""

    name = "hold_zeros"

    def __init__(self, patterns: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.paths = list(patterns)
        for number, pattern in enumerate(patterns.values()):
            self.register_buffer(f"pattern_{number}", pattern)  # kept in checkpoints: a resumed run has the same

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=tokens.device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Weights that are held have no gradients, which would count where gradients are clipped."""
        with ExitStack() as hooks:
            for number, path in enumerate(self.paths):
                pattern = self.get_buffer(f"pattern_{number}")
                weight = trained_weight(model.get_submodule(path))
                hook = weight.register_hook(partial(without, pattern=pattern))
                hooks.callback(hook.remove)
            yield

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        for number, path in enumerate(self.paths):
            weight = trained_weight(model.get_submodule(path))
            weight[self.get_buffer(f"pattern_{number}")] = 0.0


def without(gradient: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    return gradient.masked_fill(pattern.to(gradient.device), 0.0)


@objectives.register("hold_zeros", HoldZeros)
def build_hold_zeros(config: HoldZeros, setting: Setting) -> HoldZerosObjective:
    model = setting.family.model
    return HoldZerosObjective(
        {path: weight == 0 for path, weight in plain_weights(model).items() if (weight == 0).any()}
    )


def plain_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights (outputs, inputs) of the layers' linears that are not factored, by path from the model's root."""
    found: dict[str, torch.Tensor] = {}
    for place in linears_of(model):
        linear = get_linear(model, *place)
        if not isinstance(linear, FactoredLinear):
            found[layer_path(*place)] = trained_weight(linear)
    return found
