"""The shapes of a record, given to a base: how a checkpoint is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sotto.architectures import Attention, Convolution, FeedForward, Stack, architecture_of
from sotto.layers import FactoredLinear, GatheredLinear, PackedLinear
from sotto.structure import LayerStructure, Structure, check, to_json
from sotto.surgery.attention import keep_heads, narrow_heads, reduce_attention
from sotto.surgery.modules import drop_module, keep_channels, narrow_ffn
from sotto.surgery.places import get_linear, layer_path, record
from sotto.surgery.quantizing import shape_embedding, shape_quantized


def apply_structure(model: Any, structure: Structure) -> None:
    """Give a base of the right number of layers the shapes of `structure`; its weights are then meaningless.

    For loading: the model may be on the meta device. Raises SottoError where the record does not fit.
    """
    check(structure, model.config)
    architecture = architecture_of(model.config)
    for stack in architecture.stacks:
        for index, layer in enumerate(structure.stacks[stack.name].layers):
            shape_layer(model, stack, index, layer)
    if structure.embedding is not None:
        shape_embedding(model, structure.embedding)
    model.config.sotto = to_json(structure)


def shape_layer(model: nn.Module, stack: Stack, index: int, layer: LayerStructure) -> None:
    """The shapes of one layer, from the outside in: modules and widths first, then factors, then reduced attention."""
    narrow_layer(model, stack, index, layer)
    for name, rank in layer.ranks.items():
        old = get_linear(model, stack, index, name)
        put(model, stack, index, name, FactoredLinear(old.in_features, rank, old.out_features, **like(old)))
    for name, kept in layer.inputs.items():
        old = get_linear(model, stack, index, name)
        has_bias = old.bias is not None
        put(model, stack, index, name, GatheredLinear(old.in_features, kept, old.out_features, has_bias, **like(old)))
    record(model, stack, index, replace(layer, reduced=(), nonzeros={}, quantized={}))
    for attention in stack.attentions:
        if attention.name in layer.reduced:
            reduce_attention(model, stack, index, attention)
    for name, count in layer.nonzeros.items():
        old = get_linear(model, stack, index, name)
        has_bias = old.bias is not None
        put(model, stack, index, name, PackedLinear(old.in_features, old.out_features, count, has_bias, **like(old)))
    for name, quantized in layer.quantized.items():
        shape_quantized(model, stack, index, name, quantized)


def narrow_layer(model: nn.Module, stack: Stack, index: int, layer: LayerStructure) -> None:
    """Modules that the layer lacks, and how many heads, channels of a head, neurons and channels the others have."""
    for module in stack.modules:
        if module.name in layer.absent:
            drop_module(model, stack, index, module)
        elif isinstance(module, Attention):
            if module.name in layer.heads:
                keep_heads(model, stack, index, module, range(len(layer.heads[module.name])))
            if module.name in layer.head_dims:
                narrow_heads(model, stack, index, module, layer.head_dims[module.name])
        elif isinstance(module, FeedForward) and module.name in layer.ffn_widths:
            narrow_ffn(model, stack, index, module, range(layer.ffn_widths[module.name]))
        elif isinstance(module, Convolution) and module.name in layer.channels:
            keep_channels(model, stack, index, module, range(layer.channels[module.name]))


def put(model: nn.Module, stack: Stack, index: int, name: str, linear: nn.Module) -> None:
    model.set_submodule(layer_path(stack, index, name), linear)


def like(linear: Any) -> dict[str, Any]:
    return {"device": linear.weight.device, "dtype": linear.weight.dtype}
