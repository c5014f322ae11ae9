"""Low rank, after LiteASR (Kamahori et al., 2025, arXiv:2502.20583): linears as two factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from sotto.architectures import Stack
from sotto.calibration import Place, calibrate, weight_and_bias
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, saves_attention
from sotto.low_rank_math import (
    Curve,
    Factors,
    Principal,
    allocate,
    factors_of,
    factors_of_regression,
    factors_of_weight,
    rank_by_energy,
    saves,
)
from sotto.methods.method import StepContext, methods
from sotto.methods.sensitivity import direction_sensitivities, spread
from sotto.methods.sequential import fit_layer, original_of, side_by_side
from sotto.metrics.cost import count_parameters, encoder_flops
from sotto.surgery import expand_attention, factor, get_linear, layer_path, reduce_attention

PRESETS = {"quality": (0.999, 0.999), "balanced": (0.99, 0.999), "efficiency": (0.99, 0.995)}


@dataclass(frozen=True)
class LowRank:
    """How far to factor: to energy thresholds (`preset`, or `attention` and `mlp`) or a budget (`parameters`, `flops`).

    A budget is the share of the encoder's parameters, or of its FLOPs, that is to be left.
    """

    preset: Literal["quality", "balanced", "efficiency"] | None = None
    attention: float | None = None
    mlp: float | None = None
    parameters: float | None = None
    flops: float | None = None
    weighting: Literal["relative", "sensitivity"] = "sensitivity"
    """how a budget weighs the layers' errors against each other; see docs/low_rank.md"""
    basis: Literal["activations", "weights"] = "activations"
    """what the factors are to preserve; `weights` is the naive baseline, blind to the audio"""
    sequential: bool = False
    """fit layer by layer to the original's outputs, from inputs that the compressed layers before it give"""
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder",)
    rank_multiple: int = 16
    outlier_share: float | None = 0.9
    """None leaves massive directions in the energy, as the paper does"""
    reduced_attention: bool = True
    ridge: float = 1e-3
    """how strongly a sequential fit is held near the original weights"""

    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, (None, *PRESETS))
        check_choice("weighting", self.weighting, ("relative", "sensitivity"))
        check_choice("basis", self.basis, ("activations", "weights"))
        thresholds = self.preset is not None or self.attention is not None or self.mlp is not None
        chosen = thresholds + (self.parameters is not None) + (self.flops is not None)
        if chosen > 1:
            raise SottoError("low_rank takes thresholds (preset, or attention and mlp) or one budget, not both")
        if self.preset is not None and (self.attention is not None or self.mlp is not None):
            raise SottoError("low_rank takes a preset or thresholds of its own, not both")
        for name in ("attention", "mlp", "parameters", "flops", "outlier_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise SottoError(f"{name} must be between 0 and 1, found {value}")
        if self.rank_multiple < 1:
            raise SottoError(f"rank_multiple must be at least 1, found {self.rank_multiple}")
        if (self.parameters or self.flops) and self.stacks != ("encoder",):
            raise SottoError("a budget is for the encoder; use thresholds where the decoder is to be factored")
        if not self.stacks:
            raise SottoError("stacks must name encoder, decoder or both")
        if self.ridge < 0:
            raise SottoError(f"ridge must not be negative, found {self.ridge}")
        if self.sequential and self.basis == "weights":
            raise SottoError("sequential fits to activations; leave out one of sequential and basis: weights")

    @property
    def thresholds(self) -> tuple[float, float] | None:
        """(attention, mlp), or None where there is a budget. Without either: the paper's default, `balanced`."""
        if self.parameters is not None or self.flops is not None:
            return None
        default = PRESETS[self.preset or "balanced"]
        return self.attention or default[0], self.mlp or default[1]


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise SottoError(f"{name} {value!r} is not one of {', '.join(str(choice) for choice in known)}")


@methods.register("low_rank", LowRank)
def apply_low_rank(recognizer: Recognizer, config: LowRank, context: StepContext) -> list[str]:
    """Factor the linears of `recognizer` in place. Raises SottoError without calibration clips."""
    if context.calibration is None:
        raise SottoError("low_rank needs calibration clips; give data.calibration (no transcripts needed)")
    expand_attentions(recognizer, config.stacks)
    principals = calibrate(recognizer, context.calibration, config.stacks).principals()
    ranks = choose_ranks(recognizer, config, principals, context.calibration)
    if config.sequential:
        factor_sequentially(recognizer, config, ranks, context.calibration)
    else:
        factor_at_once(recognizer, config, ranks, principals)
    reduced = reduce_where_cheaper(recognizer, config) if config.reduced_attention else 0
    whole = len(principals) - len(ranks)
    return [
        f"{len(ranks)} linears factored, {whole} left whole",
        f"attention of {reduced} layers computed in the reduced dimension",
    ]


def expand_attentions(recognizer: Recognizer, stacks: Sequence[str]) -> None:
    """Undo what an earlier step reduced: reduced attention does not call its projections, so they are not heard."""
    for name in stacks:
        stack = recognizer.architecture.stack(name)
        for index in range(len(recognizer.model.get_submodule(stack.layers))):
            for attention in stack.attentions:
                expand_attention(recognizer.model, stack, index, attention)


def choose_ranks(
    recognizer: Recognizer,
    config: LowRank,
    principals: Mapping[Place, Principal],
    clips: ClipSource,
) -> dict[Place, int]:
    """The rank of every linear that is to be factored; a linear that is to stay whole is not named."""
    if config.thresholds is not None:
        return ranks_by_threshold(recognizer, config, principals)
    if config.weighting == "sensitivity":
        sensitivities = direction_sensitivities(recognizer, principals, spread(clips), config.stacks)
        errors = {place: principals[place].energies * sensitivities[place] for place in principals}
    else:
        errors = relative_errors(principals)
    return ranks_by_budget(recognizer, config, errors)


def relative_errors(principals: Mapping[Place, Principal]) -> dict[Place, torch.Tensor]:
    """Each linear's energies as shares of their sum."""
    return {place: found.energies / found.energies.sum().clamp(min=1e-300) for place, found in principals.items()}


def linear_at(recognizer: Recognizer, place: Place) -> nn.Linear | FactoredLinear:
    stack, index, linear = place
    return get_linear(recognizer.model, recognizer.architecture.stack(stack), index, linear)


def weights_of(linear: nn.Module) -> int:
    """Entries of the weight of a linear as it now stands, whole or factored; biases not counted."""
    return sum(parameter.numel() for parameter in linear.parameters() if parameter.dim() == 2)


def ranks_by_threshold(
    recognizer: Recognizer, config: LowRank, principals: Mapping[Place, Principal]
) -> dict[Place, int]:
    """Eq. (6) and (8) for each linear by itself."""
    assert config.thresholds is not None
    attention, mlp = config.thresholds
    ranks = {}
    for place, principal in principals.items():
        stack = recognizer.architecture.stack(place[0])
        in_attention = any(place[2] in module.projections for module in stack.attentions)
        threshold = attention if in_attention else mlp
        rank = rank_by_energy(principal.energies, threshold, config.rank_multiple, config.outlier_share)
        linear = linear_at(recognizer, place)
        if rank is not None and saves(rank, linear.in_features, linear.out_features, weights_of(linear)):
            ranks[place] = rank
    return ranks


def ranks_by_budget(recognizer: Recognizer, config: LowRank, errors: Mapping[Place, torch.Tensor]) -> dict[Place, int]:
    """The ranks that leave least weighted output error within the budget, over all layers together.

    `errors[place][i]` is what dropping direction i costs. Raises SottoError where no ranks meet the budget.
    """
    share, total, per_weight, fixed = budget_of(recognizer, config, errors)
    choices: list[list[int | None]] = []
    curves: list[Curve] = []
    for place, energies in errors.items():
        linear = linear_at(recognizer, place)
        whole = per_weight * weights_of(linear)
        new_bias = linear.out_features if linear.bias is None and config.parameters is not None else 0
        ranks, costs = [], []
        for rank in range(config.rank_multiple, len(energies) + 1, config.rank_multiple):
            cost = per_weight * rank * (linear.in_features + linear.out_features) + new_bias
            if cost < whole:
                ranks.append(rank)
                costs.append(cost)
        lost = (energies.sum() - torch.cumsum(energies, 0)).clamp(min=0.0).tolist()
        choices.append([*ranks, None])
        curves.append(Curve((*costs, whole), (*(lost[rank - 1] for rank in ranks), 0.0)))
    chosen = allocate(curves, share * total - fixed)
    if chosen is None:
        least = math.ceil(100 * (fixed + sum(curve.costs[0] for curve in curves)) / total) / 100
        raise SottoError(f"the budget {share:g} cannot be met by low rank: the least that can be left is {least:.2f}")
    picked = {place: options[index] for place, options, index in zip(errors, choices, chosen, strict=True)}
    return {place: rank for place, rank in picked.items() if rank is not None}


def budget_of(
    recognizer: Recognizer, config: LowRank, errors: Mapping[Place, torch.Tensor]
) -> tuple[float, float, float, float]:
    """(share to be left, the encoder's total, cost of one weight of a linear, what low rank cannot change)."""
    weights = sum(weights_of(linear_at(recognizer, place)) for place in errors)
    if config.parameters is not None:
        total = float(count_parameters(recognizer.model).encoder)
        return config.parameters, total, 1.0, total - weights
    assert config.flops is not None
    total = float(encoder_flops(recognizer.model))
    per_weight = 2.0 * recognizer.model.config.max_source_positions
    return config.flops, total, per_weight, total - per_weight * weights


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
    original = original_of(recognizer)
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


def reduce_where_cheaper(recognizer: Recognizer, config: LowRank) -> int:
    """Compute attention in the reduced dimension in every layer where that costs fewer FLOPs; how many those are."""
    count = 0
    positions = recognizer.model.config.max_source_positions
    for name in config.stacks:
        stack = recognizer.architecture.stack(name)
        for index in range(len(recognizer.model.get_submodule(stack.layers))):
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
