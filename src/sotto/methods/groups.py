"""Which weights of a model stand or fall together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sotto.architectures import Attention, FeedForward, Stack
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, trained_weight
from sotto.methods.group_math import Members
from sotto.surgery import get_linear, head_dim_of, layer_path, present

AttentionGroups = Literal["column", "row", "head"]
FeedForwardGroups = Literal["column", "row", "neuron"]


@dataclass(frozen=True)
class Groups:
    """A group set of layer `layer`: `count` blocks along an axis of each of the linears (`linear`, axis)."""

    stack: str
    layer: int
    kind: str
    linears: tuple[tuple[str, int], ...]
    """paths of the linears from the model's root, with the axis of each weight: 0 for rows, 1 for columns"""
    count: int

    def members(self, model: Any) -> Members:
        return [(trained_weight(model.get_submodule(path)), axis) for path, axis in self.linears]


def stacks_named(recognizer: Recognizer, names: Sequence[str]) -> list[Stack]:
    """The stacks of those names that the model has. Raises SottoError for no name, and where it has none of them."""
    if not names:
        raise SottoError("stacks must name encoder, decoder or both")
    found = [stack for stack in recognizer.architecture.stacks if stack.name in names]
    if not found:
        known = ", ".join(stack.name for stack in recognizer.architecture.stacks)
        raise SottoError(f"stacks: the model has no {' or '.join(names)}; it has: {known}")
    return found


def groups_of(
    model: Any, stack: Stack, attention: AttentionGroups, feed_forward: FeedForwardGroups
) -> Iterator[Groups]:
    """The group sets of all linears of all layers of a stack; every linear is in one.

    Column: all that goes out from one input; row: all that goes into one output. Head: what surgery removes with a
    head, its rows of the projections into heads and its columns of the one out of them. Neuron: its row into the inner
    width of a feed-forward network and its column out of it. Embeddings, norms, biases, convolutions and the output
    head are in none. Raises SottoError for a linear that is factored.
    """
    for layer in range(len(model.get_submodule(stack.layers))):
        for module in present(model, stack, layer).modules:
            if isinstance(module, Attention):
                yield from attention_groups(model, stack, layer, module, attention)
            elif isinstance(module, FeedForward):
                yield from feed_forward_groups(model, stack, layer, module, feed_forward)


def attention_groups(
    model: Any, stack: Stack, layer: int, attention: Attention, kind: AttentionGroups
) -> Iterator[Groups]:
    if kind != "head":
        yield from single_groups(model, stack, layer, attention.linears, kind)
        return
    output = get_linear(model, stack, layer, attention.projections[3])
    head_dim = head_dim_of(model, stack, layer, attention)
    cut = [(name, 0) for name in attention.inward] + [(attention.projections[3], 1)]
    yield joined(model, stack, layer, kind, cut, output.in_features // head_dim)


def feed_forward_groups(
    model: Any, stack: Stack, layer: int, feed_forward: FeedForward, kind: FeedForwardGroups
) -> Iterator[Groups]:
    if kind != "neuron":
        yield from single_groups(model, stack, layer, feed_forward.linears, kind)
        return
    width = get_linear(model, stack, layer, feed_forward.up).out_features
    yield joined(model, stack, layer, kind, [(feed_forward.up, 0), (feed_forward.down, 1)], width)


def single_groups(
    model: Any, stack: Stack, layer: int, linears: tuple[str, ...], kind: Literal["column", "row"]
) -> Iterator[Groups]:
    axis = 1 if kind == "column" else 0
    for name in linears:
        count = weight_of(model, stack, layer, name).shape[axis]
        yield joined(model, stack, layer, kind, [(name, axis)], count)


def joined(model: Any, stack: Stack, layer: int, kind: str, cut: list[tuple[str, int]], count: int) -> Groups:
    for name, _ in cut:
        weight_of(model, stack, layer, name)
    return Groups(stack.name, layer, kind, tuple((layer_path(stack, layer, name), axis) for name, axis in cut), count)


def weight_of(model: Any, stack: Stack, layer: int, name: str) -> torch.Tensor:
    linear = get_linear(model, stack, layer, name)
    if isinstance(linear, FactoredLinear):
        raise SottoError(f"{layer_path(stack, layer, name)} is factored; sparsity comes before low rank, or without it")
    return trained_weight(linear)
