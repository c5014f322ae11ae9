"""Which dimension the heads of every attention get: one for all, by an energy threshold, or within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.head_reduction_math import HeadBases
from sotto.low_rank_math import Curve, allocate
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.head_narrowing import AttentionPlace, narrow
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.sensitivity import spread
from sotto.metrics.cost import count_parameters, encoder_flops, flops_by_module
from sotto.progress import track
from sotto.surgery import head_dim_of, layer_path, parts_of

COMPARED_WINDOWS = 8  # all choices are held against each other on the same ones, so few of them tell


def choose_head_dims(
    recognizer: Recognizer, config: HeadReduction, bases: Mapping[AttentionPlace, HeadBases], clips: ClipSource
) -> dict[AttentionPlace, int]:
    """The head dimension of every attention whose heads are to be narrower; one that is not named stays as it is.

    Raises SottoError where that is none of them by the config, and where a budget cannot be met.
    """
    now = {place: head_dim_of(recognizer.model, *place) for place in bases}
    if config.head_dim is not None:
        if config.head_dim >= max(now.values()):
            raise SottoError(
                f"head_reduction: no head has more than {config.head_dim} channels; give a smaller head_dim"
            )
        return {place: config.head_dim for place in bases if config.head_dim < now[place]}
    choices = {place: range(config.multiple, now[place], config.multiple) for place in bases}
    if config.threshold is not None:
        return by_threshold(config.threshold, choices, bases)
    return by_budget(recognizer, config, now, choices, errors_of(recognizer, choices, bases, clips))


def by_threshold(
    threshold: float, choices: Mapping[AttentionPlace, range], bases: Mapping[AttentionPlace, HeadBases]
) -> dict[AttentionPlace, int]:
    """For each attention by itself the smallest choice that holds more than the threshold of scores and of outputs."""
    enough = {
        place: [channels for channels in choices[place] if basis.shares[channels - 1] > threshold]
        for place, basis in bases.items()
    }
    return {place: found[0] for place, found in enough.items() if found}


def errors_of(
    recognizer: Recognizer,
    choices: Mapping[AttentionPlace, range],
    bases: Mapping[AttentionPlace, HeadBases],
    clips: ClipSource,
) -> dict[tuple[AttentionPlace, int], float]:
    """About how far the model moves where one attention has narrower heads, in nats a decision, for every choice.

    Measured in the middle of an attention's choices. The others lie from there as the energies do that they lose.
    """
    heard = spread(clips, COMPARED_WINDOWS)
    transcripts = transcripts_of(recognizer, heard, COMPARED_WINDOWS, "comparing head dimensions")
    found = {}
    for place, own in track([item for item in choices.items() if item[1]], "narrowing one attention"):
        middle, lost = own[len(own) // 2], bases[place].lost.tolist()
        tried = recognizer.copy()
        narrow(tried, {place: middle}, bases)
        moved = divergence(tried, recognizer, transcripts)
        for channels in own:
            found[place, channels] = moved * lost[channels - 1] / max(lost[middle - 1], 1e-300)
    return found


def by_budget(
    recognizer: Recognizer,
    config: HeadReduction,
    now: Mapping[AttentionPlace, int],
    choices: Mapping[AttentionPlace, range],
    errors: Mapping[tuple[AttentionPlace, int], float],
) -> dict[AttentionPlace, int]:
    """The choices within the budget that move the model least, taking what each attention moves it to add up.

    Raises SottoError where no choices meet the budget.
    """
    share, total, per_channel = budget_of(recognizer, config, now)
    curves = [
        Curve(
            tuple(per_channel[place] * channels for channels in chain(found, [now[place]])),
            (*(errors[place, channels] for channels in found), 0.0),
        )
        for place, found in choices.items()
    ]
    fixed = total - sum(curve.costs[-1] for curve in curves)  # what narrower heads cannot change
    chosen = allocate(curves, share * total - fixed)
    if chosen is None:
        least = math.ceil(100 * (fixed + sum(curve.costs[0] for curve in curves)) / total) / 100
        raise SottoError(
            f"the budget {share:g} cannot be met by head_reduction: the least that can be left is {least:.2f}; "
            "follow it by low_rank"
        )
    picked = zip(choices.items(), chosen, strict=True)
    return {place: found[index] for (place, found), index in picked if index < len(found)}


def budget_of(
    recognizer: Recognizer, config: HeadReduction, now: Mapping[AttentionPlace, int]
) -> tuple[float, float, dict[AttentionPlace, float]]:
    """(share to be left, the encoder's total, cost of one channel of all heads of each attention)."""
    model = recognizer.model
    if config.parameters is not None:
        weights = {place: sum(weights_by_channel(recognizer, place).values()) for place in now}
        total = float(count_parameters(model).encoder)
        return config.parameters, total, {place: weights[place] / now[place] for place in now}
    assert config.flops is not None
    frames = recognizer.family.window_frames
    flops = flops_by_module(model, frames, tokens=1)
    per_channel = {}
    for place in now:
        stack, index, attention = place
        whole = flops[layer_path(stack, index, attention.name)]
        products = whole - sum(flops[layer_path(stack, index, linear)] for linear in attention.linears)
        per_channel[place] = (products + sum(flops[part] for part in weights_by_channel(recognizer, place))) / now[
            place
        ]
    return config.flops, float(encoder_flops(model, frames)), per_channel


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
