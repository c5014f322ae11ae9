"""The time of a recogniser's encoder over a window on this machine, and of its attentions by their head dimension."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sotto.architectures import Stack, get_setting
from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.exports.runtimes import RUNTIMES, Run, RuntimeName, median_seconds
from sotto.methods.head_narrowing import AttentionPlace
from sotto.progress import track
from sotto.surgery import head_dim_of, layer_path, narrow_heads

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every parameter of an attention; last the number of its heads and of their channels."""


class States(nn.Module):
    """An attention that gives its states alone."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.attention(hidden_states)[0]
        return states


def attention_times(
    recognizer: Recognizer, choices: Mapping[AttentionPlace, Iterable[int]], runtime: RuntimeName
) -> tuple[float, dict[AttentionPlace, dict[int, float]]]:
    """Seconds of the encoder as it stands, and of every attention by head dimension, that which it has included.

    All processes go by what the main one measures. Attentions of the same shapes are measured once.
    """
    shapes = {place: shapes_of(recognizer, place) for place in choices}
    first = {of: place for place, of in reversed(shapes.items())}
    encoder, times = found_by_main(
        lambda: measured(recognizer, {place: choices[place] for place in first.values()}, runtime)
    )
    return encoder, {place: times[first[of]] for place, of in shapes.items()}


def shapes_of(recognizer: Recognizer, place: AttentionPlace) -> Shapes:
    module = attention_at(recognizer, place)
    shapes = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    return (*shapes, ("heads", (module.num_heads, head_dim_of(recognizer.model, *place))))


def attention_at(recognizer: Recognizer, place: AttentionPlace) -> Any:
    stack, index, attention = place
    return recognizer.model.get_submodule(layer_path(stack, index, attention.name))


@torch.no_grad()
def measured(
    recognizer: Recognizer, choices: Mapping[AttentionPlace, Iterable[int]], name: RuntimeName
) -> tuple[float, dict[AttentionPlace, dict[int, float]]]:
    """Seconds of the encoder, and of each attention by head dimension."""
    runtime = RUNTIMES[name]
    timed = runtime.prepared(recognizer)
    with tempfile.TemporaryDirectory() as scratch:
        runs: list[dict[tuple[AttentionPlace, int], Run]] = []
        for place, own in track(choices.items(), f"attentions for {name}"):
            heard = states_for(timed, place[0])
            attentions = {channels: narrower(timed, place, channels) for channels in own}
            attentions[head_dim_of(timed.model, *place)] = attention_at(timed, place)
            runs.append(
                {
                    (place, channels): runtime.module_run(States(each), heard, Path(scratch))
                    for channels, each in attentions.items()
                }
            )
        encoder, seconds = median_seconds(runtime.encoder_run(timed, Path(scratch)), runs)
    times: dict[AttentionPlace, dict[int, float]] = {place: {} for place in choices}
    for (place, channels), median in seconds.items():
        times[place][channels] = median
    return encoder, times


def narrower(recognizer: Recognizer, place: AttentionPlace, channels: int) -> Any:
    """The attention with narrower heads, in a copy."""
    copied = recognizer.copy()
    narrow_heads(copied.model, *place, channels)
    return attention_at(copied, place)


def states_for(recognizer: Recognizer, stack: Stack) -> torch.Tensor:
    """What the layers of a stack hear: (1, positions, width) of noise."""
    model = recognizer.model
    assert stack.positions is not None
    positions, width = get_setting(model.config, stack.positions), stack.dimensions(model.config).width
    return torch.randn(1, positions, width).to(model.device, model.dtype)
