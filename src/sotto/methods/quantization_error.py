"""What rounding changes in the layers of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sotto.architectures import Stack
from sotto.methods.quantized_places import QuantizedPlaces
from sotto.quantization_math import from_codes, scale_of, to_codes
from sotto.surgery import parts_of, present


@torch.no_grad()
def errors_of_layers(model: Any, stack: Stack, rounding: QuantizedPlaces) -> torch.Tensor:
    """(layers,): of every layer of a stack, the mean relative error of its linears' weights when they are rounded."""
    found = []
    for index in range(len(model.get_submodule(stack.layers))):
        errors = [
            relative_error(unrounded(part), rounding)
            for linear in present(model, stack, index).linears()
            for part in parts_of(model, stack, index, linear).values()
        ]
        found.append(torch.stack(errors).mean() if errors else torch.zeros((), device=model.device))
    return torch.stack(found)


def unrounded(module: nn.Module) -> torch.Tensor:
    """A weight as it is trained, where training sees it rounded."""
    if parametrize.is_parametrized(module, "weight"):
        original: torch.Tensor = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
        return original
    return module.get_parameter("weight")


def relative_error(weight: torch.Tensor, rounding: QuantizedPlaces) -> torch.Tensor:
    scale = scale_of(weight, rounding.bits, rounding.scales)
    rounded = from_codes(to_codes(weight, scale, rounding.bits), scale)
    size = torch.linalg.vector_norm(weight).clamp(min=1e-12)
    change: torch.Tensor = torch.linalg.vector_norm(rounded - weight)
    return torch.div(change, size)
