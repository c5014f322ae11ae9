"""A recogniser whose first layers are narrower in every way that they can be, and whose second reduces attention."""

from typing import Any

import torch

from sotto.checkpoint import Recognizer
from sotto.surgery import (
    drop_module,
    factor,
    gather_inputs,
    get_linear,
    head_dim_of,
    keep_channels,
    keep_heads,
    layers_of,
    narrow_ffn,
    narrow_heads,
    reduce_attention,
)


def mixed(found: Recognizer) -> Recognizer:
    """Changed in place: heads and their channels, neurons, channels, factors, inputs, one attention less of two."""
    for stack, index in list(layers_of(found.model)):
        attention = stack.attentions[0]
        if index == 1 and attention.reducible:
            for projection in attention.projections[:3]:
                factor_at_random(found, stack, index, projection)
            reduce_attention(found.model, stack, index, attention)
        if index:
            continue
        if not found.architecture.name.endswith("rotary"):  # whose attention keeps its heads
            keep_heads(found.model, stack, index, attention, [1])
        if attention.head_dim is not None:
            now = head_dim_of(found.model, stack, index, attention)
            narrow_heads(found.model, stack, index, attention, max(3, now - 5))
        narrow_ffn(found.model, stack, index, stack.feed_forwards[0], [0, 2, 3, 7, 9])
        for convolution in stack.convolutions:
            keep_channels(found.model, stack, index, convolution, [0, 1, 5, 6, 7])
        factor_at_random(found, stack, index, attention.projections[0])
        gather_inputs(found.model, stack, index, attention.projections[1], list(range(3, 11)))
        if len(stack.attentions) > 1:
            drop_module(found.model, stack, index, stack.attentions[1])
    return found


def factor_at_random(found: Recognizer, stack: Any, index: int, linear: str) -> None:
    old = get_linear(found.model, stack, index, linear)
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, old.in_features), (old.out_features, 3), (old.out_features,))
    factor(found.model, stack, index, linear, *(0.3 * torch.randn(shape, generator=generator) for shape in shapes))
