"""What the attentions of an encoder cost by their head dimension: in parameters, FLOPs, or seconds on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sotto.checkpoint import Recognizer
from sotto.methods.budget_costs import EncoderCosts, PartCost, paying
from sotto.methods.head_narrowing import AttentionPlace
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.timed_attentions import attention_times
from sotto.metrics.cost import count_flops, count_parameters
from sotto.surgery import head_dim_of, layer_path, parts_of


def head_costs(
    recognizer: Recognizer, config: HeadReduction, choices: Mapping[AttentionPlace, Iterable[int]]
) -> EncoderCosts[AttentionPlace]:
    """Costs of what the budget is stated in: of what changes with the head dimension, or of all of the attention."""
    model = recognizer.model
    if config.parameters is not None:
        parts = {
            place: in_proportion(recognizer, place, own, sum(weights_by_channel(recognizer, place).values()))
            for place, own in choices.items()
        }
        return EncoderCosts(float(count_parameters(model).encoder), parts)
    if config.flops is not None:
        flops = count_flops(model, recognizer.family.window_frames, tokens=1)
        parts = {
            place: in_proportion(recognizer, place, own, flops_of(recognizer, place, flops.by_module))
            for place, own in choices.items()
        }
        return EncoderCosts(float(flops.encoder), parts)
    total, times = attention_times(recognizer, choices, config.runtime or "torch")
    parts = {
        place: paying(times[place][head_dim_of(model, *place)], {channels: times[place][channels] for channels in own})
        for place, own in choices.items()
    }
    return EncoderCosts(total, parts)


def in_proportion(recognizer: Recognizer, place: AttentionPlace, choices: Iterable[int], whole: float) -> PartCost:
    per_channel = whole / head_dim_of(recognizer.model, *place)
    return paying(whole, {channels: per_channel * channels for channels in choices})


def flops_of(recognizer: Recognizer, place: AttentionPlace, flops: Mapping[str, int]) -> int:
    """Of the products of the attention, and of the parts of its projections that have the heads' channels on a side."""
    stack, index, attention = place
    whole = flops[layer_path(stack, index, attention.name)]
    products = whole - sum(flops[layer_path(stack, index, linear)] for linear in attention.linears)
    return products + sum(flops[part] for part in weights_by_channel(recognizer, place))


def weights_by_channel(recognizer: Recognizer, place: AttentionPlace) -> dict[str, int]:
    """By path, the parts of the projections that give or hear the heads' channels, and how many weights those have."""
    stack, index, attention = place
    found = {}
    for linear in attention.linears:
        parts = parts_of(recognizer.model, stack, index, linear)
        if linear in attention.inward:
            path, part = list(parts.items())[-1]
            found[path] = sum(parameter.numel() for parameter in part.parameters())
        else:
            path, part = next(iter(parts.items()))
            found[path] = part.get_parameter("weight").numel()
    return found
