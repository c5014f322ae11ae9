"""Which rank every linear gets: by energy thresholds, or within a budget over all layers together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sotto.calibration import Place
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.exports.runtimes import place_of
from sotto.low_rank_math import Principal, rank_by_energy, saves
from sotto.methods.budget_costs import EncoderCosts, sizes_within, time_note
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.factoring import factor_at_once, linear_at, weights_of
from sotto.methods.low_rank_config import LowRank
from sotto.methods.rank_costs import encoder_costs
from sotto.methods.sensitivity import WINDOWS, direction_sensitivities

COMPARED_WINDOWS = 32  # choices of ranks are held against each other on the same windows, so few of them tell


def choose_ranks(
    recognizer: Recognizer,
    config: LowRank,
    principals: Mapping[Place, Principal],
    clips: ClipSource,
) -> tuple[dict[Place, int], list[str]]:
    """The rank of every linear that is to be factored, and notes on how they were chosen, none where asked for.

    A linear that is to stay whole is not named.
    """
    if config.thresholds is not None:
        return ranks_by_threshold(recognizer, config, principals), []
    costs = encoder_costs(recognizer, config, principals)
    candidates = {}
    if config.weighting in ("best", "relative"):
        candidates["relative"] = ranks_by_budget(config, costs, relative_errors(principals))
    if config.weighting in ("best", "sensitivity"):
        sensitivities = direction_sensitivities(recognizer, principals, clips.spread(WINDOWS), config.stacks)
        errors = {place: principals[place].energies * sensitivities[place] for place in principals}
        candidates["sensitivity"] = ranks_by_budget(config, costs, errors)
    best, notes = next(iter(candidates)), []
    if len(candidates) > 1:
        found = divergences(recognizer, config, candidates, principals, clips)
        best = min(found, key=lambda name: math.inf if math.isnan(found[name]) else found[name])
        measured = ", ".join(f"{name} {nats:.3g}" for name, nats in found.items())
        unit = f"nats a {recognizer.family.decision}"
        notes.append(f"ranks weighted by {best}; divergence from the base in {unit}: {measured}")
    if config.time is not None:
        where = place_of(config.runtime, recognizer.model.device)
        notes.append(time_note(costs.total, costs.left(candidates[best]), where))
    return candidates[best], notes


def divergences(
    recognizer: Recognizer,
    config: LowRank,
    candidates: Mapping[str, Mapping[Place, int]],
    principals: Mapping[Place, Principal],
    clips: ClipSource,
) -> dict[str, float]:
    """How far each choice of ranks would move the model, measured on some of the calibration windows."""
    heard = clips.spread(COMPARED_WINDOWS, offset=1)  # where there are enough, others than gave the sensitivities
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
        rank = rank_by_energy(principal.energies, threshold, config.multiple, config.outlier_share)
        linear = linear_at(recognizer, place)
        if rank is not None and saves(rank, linear.in_features, linear.out_features, weights_of(linear)):
            ranks[place] = rank
    return ranks


def ranks_by_budget(
    config: LowRank, costs: EncoderCosts[Place], errors: Mapping[Place, torch.Tensor]
) -> dict[Place, int]:
    """The ranks that leave least weighted output error within the budget, over all layers together.

    `errors[place][i]` is what dropping direction i costs. Raises SottoError where no ranks meet the budget.
    """
    assert config.budget is not None
    lost = {
        place: (energies.sum() - torch.cumsum(energies, 0)).clamp(min=0.0).tolist()
        for place, energies in errors.items()
    }
    slower = "; narrower heads save time where factors do not: precede it by head_reduction"
    return sizes_within(
        config.budget,
        costs,
        lambda place, rank: float(lost[place][rank - 1]),
        "low rank",
        slower if config.time is not None else "",
    )
