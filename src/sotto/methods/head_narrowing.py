"""The attentions of a recogniser whose heads can be narrower: what is measured of them, and how they are narrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sotto.architectures import Attention, Stack
from sotto.calibration import calibrate
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.head_reduction_math import HeadBases, head_bases
from sotto.layers import FactoredLinear
from sotto.surgery import expand_attention, get_linear, head_dim_of, layers_of, narrow_heads, restore_inputs

AttentionPlace = tuple[Stack, int, Attention]
"""Where an attention is: stack, layer, and which of the layer's."""


def attentions_of(recognizer: Recognizer, stacks: Sequence[str]) -> list[AttentionPlace]:
    """Raises SottoError where there is no such stack, or its heads cannot be narrower."""
    for name in stacks:
        if any(attention.head_dim is None for attention in recognizer.architecture.stack(name).attentions):
            raise SottoError(
                f"head_reduction: attention of a {recognizer.architecture.name} has relative or rotary positions, "
                "which narrower heads could not hear; use low_rank"
            )
    found = [(stack, index) for stack, index in layers_of(recognizer.model) if stack.name in stacks]
    return [(stack, index, attention) for stack, index in found for attention in stack.attentions]


def measured_bases(
    recognizer: Recognizer, places: Sequence[AttentionPlace], clips: ClipSource, stacks: Sequence[str]
) -> dict[AttentionPlace, HeadBases]:
    """One pass over the clips. Attention in the reduced dimension and gathered inputs are undone before."""
    for stack, index, attention in places:
        expand_attention(recognizer.model, stack, index, attention)
        for linear in attention.inward:
            restore_inputs(recognizer.model, stack, index, linear)  # projections of one input share what is measured
    linears = {(stack.name, index, linear) for stack, index, attention in places for linear in attention.inward}
    calibration = calibrate(recognizer, clips, stacks, linears)
    found = {}
    for stack, index, attention in places:
        query, key, value = (calibration.outputs(stack, index, linear) for linear in attention.inward)
        output = get_linear(recognizer.model, stack, index, attention.projections[3])
        heads = output.in_features // head_dim_of(recognizer.model, stack, index, attention)
        found[stack, index, attention] = head_bases(query, key, value, output.weight.detach().double(), heads)
    return found


@torch.no_grad()
def narrow(
    recognizer: Recognizer, dimensions: Mapping[AttentionPlace, int], bases: Mapping[AttentionPlace, HeadBases]
) -> None:
    """Keep of the heads of each attention the channels that carry most, as many as `dimensions` says."""
    for (stack, index, attention), channels in dimensions.items():
        basis = bases[stack, index, attention]
        query, key, value, output = (get_linear(recognizer.model, stack, index, name) for name in attention.projections)
        lost = basis.lost_mean(channels).flatten()
        output.bias.add_(output.weight.double() @ lost)
        change_outputs(query, basis.scores.left)
        change_outputs(key, basis.scores.right)
        change_outputs(value, basis.outputs.left)
        change_inputs(output, basis.outputs.right)
        narrow_heads(recognizer.model, stack, index, attention, channels)


def change_outputs(linear: Any, change: torch.Tensor) -> None:
    """Change the channels (heads, channels, new channels) that a linear gives, in place."""
    last = linear.second if isinstance(linear, FactoredLinear) else linear
    for parameter in last.parameters():
        by_head = parameter.double().view(*change.shape[:2], -1)
        parameter.copy_((change.mT @ by_head).reshape(parameter.shape))


def change_inputs(linear: Any, change: torch.Tensor) -> None:
    """The same for the channels that a linear hears."""
    first = linear.first if isinstance(linear, FactoredLinear) else linear
    by_head = first.weight.T.double().view(*change.shape[:2], -1)
    first.weight.copy_((change.mT @ by_head).flatten(0, 1).T)
