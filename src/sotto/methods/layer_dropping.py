"""Layers taken out, those that stay chosen evenly: the oldest way to a smaller model."""

from __future__ import annotations

from dataclasses import dataclass

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.method import StepContext, methods
from sotto.surgery import keep_layers


@dataclass(frozen=True)
class LayerDropping:
    """Keeps so many layers of a stack, the first and the last among them; a stack that is not named stays whole."""

    encoder: int | None = None
    decoder: int | None = None

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise SottoError("layer_dropping: give encoder, decoder or both")
        for name in ("encoder", "decoder"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SottoError(f"{name} must keep at least 1 layer, found {value}")


@methods.register("layer_dropping", LayerDropping)
def apply_layer_dropping(recognizer: Recognizer, config: LayerDropping, context: StepContext) -> list[str]:
    """Drop layers of `recognizer` in place. Raises SottoError where there are fewer, or no such stack."""
    notes = []
    for name in ("encoder", "decoder"):
        kept = getattr(config, name)
        if kept is None:
            continue
        stack = recognizer.architecture.stack(name)
        count = len(recognizer.model.get_submodule(stack.layers))
        if kept > count:
            raise SottoError(f"layer_dropping: the {name} has {count} layers; {kept} cannot be kept")
        layers = evenly(kept, count)
        keep_layers(recognizer.model, stack, layers)
        notes.append(f"{name}: layers {', '.join(map(str, layers))} of {count} kept")
    return notes


def evenly(kept: int, count: int) -> list[int]:
    """Positions spread from the first to the last; one alone is the first."""
    return [0] if kept == 1 else [index * (count - 1) // (kept - 1) for index in range(kept)]
