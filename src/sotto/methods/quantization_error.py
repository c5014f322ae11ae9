"""What rounding changes in the layers of a model."""

from __future__ import annotations

from typing import Any

import torch

from sotto.architectures import Stack
from sotto.layers import FactoredLinear, trained_weight
from sotto.methods.quantized_places import QuantizedPlaces
from sotto.quantization_math import rounding_error
from sotto.surgery import layers_of, parts_of


@torch.no_grad()
def errors_of_layers(model: Any, stack: Stack, rounding: QuantizedPlaces) -> torch.Tensor:
    """(layers,): of every layer of a stack, the mean relative error of its linears' weights when they are rounded; 0
    where they are not."""
    found = []
    for layer, index in layers_of(model):
        if layer.name != stack.name:
            continue
        errors = [
            rounding_error(unrounded(part), rounding.bits, rounding.scales)
            for linear in layer.linears()
            if rounding.takes(stack.name, index)
            for part in parts_of(model, stack, index, linear).values()
        ]
        found.append(torch.stack(errors).mean() if errors else torch.zeros((), device=model.device))
    return torch.stack(found)


def unrounded(module: Any) -> torch.Tensor:
    """A weight as it is trained, where training sees it rounded; of two factors, their product."""
    if isinstance(module, FactoredLinear):
        return unrounded(module.second) @ unrounded(module.first)
    return trained_weight(module)
