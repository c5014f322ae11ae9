"""One Whisper, dense and made smaller in the ways that `runtimes.py` times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from shapes import factor_at_random
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.methods import LowRank, StepContext, StructuredMagnitude, methods
from sotto.methods.factoring import reduce_where_cheaper
from sotto.metrics.cost import count_parameters
from sotto.surgery import get_linear

RANK_MULTIPLE = 16
STRUCTURED = StructuredMagnitude(heads=0.5, neurons=0.5, stacks=("encoder",))


def variants(calibration: ClipSource | None) -> Mapping[str, Callable[[Recognizer], None]]:
    """What is done in place to a dense model, by name; a share is of the dense encoder's parameters.

    Without calibration clips the factors are random, as the weights then are.
    """
    return {
        "dense": lambda recognizer: None,
        **{f"low-rank-{share}": partial(low_rank, share / 100, calibration) for share in (60, 50, 40)},
        "structured": structured,
        "both": partial(both, 0.4, calibration),
    }


def low_rank(share: float, calibration: ClipSource | None, recognizer: Recognizer) -> None:
    """Leave that share of the encoder's parameters by factors."""
    config = LowRank(parameters=share, rank_multiple=RANK_MULTIPLE)
    if calibration is None:
        factor_evenly(recognizer, share)
        reduce_where_cheaper(recognizer, config)
    else:
        methods.handler(config)(recognizer, config, StepContext(Path(), calibration=calibration))


def structured(recognizer: Recognizer) -> None:
    """Take half of the heads and half of the neurons out of the encoder."""
    methods.handler(STRUCTURED)(recognizer, STRUCTURED, StepContext(Path()))


def both(share: float, calibration: ClipSource | None, recognizer: Recognizer) -> None:
    """The same, and then as much low rank as leaves that share."""
    whole = count_parameters(recognizer.model).encoder
    structured(recognizer)
    low_rank(share * whole / count_parameters(recognizer.model).encoder, calibration, recognizer)


def factor_evenly(recognizer: Recognizer, share: float) -> None:
    """Random factors that leave every linear of the encoder the same share of its weights, to the nearest rank."""
    model, stack = recognizer.model, recognizer.architecture.stack("encoder")
    linears = {place: get_linear(model, stack, *place[1:]) for place in places(recognizer, ("encoder",))}
    whole = count_parameters(model).encoder
    weights = sum(linear.in_features * linear.out_features for linear in linears.values())
    left = (share * whole - (whole - weights)) / weights
    for (_, index, name), linear in linears.items():
        widest = left * linear.in_features * linear.out_features / (linear.in_features + linear.out_features)
        rank = max(RANK_MULTIPLE, round(widest / RANK_MULTIPLE) * RANK_MULTIPLE)
        factor_at_random(recognizer, stack, index, name, rank)
