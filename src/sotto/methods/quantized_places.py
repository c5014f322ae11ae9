"""Which matrices of a model are quantized, and to what: what quantization and training for it have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from sotto.architectures import Stack
from sotto.errors import SottoError
from sotto.quantization_math import Scales
from sotto.surgery import layers_of, parts_of, tied_embedding

Bits = Literal[4, 8]

Place = tuple[Stack, int, str]
"""Stack, layer and path within the layer."""


@dataclass(frozen=True)
class QuantizedPlaces:
    """All linears of the layers that are named, and the table of tokens where that has bits of its own."""

    bits: Bits = 8
    scales: Scales = "channel"
    """tensor: one scale a matrix, as in Whisper-KDQ's code. channel: one an output. block: one for 32 inputs of an
    output"""
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """stack -> its layers, where it is not all of them"""
    embedding_bits: Bits | None = None
    """for the table of tokens, which is the output head too: in a small Whisper most of the decoder"""

    def __post_init__(self) -> None:
        if not self.stacks:
            raise SottoError("stacks must name encoder, decoder or both")
        for name in self.layers:
            if name not in self.stacks:
                raise SottoError(f"layers: '{name}' is not among stacks, {', '.join(self.stacks)}")

    def takes(self, stack: str, index: int) -> bool:
        """Whether the linears of a layer are among them."""
        return stack in self.stacks and index in self.layers.get(stack, (index,))

    def linears(self, model: Any) -> Iterator[Place]:
        """Stack, layer and path within the layer. Raises SottoError for a layer that there is not."""
        counts: dict[str, int] = {}
        for stack, index in layers_of(model):
            counts[stack.name] = index + 1
            if self.takes(stack.name, index):
                for name in stack.linears():
                    yield stack, index, name
        for stack_name, layers in self.layers.items():
            if wrong := [layer for layer in layers if not 0 <= layer < counts.get(stack_name, 0)]:
                raise SottoError(f"layers: the {stack_name} has no layer {wrong[0]}; they are counted from 0")

    def floating_linears(self, model: Any, method: str) -> list[tuple[Place, dict[str, nn.Module]]]:
        """The linears and their parts by path, for `method` as it stands in messages.

        Raises SottoError where there are none, or no table of tokens that is named, or one of these is quantized.
        """
        found = [(place, parts_of(model, *place)) for place in self.linears(model)]
        if not found:
            raise SottoError(f"{method}: there are no linears in the layers of {' and '.join(self.stacks)}")
        modules = [part for _, parts in found for part in parts.values()]
        if self.embedding_bits is not None:
            modules.append(model.get_submodule(tied_embedding(model)[0]))
        if not all(isinstance(module, nn.Linear | nn.Embedding) for module in modules):
            raise SottoError(f"{method}: the model is quantized already; start from the one that it was made of")
        return found
