"""Which of Sotto's shapes CTranslate2 can compute, and a copy of a model that has those and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sotto.architectures import Attention, Stack, set_setting
from sotto.checkpoint import Recognizer
from sotto.exports.copies import dense_copy
from sotto.structure import LayerStructure, Structure
from sotto.surgery import keep_heads, narrow_ffn, narrow_heads


def narrow_copy(recognizer: Recognizer) -> Any:
    """A model of transformers' own class that computes the same, in the smallest shapes that CTranslate2 takes.

    Feed-forward networks and heads may be as narrow as they are, otherwise in every layer; a network that is absent has
    one neuron, of zeros. All attentions of a stack have the most heads that one of them has left: the head count is the
    stack's. In the config it is that number, which is no divisor of the width any more. All else is as in `dense_copy`.
    """
    plain, config = dense_copy(recognizer), recognizer.model.config
    for stack in recognizer.architecture.stacks:
        base, layers = stack.dimensions(config), recognizer.structure.stacks[stack.name].layers
        count = heads_computed(stack, layers, base.heads)
        for index, layer in enumerate(layers):
            for attention in stack.attentions:
                heads = with_others(heads_left(layer, attention, base.heads), count, base.heads)
                keep_heads(plain, stack, index, attention, heads)
                narrow_heads(plain, stack, index, attention, layer.head_dims.get(attention.name, base.head_dim))
            for network in stack.feed_forwards:
                width = 1 if network.name in layer.absent else layer.ffn_widths.get(network.name, base.ffn)
                narrow_ffn(plain, stack, index, network, range(width))
        set_setting(plain.config, stack.heads, count)
    return plain


def heads_left(layer: LayerStructure, attention: Attention, heads: int) -> Sequence[int]:
    """The base's heads that an attention still has."""
    return () if attention.name in layer.absent else layer.heads.get(attention.name, range(heads))


def heads_computed(stack: Stack, layers: Sequence[LayerStructure], heads: int) -> int:
    """The number of heads that all attentions of a stack are computed with."""
    return max(1, *(len(heads_left(layer, attention, heads)) for layer in layers for attention in stack.attentions))


def with_others(left: Sequence[int], count: int, heads: int) -> list[int]:
    """`count` of the base's heads: those that are `left`, and others, which are zeros."""
    gone = [head for head in range(heads) if head not in left]
    return sorted([*left, *gone[: count - len(left)]])


def notes(structure: Structure, config: Any, stacks: Sequence[Stack]) -> Iterator[str]:
    """What those of Sotto's changes are worth in CTranslate2 that it gains from, in part or wholly, a line each."""
    for stack in stacks:
        record = structure.stacks[stack.name]
        if len(record.layers) < record.base_layers:
            yield f"{stack.name}: {len(record.layers)} of {record.base_layers} layers: smaller and faster"
        yield from notes_on_attentions(stack, record.layers, stack.dimensions(config).heads)
        yield from notes_on_networks(stack, record.layers)


def notes_on_attentions(stack: Stack, layers: Sequence[LayerStructure], heads: int) -> Iterator[str]:
    count = heads_computed(stack, layers, heads)
    left = [len(heads_left(layer, attention, heads)) for layer in layers for attention in stack.attentions]
    if count < heads:
        yield f"{stack.name}: attention has {count} of {heads} heads: smaller and faster"
    if min(left) < count:
        fewer = sum(each < count for each in left)
        yield f"{stack.name}: attentions with fewer than {count} heads, and zeros for the rest: {fewer}; nothing gained"
    narrower = sum(len(layer.head_dims) for layer in layers)
    if narrower:
        yield f"{stack.name}: attentions with narrower heads: {narrower}; smaller and faster"


def notes_on_networks(stack: Stack, layers: Sequence[LayerStructure]) -> Iterator[str]:
    names = [network.name for network in stack.feed_forwards]
    narrower = sum(name in layer.ffn_widths or name in layer.absent for layer in layers for name in names)
    if narrower:
        yield f"{stack.name}: narrower feed-forward networks: {narrower}; smaller and faster"
