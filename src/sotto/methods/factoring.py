"""Linears of a recogniser put as two factors, and attention put in the reduced dimension where that is cheaper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sotto.architectures import Stack, get_setting
from sotto.calibration import Place, weight_and_bias
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.layers import FactoredLinear, saves_attention
from sotto.low_rank_math import Factors, Principal, factors_of, factors_of_regression, factors_of_weight
from sotto.methods.low_rank_config import LowRank
from sotto.methods.sequential import fit_layer, side_by_side
from sotto.surgery import expand_attention, factor, get_linear, layer_path, layers_of, reduce_attention


def linear_at(recognizer: Recognizer, place: Place) -> nn.Linear | FactoredLinear:
    stack, index, linear = place
    return get_linear(recognizer.model, recognizer.architecture.stack(stack), index, linear)


def weights_of(linear: nn.Module) -> int:
    """Entries of the weight of a linear as it now stands, whole or factored; biases not counted."""
    return sum(parameter.numel() for parameter in linear.parameters() if parameter.dim() == 2)


def factor_at_once(
    recognizer: Recognizer, config: LowRank, ranks: Mapping[Place, int], principals: Mapping[Place, Principal]
) -> None:
    """Factor every linear on the principal directions of its outputs, or, blind to the audio, of its weight."""
    for place, rank in ranks.items():
        stack = recognizer.architecture.stack(place[0])
        weight, bias = weight_and_bias(recognizer.model, stack, *place[1:])
        if config.basis == "weights":
            put_factors(recognizer, place, factors_of_weight(rank, weight, bias))
        else:
            put_factors(recognizer, place, factors_of(principals[place], rank, weight, bias))


def factor_sequentially(recognizer: Recognizer, config: LowRank, ranks: Mapping[Place, int], clips: ClipSource) -> None:
    """Factor in the order of computation: each linear fitted from what those before it now give to the original's."""
    original = recognizer.copy()
    for name, index in dict.fromkeys((name, index) for name, index, _ in ranks):
        stack = recognizer.architecture.stack(name)
        for group in side_by_side(stack):
            linears = [linear for linear in group if (name, index, linear) in ranks]
            if not linears:
                continue
            fits = fit_layer(recognizer, original, stack, index, linears, clips, config.ridge)
            for linear in linears:
                place = (name, index, linear)
                put_factors(recognizer, place, factors_of_regression(fits[linear], ranks[place]))


def put_factors(recognizer: Recognizer, place: Place, factors: Factors) -> None:
    stack = recognizer.architecture.stack(place[0])
    factor(recognizer.model, stack, place[1], place[2], factors.first, factors.second, factors.bias)


def expand_attentions(recognizer: Recognizer, stacks: Sequence[str]) -> None:
    """Undo what an earlier step reduced: reduced attention does not call its projections, so they are not heard."""
    for stack, index in layers_of(recognizer.model):
        if stack.name in stacks:
            for attention in stack.attentions:
                expand_attention(recognizer.model, stack, index, attention)


def reduce_where_cheaper(recognizer: Recognizer, config: LowRank) -> int:
    """Compute attention in the reduced dimension in every layer where that costs fewer FLOPs; how many those are."""
    count = 0
    for stack, index in layers_of(recognizer.model):
        if stack.name in config.stacks and stack.positions is not None:
            positions = get_setting(recognizer.model.config, stack.positions)
            count += sum(reduce_layer(recognizer, stack, index, positions))
    return count


def reduce_layer(recognizer: Recognizer, stack: Stack, index: int, positions: int) -> list[bool]:
    """For each attention of a layer whether it is now computed in the reduced dimension."""
    reduced = []
    for attention in stack.attentions:
        query, key, value, _ = (get_linear(recognizer.model, stack, index, name) for name in attention.projections)
        ranks = [linear.rank for linear in (query, key, value) if isinstance(linear, FactoredLinear)]
        pays = False
        if attention.reducible and len(ranks) == 3:
            module: Any = recognizer.model.get_submodule(layer_path(stack, index, attention.name))
            pays = saves_attention(query.out_features, module.num_heads, positions, ranks[0], ranks[1], ranks[2])
        if pays:
            reduce_attention(recognizer.model, stack, index, attention)
        reduced.append(pays)
    return reduced
