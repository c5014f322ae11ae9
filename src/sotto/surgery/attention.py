"""Attention with fewer or narrower heads, or computed in the reduced dimension."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sotto.architectures import Attention, Stack, get_setting, set_setting
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, ReducedAttention
from sotto.surgery.alignment_heads import renumber_alignment_heads
from sotto.surgery.narrowing import check_positions, narrow_inputs, narrow_outputs
from sotto.surgery.places import get_linear, layer_path, record, structure_of


def reduce_attention(model: nn.Module, stack: Stack, index: int, attention: Attention) -> None:
    """Compute an attention whose query, key and value projections are factored in their reduced dimension."""
    path = layer_path(stack, index, attention.name)
    old: Any = model.get_submodule(path)
    if isinstance(old, ReducedAttention):
        return
    query, key, value, output = (get_linear(model, stack, index, name) for name in attention.projections)
    if not attention.reducible or not all(isinstance(linear, FactoredLinear) for linear in (query, key, value)):
        raise SottoError(
            f"{path}: only self-attention over a whole window, with its projections factored, can be reduced"
        )
    assert isinstance(query, FactoredLinear)
    assert isinstance(key, FactoredLinear)
    assert isinstance(value, FactoredLinear)
    new = ReducedAttention(query, key, value, output, old.num_heads, old.scaling, old.dropout)
    new.train(old.training)
    model.set_submodule(path, new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, reduced=(*layer.reduced, attention.name)))


def expand_attention(model: Any, stack: Stack, index: int, attention: Attention) -> None:
    """Undo `reduce_attention`: the same projections in the attention that the base has."""
    path = layer_path(stack, index, attention.name)
    old = model.get_submodule(path)
    if not isinstance(old, ReducedAttention):
        return
    dimensions = stack.dimensions(model.config)
    with torch.device("meta"):
        new = attention.module_type(dimensions.width, dimensions.heads, old.dropout, config=model.config)
    for name in (attention.query, attention.key, attention.value, attention.output):
        setattr(new, name, getattr(old, name))
    new.num_heads, new.head_dim = old.num_heads, old.head_dim
    new.train(old.training)
    model.set_submodule(path, new)
    layer = structure_of(model).layer(stack.name, index)
    kept = tuple(name for name in layer.reduced if name != attention.name)
    record(model, stack, index, replace(layer, reduced=kept))


def keep_heads(model: Any, stack: Stack, index: int, attention: Attention, heads: Sequence[int]) -> None:
    """Keep some heads of an attention, by their positions as the model now stands, and drop the others.

    Raises SottoError where transformers cannot compute the attention with fewer heads than its config says.
    """
    path = layer_path(stack, index, attention.name)
    if attention.head_count is None:
        raise SottoError(f"{path}: attention with rotary positions cannot lose heads; narrow its feed-forward networks")
    module = model.get_submodule(path)
    head_dim = head_dim_of(model, stack, index, attention)
    output = get_linear(model, stack, index, attention.projections[3])
    check_positions(heads, output.in_features // head_dim, f"heads of {path}")
    channels = [head * head_dim + channel for head in heads for channel in range(head_dim)]
    for projection in attention.inward:
        narrow_outputs(get_linear(model, stack, index, projection), channels)
    narrow_inputs(output, channels)
    for name in attention.head_biases:
        bias = getattr(module, name)
        kept_rows = torch.as_tensor(list(heads), device=bias.device)
        setattr(module, name, nn.Parameter(bias.detach()[kept_rows], bias.requires_grad))
    set_head_count(module, attention.head_count, len(heads))
    layer = structure_of(model).layer(stack.name, index)
    known = layer.heads.get(attention.name, range(stack.dimensions(model.config).heads))
    kept = tuple(known[head] for head in heads)
    record(model, stack, index, replace(layer, heads={**layer.heads, attention.name: kept}))
    if attention.name == "encoder_attn":
        renumber_alignment_heads(model, lambda at, head: (at, heads.index(head)) if head in heads else None, index)


def narrow_heads(model: nn.Module, stack: Stack, index: int, attention: Attention, head_dim: int) -> None:
    """Keep the first `head_dim` channels of every head of an attention, and drop the others.

    Scores are scaled as before, so that channels of zeros are no loss. Raises SottoError where there are fewer
    channels, and where the attention's positions need them all.
    """
    path = layer_path(stack, index, attention.name)
    if attention.head_dim is None:
        raise SottoError(f"{path}: attention with relative or rotary positions cannot have narrower heads")
    module = model.get_submodule(path)
    before = head_dim_of(model, stack, index, attention)
    if not 1 <= head_dim <= before:
        raise SottoError(f"{path}: its heads have {before} channels; {head_dim} cannot be kept")
    output = get_linear(model, stack, index, attention.projections[3])
    kept = [start + channel for start in range(0, output.in_features, before) for channel in range(head_dim)]
    for projection in attention.inward:
        narrow_outputs(get_linear(model, stack, index, projection), kept)
    narrow_inputs(output, kept)
    set_setting(module, attention.head_dim, head_dim)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, head_dims={**layer.head_dims, attention.name: head_dim}))


def head_dim_of(model: Any, stack: Stack, index: int, attention: Attention) -> int:
    """Channels of each head of an attention as it now stands."""
    if attention.head_dim is None:
        return stack.dimensions(model.config).head_dim
    return int(get_setting(model.get_submodule(layer_path(stack, index, attention.name)), attention.head_dim))


def set_head_count(module: Any, name: str, count: int) -> None:
    """Tell an attention module its number of heads; one that reads it from the config gets a config of its own."""
    if name.startswith("config."):
        module.config = copy.deepcopy(module.config)
    set_setting(module, name, count)
