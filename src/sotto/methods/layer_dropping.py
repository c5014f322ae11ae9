"""Layers taken out: the oldest way to a smaller model, and to a student that is cut from its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.families import Inputs
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.method import StepContext, methods
from sotto.surgery import keep_layers

COMPARED_WINDOWS = 16  # what is missed most is missed in few windows too


@dataclass(frozen=True)
class LayerDropping:
    """Keeps so many layers of a stack; a stack that is not named stays whole."""

    encoder: int | None = None
    decoder: int | None = None
    by: Literal["evenly", "divergence"] = "evenly"
    """evenly: the first and the last stay, and others spread between them. divergence: one goes after the other, each
    time the one without which the scores move least from those of the whole model, on calibration clips"""

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise SottoError("layer_dropping: give encoder, decoder or both")
        for name in ("encoder", "decoder"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SottoError(f"{name} must keep at least 1 layer, found {value}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("calibration",) if self.by == "divergence" else ()


@methods.register("layer_dropping", LayerDropping)
def apply_layer_dropping(recognizer: Recognizer, config: LayerDropping, context: StepContext) -> list[str]:
    """Drop layers of `recognizer` in place.

    Raises SottoError where there are fewer, or no such stack, or no calibration clips where they are needed.
    """
    wanted = {name: getattr(config, name) for name in ("encoder", "decoder") if getattr(config, name) is not None}
    counts = {name: len(recognizer.model.get_submodule(recognizer.architecture.stack(name).layers)) for name in wanted}
    for name, kept in wanted.items():
        if kept > counts[name]:
            raise SottoError(f"layer_dropping: the {name} has {counts[name]} layers; {kept} cannot be kept")
    transcripts = compared(recognizer, context) if config.by == "divergence" else ()
    whole = recognizer.copy() if config.by == "divergence" else recognizer
    notes = []
    for name, kept in wanted.items():
        stack = recognizer.architecture.stack(name)
        layers = evenly(kept, counts[name])
        if config.by == "divergence":
            layers = least_missed(recognizer, whole, stack, kept, transcripts)
        keep_layers(recognizer.model, stack, layers)
        notes.append(f"{name}: layers {', '.join(map(str, layers))} of {counts[name]} kept")
    return notes


def evenly(kept: int, count: int) -> list[int]:
    """Positions spread from the first to the last; one alone is the first."""
    return [0] if kept == 1 else [index * (count - 1) // (kept - 1) for index in range(kept)]


def compared(recognizer: Recognizer, context: StepContext) -> Sequence[Inputs]:
    """Windows of the calibration clips with the whole model's transcripts."""
    if context.calibration is None:
        raise SottoError("layer_dropping by divergence needs calibration clips; give data.calibration")
    heard = context.calibration.spread(COMPARED_WINDOWS)
    return transcripts_of(recognizer, heard, COMPARED_WINDOWS, "comparing layers")


def least_missed(
    recognizer: Recognizer, whole: Recognizer, stack: Stack, kept: int, transcripts: Sequence[Inputs]
) -> list[int]:
    """Positions of the `kept` layers that are left when those that are missed least have gone, one after the other."""
    layers = list(range(len(recognizer.model.get_submodule(stack.layers))))
    while len(layers) > kept:
        missed = {}
        for layer in layers:
            tried = recognizer.copy()
            keep_layers(tried.model, stack, [other for other in layers if other != layer])
            moved = divergence(tried, whole, transcripts)
            missed[layer] = math.inf if math.isnan(moved) else moved
        layers.remove(min(missed, key=lambda layer: missed[layer]))
    return layers
