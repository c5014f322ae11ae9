"""Removes heads and neurons that do nothing, or the same for every input: the outputs stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from sotto.architectures import Attention, FeedForward, Stack, architecture_of
from sotto.architectures.table import get_setting
from sotto.layers import FactoredLinear, ReducedAttention
from sotto.surgery import (
    alignment_heads_of,
    gather_inputs,
    get_linear,
    head_dim_of,
    keep_heads,
    layer_path,
    layers_of,
    narrow_ffn,
    restore_inputs,
)


@dataclass(frozen=True)
class Removed:
    """How many were taken out."""

    heads: int = 0
    neurons: int = 0
    alignment_heads: int = 0

    def __add__(self, other: Removed) -> Removed:
        alignment_heads = self.alignment_heads + other.alignment_heads
        return Removed(self.heads + other.heads, self.neurons + other.neurons, alignment_heads)

    def __str__(self) -> str:
        lost = f", {self.alignment_heads} of them heads that tell the times of words" if self.alignment_heads else ""
        return f"{self.heads} heads and {self.neurons} neurons taken out{lost}"


@torch.no_grad()
def remove_idle(model: Any) -> Removed:
    """Remove the heads and neurons of all layers whose weights in or out are all zero.

    With no weights in, a neuron gives the activation of its bias, and a head the bias of its values, whatever is heard:
    that goes into the bias of the linear after it. The last head or neuron of a module stays.
    """
    removed, aligned = Removed(), alignment_heads_of(model) or ()
    for stack, layer in layers_of(model):
        for attention in stack.attentions:
            removed += Removed(heads=remove_idle_heads(model, stack, layer, attention))
        for feed_forward in stack.feed_forwards:
            removed += Removed(neurons=remove_idle_neurons(model, stack, layer, feed_forward))
    return removed + Removed(alignment_heads=len(aligned) - len(alignment_heads_of(model) or ()))


def remove_idle_heads(model: Any, stack: Stack, layer: int, attention: Attention) -> int:
    value, output = (get_linear(model, stack, layer, attention.projections[part]) for part in (2, 3))
    reduced = isinstance(model.get_submodule(layer_path(stack, layer, attention.name)), ReducedAttention)
    if attention.head_count is None or reduced or not is_plain(value, output):
        return 0
    head_dim = head_dim_of(model, stack, layer, attention)
    silent = (value.weight == 0).all(1).view(-1, head_dim).all(1)
    idle = silent | (output.weight == 0).all(0).view(-1, head_dim).all(1)
    kept = at_least_one(~idle)
    if value.bias is not None:
        constant = torch.where((silent & ~kept).repeat_interleave(head_dim), value.bias, 0.0)
        if not add_to_bias(output, output.weight @ constant):
            return 0
    if kept.all():
        return 0
    keep_heads(model, stack, layer, attention, kept.nonzero().flatten().tolist())
    return int((~kept).sum())


def remove_idle_neurons(model: Any, stack: Stack, layer: int, feed_forward: FeedForward) -> int:
    up, down = (get_linear(model, stack, layer, name) for name in feed_forward.linears)
    if not is_plain(up, down):
        return 0
    silent = (up.weight == 0).all(1)
    kept = at_least_one(~(silent | (down.weight == 0).all(0)))
    if up.bias is not None:
        activation = ACT2FN[get_setting(model.config, architecture_of(model.config).activation)]
        constant = torch.where(silent & ~kept, activation(up.bias), 0.0)
        if not add_to_bias(down, down.weight @ constant):
            return 0
    if kept.all():
        return 0
    narrow_ffn(model, stack, layer, feed_forward, kept.nonzero().flatten().tolist())
    return int((~kept).sum())


@torch.no_grad()
def gather_unheard(model: Any, pays: Callable[[Stack, str, int, int, int], bool]) -> int:
    """Have linears of the residual stream hear only what they have weights for; how many linears do.

    `pays(stack, linear, inputs, kept, outputs)` says where that is faster.
    """
    count = 0
    for stack, layer in layers_of(model):
        for name in stack.linears_of_residual():
            restore_inputs(model, stack, layer, name)  # to look at all of them anew
            linear = get_linear(model, stack, layer, name)
            if isinstance(linear, FactoredLinear):
                continue
            kept = at_least_one((linear.weight != 0).any(0)).nonzero().flatten().tolist()
            inputs = linear.in_features
            if len(kept) < inputs and pays(stack, name, inputs, len(kept), linear.out_features):
                gather_inputs(model, stack, layer, name, kept)
                count += 1
    return count


def is_plain(*linears: nn.Module) -> bool:
    return not any(isinstance(linear, FactoredLinear) for linear in linears)


def at_least_one(kept: torch.Tensor) -> torch.Tensor:
    """The same, but with the first kept where none is: transformers has no module without heads or neurons."""
    if not kept.any():
        kept = kept.clone()
        kept[0] = True
    return kept


def add_to_bias(linear: Any, constant: torch.Tensor) -> bool:
    """Whether the constant has found a place."""
    if linear.bias is None:
        return not constant.any()
    linear.bias += constant
    return True
