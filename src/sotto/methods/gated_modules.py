"""The modules of a model that gates may close, and the units in each: heads, neurons, channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sotto.architectures import Attention, Convolution, FeedForward, LayerModule, Stack
from sotto.errors import SottoError
from sotto.surgery import drop_module, head_dim_of, keep_channels, keep_heads, layer_path, layers_of, narrow_ffn

Kind = Literal["modules", "heads", "neurons", "channels"]
KINDS: tuple[Kind, ...] = ("modules", "heads", "neurons", "channels")
UNITS: dict[type, Kind] = {Attention: "heads", FeedForward: "neurons", Convolution: "channels"}


@dataclass(frozen=True)
class GatedModule:
    """A module of layer `layer`. Everything that it says goes through its part `outward` (path from the model's root).

    `units` of them, each of `channels` of the inputs of `outward`; `has_units`: whether they have gates of their own.
    """

    stack: Stack
    layer: int
    module: LayerModule
    outward: str
    units: int
    channels: int
    has_units: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths from the model's root of what belongs to it, in the order of computation; the norm before it first."""
        within = self.module.linears if isinstance(self.module, FeedForward) else (self.module.name,)
        norm = () if self.module.layer_norm is None else (self.module.layer_norm,)
        return tuple(layer_path(self.stack, self.layer, name) for name in norm + within)

    def keep(self, model: Any, units: Sequence[int]) -> None:
        """Keep these units only; without any, the module goes."""
        if not units:
            drop_module(model, self.stack, self.layer, self.module)
        elif len(units) < self.units:
            if isinstance(self.module, Attention):
                keep_heads(model, self.stack, self.layer, self.module, units)
            elif isinstance(self.module, FeedForward):
                narrow_ffn(model, self.stack, self.layer, self.module, units)
            else:
                keep_channels(model, self.stack, self.layer, self.module, units)


def gated_modules(model: Any, stacks: Sequence[str], kinds: Sequence[Kind]) -> Iterator[GatedModule]:
    """Every module of the layers of `stacks`. Raises SottoError where one is no longer as its family builds it."""
    for stack, layer in layers_of(model):
        if stack.name in stacks:
            for module in stack.modules:
                yield gated_module(model, stack, layer, module, kinds)


def gated_module(model: Any, stack: Stack, layer: int, module: LayerModule, kinds: Sequence[Kind]) -> GatedModule:
    last = f"{module.name}.{module.pointwise_out}" if isinstance(module, Convolution) else module.linears[-1]
    path = layer_path(stack, layer, last)
    outward = model.get_submodule(path)
    for linear in module.linears:
        if type(model.get_submodule(layer_path(stack, layer, linear))) is not nn.Linear:
            where = layer_path(stack, layer, linear)
            raise SottoError(f"{where}: gates come before low rank and other forms of a linear, or without them")
    channels = head_dim_of(model, stack, layer, module) if isinstance(module, Attention) else 1
    fixed = isinstance(module, Attention) and module.head_count is None
    has_units = UNITS[type(module)] in kinds and not fixed
    return GatedModule(stack, layer, module, path, outward.weight.shape[1] // channels, channels, has_units)


def of_inputs(values: torch.Tensor, gated: GatedModule) -> torch.Tensor:
    """`values` (units,) for each input of the outward part (inputs,)."""
    return values.repeat_interleave(gated.channels)
