"""Where the parts of a model are, and the record of how it differs from its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.errors import SottoError
from sotto.layers import FactoredLinear
from sotto.quantized_layers import QuantizedLinear
from sotto.structure import LayerStructure, Structure, dense_structure, from_json, to_json

Linear = nn.Linear | FactoredLinear


def structure_of(model: Any) -> Structure:
    """The record of `model`; of a model that Sotto never touched, the record of a base."""
    record = getattr(model.config, "sotto", None)
    return from_json(record) if record else dense_structure(architecture_of(model.config), model.config)


def record(model: Any, stack: Stack, index: int, layer: LayerStructure) -> None:
    model.config.sotto = to_json(structure_of(model).with_layer(stack.name, index, layer))


def layer_path(stack: Stack, index: int, name: str = "") -> str:
    """Dotted path of a module of layer `index`."""
    return f"{stack.layers}.{index}.{name}".rstrip(".")


def get_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> Linear:
    """A linear with floating weights, which can be changed. Raises SottoError where it is quantized."""
    module = get_any_linear(model, stack, index, linear)
    if any(isinstance(part, QuantizedLinear) for part in module.modules()):
        raise SottoError(f"{layer_path(stack, index, linear)} is quantized; let quantization be the last step")
    assert isinstance(module, nn.Linear | FactoredLinear)
    return module


def get_any_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> Linear | QuantizedLinear:
    """A linear of any form, to be looked at."""
    module = model.get_submodule(layer_path(stack, index, linear))
    assert isinstance(module, nn.Linear | FactoredLinear | QuantizedLinear)
    return module


def parts_of(model: nn.Module, stack: Stack, index: int, linear: str) -> dict[str, nn.Module]:
    """What a linear is made of, by path from the model's root: its two factors where it has some, else itself."""
    path = layer_path(stack, index, linear)
    module = get_any_linear(model, stack, index, linear)
    if isinstance(module, FactoredLinear):
        return {f"{path}.first": module.first, f"{path}.second": module.second}
    return {path: module}


def layers_of(model: Any) -> Iterator[tuple[Stack, int]]:
    """Every layer: its stack with the modules that the layer has, and its index."""
    structure = structure_of(model)
    for stack in architecture_of(model.config).stacks:
        for index, layer in enumerate(structure.stacks[stack.name].layers):
            yield without(stack, layer.absent), index


def present(model: Any, stack: Stack, index: int) -> Stack:
    """The stack with those modules only that layer `index` has."""
    return without(stack, structure_of(model).layer(stack.name, index).absent)


def without(stack: Stack, absent: Sequence[str]) -> Stack:
    return replace(stack, modules=tuple(module for module in stack.modules if module.name not in absent))


def linears_of(model: Any) -> Iterator[tuple[Stack, int, str]]:
    """Stack, layer and path within the layer of all linears of all layers."""
    for stack, index in layers_of(model):
        for name in stack.linears():
            yield stack, index, name
