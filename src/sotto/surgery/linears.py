"""Other forms of a linear: factored, with some of its inputs, packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sotto.architectures import Attention, Stack
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, GatheredLinear, PackedLinear, pack
from sotto.surgery.attention import expand_attention
from sotto.surgery.narrowing import check_positions
from sotto.surgery.places import get_linear, layer_path, record, structure_of


def factor(
    model: nn.Module,
    stack: Stack,
    index: int,
    linear: str,
    first: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor,
) -> None:
    """Replace a linear of layer `index` by two factors: `first` (rank, inputs), `second` (outputs, rank), `bias`."""
    old = get_linear(model, stack, index, linear)
    if isinstance(old, GatheredLinear):
        raise ValueError(
            f"{layer_path(stack, index, linear)} hears some inputs only; restore them before it is factored"
        )
    rank, inputs = first.shape
    if (inputs, second.shape[0]) != (old.in_features, old.out_features) or second.shape[1] != rank:
        raise ValueError(f"factors {tuple(first.shape)} and {tuple(second.shape)} do not fit {linear}: {old}")
    most = min(old.in_features, old.out_features)
    if not 1 <= rank <= most:
        raise SottoError(f"{layer_path(stack, index, linear)}: rank {rank} is not between 1 and {most}, its dimension")
    weight = old.weight
    new = FactoredLinear(inputs, rank, second.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.first.weight.copy_(first)
        new.second.weight.copy_(second)
        new.second.bias.copy_(bias)
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, ranks={**layer.ranks, linear: rank}))


def merge(model: Any, stack: Stack, index: int, linear: str) -> None:
    """Replace the two factors of a linear by their product, a plain linear that computes the same.

    The bias goes where the base has none and softmax does not see it: that of a key, or of a position, adds the same
    to all scores of a query. Raises SottoError where the base has none and it is heard.
    """
    old = get_linear(model, stack, index, linear)
    assert isinstance(old, FactoredLinear)
    has_bias = stack.has_bias(linear, model.config)
    if not has_bias and not any(linear in unheard_biases(attention) for attention in stack.attentions):
        raise SottoError(f"{layer_path(stack, index, linear)}: the base has no bias for that of the factors; keep them")
    for attention in stack.attentions:
        if linear in attention.inward:  # reduced attention needs no factors in its output
            expand_attention(model, stack, index, attention)
    weight = old.weight
    new = nn.Linear(old.in_features, old.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weight)
        if has_bias:
            new.bias.copy_(old.bias)
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    ranks = {name: rank for name, rank in layer.ranks.items() if name != linear}
    record(model, stack, index, replace(layer, ranks=ranks))


def unheard_biases(attention: Attention) -> tuple[str, ...]:
    """The projections whose bias adds the same to all scores of a query, which softmax does not see."""
    return (attention.projections[1], *attention.inward[3:])


def gather_inputs(model: nn.Module, stack: Stack, index: int, linear: str, columns: Sequence[int]) -> None:
    """Have a linear of the residual stream hear the channels `columns` only; the others' weights are dropped."""
    old = get_linear(model, stack, index, linear)
    if linear not in stack.linears_of_residual() or type(old) is not nn.Linear:
        raise ValueError(f"{layer_path(stack, index, linear)}: not a plain linear of the residual stream")
    check_positions(columns, old.in_features, f"inputs of {layer_path(stack, index, linear)}")
    weight = old.weight
    new = GatheredLinear(old.in_features, len(columns), old.out_features, old.bias is not None, device="meta")
    new.columns = torch.as_tensor(list(columns), device=weight.device)
    new.weight = nn.Parameter(weight.detach()[:, new.columns], weight.requires_grad)
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, inputs={**layer.inputs, linear: len(columns)}))


def restore_inputs(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """The inverse of `gather_inputs`, with weights of zero for the channels that were dropped; else nothing."""
    old = get_linear(model, stack, index, linear)
    if not isinstance(old, GatheredLinear):
        return
    new = nn.Linear(old.inputs, old.out_features, old.bias is not None, device="meta")
    weight = old.weight.detach().new_zeros(old.out_features, old.inputs)
    new.weight = nn.Parameter(weight.index_copy(1, old.columns, old.weight.detach()), old.weight.requires_grad)
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    inputs = {name: count for name, count in layer.inputs.items() if name != linear}
    record(model, stack, index, replace(layer, inputs=inputs))


def pack_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """Replace a plain linear by one whose zeros take a bit each."""
    old = get_linear(model, stack, index, linear)
    assert type(old) is nn.Linear
    values, pattern = pack(old.weight.detach())
    new = PackedLinear(old.in_features, old.out_features, len(values), old.bias is not None, device="meta")
    new.values = nn.Parameter(values, old.weight.requires_grad)
    new.pattern = pattern
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, nonzeros={**layer.nonzeros, linear: len(values)}))


def unpack_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """The inverse of `pack_linear`."""
    old = model.get_submodule(layer_path(stack, index, linear))
    assert isinstance(old, PackedLinear)
    new = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta")
    new.weight = nn.Parameter(old.weight.detach(), old.values.requires_grad)
    new.bias = old.bias  # type: ignore[assignment]
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    nonzeros = {name: count for name, count in layer.nonzeros.items() if name != linear}
    record(model, stack, index, replace(layer, nonzeros=nonzeros))
