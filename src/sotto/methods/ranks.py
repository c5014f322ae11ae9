"""Which rank every linear gets: by energy thresholds, or within a budget over all layers together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sotto.calibration import Place
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.low_rank_math import Curve, Principal, allocate, rank_by_energy, saves
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.factoring import factor_at_once, linear_at, weights_of
from sotto.methods.low_rank_config import LowRank
from sotto.methods.sensitivity import WINDOWS, direction_sensitivities, spread
from sotto.metrics.cost import count_parameters, encoder_flops, flops_by_module
from sotto.surgery import layer_path

COMPARED_WINDOWS = 32  # choices of ranks are held against each other on the same windows, so few of them tell


def choose_ranks(
    recognizer: Recognizer,
    config: LowRank,
    principals: Mapping[Place, Principal],
    clips: ClipSource,
) -> tuple[dict[Place, int], str]:
    """The rank of every linear that is to be factored, and a note on how they were chosen, empty where asked for.

    A linear that is to stay whole is not named.
    """
    if config.thresholds is not None:
        return ranks_by_threshold(recognizer, config, principals), ""
    candidates = {}
    if config.weighting in ("best", "relative"):
        candidates["relative"] = ranks_by_budget(recognizer, config, relative_errors(principals))
    if config.weighting in ("best", "sensitivity"):
        sensitivities = direction_sensitivities(recognizer, principals, spread(clips, WINDOWS), config.stacks)
        errors = {place: principals[place].energies * sensitivities[place] for place in principals}
        candidates["sensitivity"] = ranks_by_budget(recognizer, config, errors)
    if len(candidates) == 1:
        return next(iter(candidates.values())), ""
    found = divergences(recognizer, config, candidates, principals, clips)
    best = min(found, key=lambda name: math.inf if math.isnan(found[name]) else found[name])
    measured = ", ".join(f"{name} {nats:.3g}" for name, nats in found.items())
    unit = f"nats a {recognizer.family.decision}"
    return candidates[best], f"ranks weighted by {best}; divergence from the base in {unit}: {measured}"


def divergences(
    recognizer: Recognizer,
    config: LowRank,
    candidates: Mapping[str, Mapping[Place, int]],
    principals: Mapping[Place, Principal],
    clips: ClipSource,
) -> dict[str, float]:
    """How far each choice of ranks would move the model, measured on some of the calibration windows."""
    heard = spread(clips, COMPARED_WINDOWS, offset=1)  # where there are enough, others than gave the sensitivities
    transcripts = transcripts_of(recognizer, heard, COMPARED_WINDOWS, "comparing ranks")
    found = {}
    for name, ranks in candidates.items():
        tried = recognizer.copy()
        factor_at_once(tried, config, ranks, principals)
        found[name] = divergence(tried, recognizer, transcripts)
    return found


def relative_errors(principals: Mapping[Place, Principal]) -> dict[Place, torch.Tensor]:
    """Each linear's energies as shares of their sum."""
    return {place: found.energies / found.energies.sum().clamp(min=1e-300) for place, found in principals.items()}


def ranks_by_threshold(
    recognizer: Recognizer, config: LowRank, principals: Mapping[Place, Principal]
) -> dict[Place, int]:
    """Eq. (6) and (8) for each linear by itself."""
    assert config.thresholds is not None
    attention, mlp = config.thresholds
    ranks = {}
    for place, principal in principals.items():
        stack = recognizer.architecture.stack(place[0])
        in_attention = any(place[2] in attention.linears for attention in stack.attentions)
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
    share, total, per_weight = budget_of(recognizer, config, errors)
    choices: list[list[int | None]] = []
    curves: list[Curve] = []
    for place, energies in errors.items():
        linear = linear_at(recognizer, place)
        whole = per_weight[place] * weights_of(linear)
        new_bias = linear.out_features if linear.bias is None and config.parameters is not None else 0
        ranks, costs = [], []
        for rank in range(config.rank_multiple, len(energies) + 1, config.rank_multiple):
            cost = per_weight[place] * rank * (linear.in_features + linear.out_features) + new_bias
            if cost < whole:
                ranks.append(rank)
                costs.append(cost)
        lost = (energies.sum() - torch.cumsum(energies, 0)).clamp(min=0.0).tolist()
        choices.append([*ranks, None])
        curves.append(Curve((*costs, whole), (*(lost[rank - 1] for rank in ranks), 0.0)))
    fixed = total - sum(curve.costs[-1] for curve in curves)  # what low rank cannot change
    chosen = allocate(curves, share * total - fixed)
    if chosen is None:
        least = math.ceil(100 * (fixed + sum(curve.costs[0] for curve in curves)) / total) / 100
        raise SottoError(f"the budget {share:g} cannot be met by low rank: the least that can be left is {least:.2f}")
    picked = {place: options[index] for place, options, index in zip(errors, choices, chosen, strict=True)}
    return {place: rank for place, rank in picked.items() if rank is not None}


def budget_of(
    recognizer: Recognizer, config: LowRank, errors: Mapping[Place, torch.Tensor]
) -> tuple[float, float, dict[Place, float]]:
    """(share to be left, the encoder's total, cost of one weight of each linear)."""
    model = recognizer.model
    if config.parameters is not None:
        return config.parameters, float(count_parameters(model).encoder), dict.fromkeys(errors, 1.0)
    assert config.flops is not None
    frames = recognizer.family.window_frames
    flops = flops_by_module(model, frames, tokens=1)
    per_weight = {}
    for place in errors:
        stack, index, linear = place
        path = layer_path(recognizer.architecture.stack(stack), index, linear)
        per_weight[place] = flops[path] / weights_of(linear_at(recognizer, place))
    return config.flops, float(encoder_flops(model, frames)), per_weight
