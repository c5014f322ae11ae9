"""Modules of a layer with fewer neurons or channels, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sotto.architectures import Attention, Convolution, FeedForward, LayerModule, Stack
from sotto.layers import AbsentAttention, AbsentCachedAttention, AbsentModule
from sotto.surgery.alignment_heads import renumber_alignment_heads
from sotto.surgery.narrowing import check_positions, narrow_inputs, narrow_outputs
from sotto.surgery.places import get_linear, layer_path, record, structure_of


def narrow_ffn(model: nn.Module, stack: Stack, index: int, ffn: FeedForward, neurons: Sequence[int]) -> None:
    """Keep some neurons of a feed-forward network, by their positions as the model now stands."""
    up, down = (get_linear(model, stack, index, name) for name in (ffn.up, ffn.down))
    check_positions(neurons, up.out_features, f"neurons of {layer_path(stack, index, ffn.name)}")
    narrow_outputs(up, neurons)
    narrow_inputs(down, neurons)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, ffn_widths={**layer.ffn_widths, ffn.name: len(neurons)}))


def keep_channels(
    model: nn.Module, stack: Stack, index: int, convolution: Convolution, channels: Sequence[int]
) -> None:
    """Keep some channels of a convolution module, by their positions as the model now stands."""
    path = layer_path(stack, index, convolution.name)
    module: Any = model.get_submodule(path)
    inward, depthwise, norm, outward = (getattr(module, name) for name in convolution.parts)
    count = depthwise.out_channels
    check_positions(channels, count, f"channels of {path}")
    kept = torch.as_tensor(list(channels), device=depthwise.weight.device)
    keep_rows(inward, torch.cat([kept, kept + count]), "out_channels")  # GLU multiplies the first half by the second
    keep_rows(depthwise, kept, "out_channels")
    depthwise.in_channels = depthwise.groups = len(kept)
    keep_rows(norm, kept, "num_features")
    outward.weight = nn.Parameter(outward.weight.detach()[:, kept], outward.weight.requires_grad)
    outward.in_channels = len(kept)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, channels={**layer.channels, convolution.name: len(kept)}))


def keep_rows(module: nn.Module, rows: torch.Tensor, count: str) -> None:
    """Keep some entries along the first axis of all parameters and buffers; `count` is the name of their number."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach()[rows], parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(module, name, buffer[rows])
    setattr(module, count, len(rows))


def drop_module(model: Any, stack: Stack, index: int, module: LayerModule) -> None:
    """Take a module out of layer `index`, with the norm before it: the residual stream passes by unchanged.

    What belonged to the module goes out of the record too, but for its absence. One that is absent stays so.
    """
    for path, absent in stand_ins(model, stack, index, module):
        model.set_submodule(layer_path(stack, index, path), absent)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, layer.without(module))
    if module.name == "encoder_attn":
        renumber_alignment_heads(model, lambda at, head: None, index)


def stand_ins(model: Any, stack: Stack, index: int, module: LayerModule) -> list[tuple[str, nn.Module]]:
    """What takes the place of a module's parts (paths within the layer)."""
    if isinstance(module, Attention):
        absent: list[tuple[str, nn.Module]] = [
            (module.name, AbsentCachedAttention(index) if module.cached else AbsentAttention())
        ]
    elif isinstance(module, FeedForward):
        absent = [(linear, AbsentModule()) for linear in module.linears]
    else:
        absent = [(module.name, AbsentModule())]
    if module.layer_norm is not None:
        absent.append((module.layer_norm, nn.Identity()))
    return absent
