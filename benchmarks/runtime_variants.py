"""One Whisper, dense and made smaller in the ways that `runtimes.py` times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.methods import (
    HeadReduction,
    LayerDropping,
    LowRank,
    ShorterWindow,
    StepContext,
    StructuredMagnitude,
    methods,
)
from sotto.methods.factoring import reduce_where_cheaper
from sotto.methods.gated_modules import KINDS, gated_module
from sotto.metrics.cost import count_parameters
from sotto.surgery import get_linear, layers_of, narrow_heads

Change = Callable[[Recognizer], Recognizer]
"""Gives a smaller copy."""

RANK_MULTIPLE = 16
STRUCTURED = StructuredMagnitude(heads=0.5, neurons=0.5, stacks=("encoder",))
SHORT = ShorterWindow(10)
END_LOGIT = 12.0
LETTER_LOGIT = 8.0


@torch.no_grad()
def random_base(shape: str) -> Recognizer:
    """A Whisper of that shape which says "a": random weights would go on until there is no more room.

    The decoder's last norm turns its states towards the end token, and less towards that letter, since a text may not
    begin with its end. Other first letters, such as bytes that are none, are told in different ways by runtimes.
    """
    recognizer = random_whisper(shape)
    decoder = recognizer.model.get_decoder()
    wanted = {
        recognizer.model.generation_config.eos_token_id: END_LOGIT,
        recognizer.processor.tokenizer.convert_tokens_to_ids("a"): LETTER_LOGIT,
    }
    rows = {token: decoder.embed_tokens.weight[token] for token in wanted}
    decoder.layer_norm.bias.copy_(sum(wanted[token] * row / row.square().sum() for token, row in rows.items()))
    return recognizer


def variants(calibration: ClipSource | None) -> Mapping[str, Change]:
    """What is made of a dense model, by name; a share is of the dense encoder's parameters.

    Without calibration clips the factors are random, as the weights then are.
    """
    return {
        "dense": Recognizer.copy,
        **{f"low-rank-{share}": partial(low_rank, share / 100, calibration) for share in (60, 50, 40)},
        "structured": structured,
        "fewer-layers": partial(fewer_layers, 0.625),
        "fewer-layers-and-neurons": partial(fewer_layers, 0.75),
        "fewer-heads": partial(fewer_heads, (0,)),
        "fewest-heads": partial(fewer_heads, (0, 1, 3)),
        "both": partial(both, 0.4, calibration),
        "narrow": partial(narrow, calibration),
        "short": partial(after, SHORT),
        "short-structured": lambda model: after(SHORT, structured(model)),
    }


def low_rank(share: float, calibration: ClipSource | None, model: Recognizer) -> Recognizer:
    """That share of the encoder's parameters is left, by factors."""
    found, config = model.copy(), LowRank(parameters=share, rank_multiple=RANK_MULTIPLE)
    if calibration is None:
        factor_evenly(found, share)
        reduce_where_cheaper(found, config)
    else:
        methods.handler(config)(found, config, StepContext(Path(), calibration=calibration))
    return found


def structured(model: Recognizer) -> Recognizer:
    """Half of the encoder's heads and half of its neurons are taken out."""
    return after(STRUCTURED, model)


def fewer_layers(neurons: float, model: Recognizer) -> Recognizer:
    """Half of the encoder's heads, that share of its neurons and one of six layers are taken out."""
    found = after(replace(STRUCTURED, neurons=neurons), model)
    layers = found.architecture.stack("encoder").dimensions(found.model.config).layers
    return after(LayerDropping(encoder=round(layers * 5 / 6)), found)


def fewer_heads(layers: Sequence[int], model: Recognizer) -> Recognizer:
    """One of six layers, five eighths of the neurons and half of the heads are taken out, and half again in `layers`.

    So `recipes/fitted_window_fewer_heads.yaml` and, after it, `fitted_window_fewer_heads_again.yaml` leave them.
    """
    found = fewer_layers(0.625, model)
    stack = found.architecture.stack("encoder")
    depth = stack.dimensions(found.model.config).layers
    for index in filter(lambda each: each < depth, layers):
        heads = gated_module(found.model, stack, index, stack.attentions[0], KINDS)
        heads.keep(found.model, range(0, heads.units, 2))
    return found


def after(step: Any, model: Recognizer) -> Recognizer:
    """A copy after a step that needs no data."""
    found = model.copy()
    methods.handler(step)(found, step, StepContext(Path()))
    return found


def narrow(calibration: ClipSource | None, model: Recognizer) -> Recognizer:
    """Structured, and then half of the channels of every head that is left."""
    found, config = structured(model), model.model.config
    channels = config.d_model // config.encoder_attention_heads // 2
    if calibration is None:
        for stack, index in layers_of(found.model):
            if stack.name == "encoder":
                narrow_heads(found.model, stack, index, stack.attentions[0], channels)
    else:
        reduction = HeadReduction(head_dim=channels)
        methods.handler(reduction)(found, reduction, StepContext(Path(), calibration=calibration))
    return found


def both(share: float, calibration: ClipSource | None, model: Recognizer) -> Recognizer:
    """Structured, and then so much low rank that this share is left."""
    narrower = structured(model)
    whole, left = (count_parameters(each.model).encoder for each in (model, narrower))
    return low_rank(share * whole / left, calibration, narrower)


def factor_evenly(recognizer: Recognizer, share: float) -> None:
    """Random factors that leave every linear of the encoder the same share of its weights, to the nearest rank."""
    model, stack = recognizer.model, recognizer.architecture.stack("encoder")
    linears = {place: get_linear(model, *place) for place in places(recognizer, ("encoder",))}
    whole = count_parameters(model).encoder
    weights = sum(linear.in_features * linear.out_features for linear in linears.values())
    left = (share * whole - (whole - weights)) / weights
    for (_, index, name), linear in linears.items():
        rank = left * linear.in_features * linear.out_features / (linear.in_features + linear.out_features)
        multiples = max(1, round(rank / RANK_MULTIPLE))
        factor_at_random(recognizer, stack, index, name, RANK_MULTIPLE * multiples)
