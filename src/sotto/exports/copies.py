"""Copies of a model that a runtime can take: in floats, or in the shapes of its base."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sotto.architectures import Attention, Convolution, FeedForward, Stack, StackDimensions
from sotto.auto_classes import classes_of, plain_config
from sotto.checkpoint import Recognizer
from sotto.layers import FactoredLinear
from sotto.structure import LayerStructure
from sotto.surgery import dequantize, get_linear, layer_path, linears_of, merge, restore_inputs, structure_of
from sotto.surgery.alignment_heads import renumber_alignment_heads


def floating_copy(recognizer: Recognizer) -> Any:
    """The model in float32, with plain weights where they were quantized: a runtime has whole numbers of its own."""
    model = copy.deepcopy(recognizer.model).cpu().float().eval()
    dequantize(model)
    return model


def dense_copy(recognizer: Recognizer) -> Any:
    """A model of transformers' own class that computes the same, in the base's shapes but for the number of layers.

    Factors are multiplied out; what was taken away comes back as zeros: inputs, heads, neurons, channels, modules.
    Raises SottoError where the base lacks a bias that factors have.
    """
    model = floating_copy(recognizer)
    for stack, index, linear in list(linears_of(model)):
        if isinstance(get_linear(model, stack, index, linear), FactoredLinear):
            merge(model, stack, index, linear)
        restore_inputs(model, stack, index, linear)
    config = config_without_record(model)
    plain = classes_of(config).plain_model(config).eval()
    fill(plain, model, {place.key: place for place in narrowed(model, recognizer)})
    if model.can_generate():
        plain.generation_config = copy.deepcopy(model.generation_config)
    for index, layer in enumerate(layers_with_fewer_heads(model)):
        if layer is not None:
            renumber_alignment_heads(plain, lambda at, head, layer=layer: (at, layer[head]), index)
    return plain


def config_without_record(model: Any) -> Any:
    """transformers' own config, in the base's sizes: the shapes are told otherwise, or are those."""
    config = plain_config(model.config, {})
    config.sotto = None
    return config


@dataclass(frozen=True)
class Place:
    """Where the rows (first axis) and columns (second) of a narrower tensor are in the base's; None: all of them."""

    key: str
    rows: Sequence[int] | None = None
    columns: Sequence[int] | None = None


@torch.no_grad()
def fill(plain: nn.Module, model: nn.Module, places: dict[str, Place]) -> None:
    """Give `plain` the tensors of `model`, zeros around narrower ones and in place of those that are gone."""
    own = model.state_dict()
    for key, tensor in plain.state_dict().items():
        if key not in own:
            tensor.zero_()
        elif tensor.shape == own[key].shape:
            tensor.copy_(own[key])
        else:
            place, first = places[key], own[key]
            tensor.fill_(1.0 if key.endswith("running_var") else 0.0)
            rows = torch.arange(len(tensor)) if place.rows is None else torch.as_tensor(place.rows)
            if place.columns is None:
                tensor[rows] = first
            else:
                tensor[rows[:, None], torch.as_tensor(place.columns)] = first


def narrowed(model: Any, recognizer: Recognizer) -> Iterator[Place]:
    """Every tensor that a narrower module has."""
    for stack in recognizer.architecture.stacks:
        dimensions = stack.dimensions(model.config)
        for index, layer in enumerate(structure_of(model).stacks[stack.name].layers):
            for module in stack.modules:
                if module.name in layer.absent:
                    continue
                if isinstance(module, Attention):
                    yield from of_attention(stack, index, module, layer, dimensions)
                elif isinstance(module, FeedForward) and module.name in layer.ffn_widths:
                    neurons = range(layer.ffn_widths[module.name])
                    yield from outputs_and_inputs(stack, index, (module.up,), module.down, neurons)
                elif isinstance(module, Convolution) and module.name in layer.channels:
                    yield from of_convolution(stack, index, module, layer.channels[module.name], dimensions.width)


def of_attention(
    stack: Stack, index: int, module: Attention, layer: LayerStructure, dimensions: StackDimensions
) -> Iterator[Place]:
    """The kept channels of a head stand first."""
    heads = layer.heads.get(module.name, range(dimensions.heads))
    kept = range(layer.head_dims.get(module.name, dimensions.head_dim))
    channels = [head * dimensions.head_dim + channel for head in heads for channel in kept]
    yield from outputs_and_inputs(stack, index, module.inward, module.projections[3], channels)
    for name in module.head_biases:
        yield Place(layer_path(stack, index, f"{module.name}.{name}"), rows=heads)


def outputs_and_inputs(
    stack: Stack, index: int, inward: Sequence[str], outward: str, kept: Sequence[int]
) -> Iterator[Place]:
    """`kept` are the outputs of the linears `inward`, and the inputs of the linear `outward`."""
    for linear in inward:
        for part in ("weight", "bias"):
            yield Place(layer_path(stack, index, f"{linear}.{part}"), rows=kept)
    yield Place(layer_path(stack, index, f"{outward}.weight"), columns=kept)


def of_convolution(stack: Stack, index: int, module: Convolution, count: int, width: int) -> Iterator[Place]:
    """The kept channels stand first; GLU multiplies the first half of what goes in by the second."""
    inward, depthwise, norm, outward = (layer_path(stack, index, f"{module.name}.{part}") for part in module.parts)
    kept = range(count)
    for part in ("weight", "bias"):
        yield Place(f"{inward}.{part}", rows=[*kept, *(width + channel for channel in kept)])
    for name in (depthwise, norm):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield Place(f"{name}.{part}", rows=kept)
    yield Place(f"{outward}.weight", columns=kept)


def layers_with_fewer_heads(model: Any) -> list[Sequence[int] | None]:
    """For every layer of a decoder the base's heads that its attention to the audio kept, where it lost some."""
    stacks = structure_of(model).stacks
    layers: Sequence[LayerStructure] = stacks["decoder"].layers if "decoder" in stacks else ()
    return [layer.heads.get("encoder_attn") for layer in layers]
