"""What the linears of an encoder cost by their rank: in parameters, FLOPs, or seconds on this machine."""

from __future__ import annotations

from collections.abc import Collection

from sotto.calibration import Place
from sotto.checkpoint import Recognizer
from sotto.layers import FactoredLinear
from sotto.low_rank_math import saves
from sotto.methods.budget_costs import EncoderCosts, paying
from sotto.methods.factoring import linear_at, weights_of
from sotto.methods.low_rank_config import LowRank
from sotto.methods.timed_linears import linear_times
from sotto.metrics.cost import count_flops, count_parameters
from sotto.surgery import layer_path


def encoder_costs(recognizer: Recognizer, config: LowRank, places: Collection[Place]) -> EncoderCosts[Place]:
    """Costs of what the budget is stated in."""
    if config.parameters is not None:
        return parameter_costs(recognizer, config, places)
    if config.flops is not None:
        return flops_costs(recognizer, config, places)
    return time_costs(recognizer, config, places)


def parameter_costs(recognizer: Recognizer, config: LowRank, places: Collection[Place]) -> EncoderCosts[Place]:
    """Factors bring a bias where there was none."""
    linears = {}
    for place in places:
        linear = linear_at(recognizer, place)
        new_bias = linear.out_features if linear.bias is None else 0
        weights = weights_by_rank(recognizer, config, place)
        linears[place] = paying(weights_of(linear), {rank: count + new_bias for rank, count in weights.items()})
    return EncoderCosts(float(count_parameters(recognizer.model).encoder), linears)


def flops_costs(recognizer: Recognizer, config: LowRank, places: Collection[Place]) -> EncoderCosts[Place]:
    flops = count_flops(recognizer.model, recognizer.family.window_frames, tokens=1)
    linears = {}
    for place in places:
        stack, index, linear = place
        whole = flops.by_module[layer_path(recognizer.architecture.stack(stack), index, linear)]
        per_weight = whole / weights_of(linear_at(recognizer, place))
        weights = weights_by_rank(recognizer, config, place)
        linears[place] = paying(whole, {rank: per_weight * count for rank, count in weights.items()})
    return EncoderCosts(float(flops.encoder), linears)


def time_costs(recognizer: Recognizer, config: LowRank, places: Collection[Place]) -> EncoderCosts[Place]:
    """Seconds over one window."""
    total, times = linear_times(recognizer, places, config.runtime or "torch", config.multiple)
    linears = {}
    for place in places:
        linear = linear_at(recognizer, place)
        whole = times[place].at(linear.rank) if isinstance(linear, FactoredLinear) else times[place].whole
        ranks = weights_by_rank(recognizer, config, place)
        linears[place] = paying(whole, {rank: times[place].at(rank) for rank in ranks})
    return EncoderCosts(total, linears)


def weights_by_rank(recognizer: Recognizer, config: LowRank, place: Place) -> dict[int, int]:
    """For every rank at which two factors are no larger than the linear as it stands, how many weights they have."""
    linear = linear_at(recognizer, place)
    inputs, outputs, now = linear.in_features, linear.out_features, weights_of(linear)
    ranks = range(config.multiple, min(inputs, outputs) + 1, config.multiple)
    return {rank: rank * (inputs + outputs) for rank in ranks if saves(rank, inputs, outputs, now)}
