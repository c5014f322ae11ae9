"""The words of an architecture table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sotto.configuration import nearest
from sotto.errors import SottoError


@dataclass(frozen=True)
class Attention:
    """An attention module of a layer, and its projections: names relative to the layer and to the module."""

    name: str
    module_type: type
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "out_proj"
    reducible: bool = False
    """sees the whole window at once, without mask or cache: can be computed in the reduced dimension"""

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of query, key, value and output projection, relative to the layer."""
        return tuple(f"{self.name}.{part}" for part in (self.query, self.key, self.value, self.output))


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward network of a layer: the linear into the inner width, and the one out of it."""

    name: str
    up: str
    down: str


@dataclass(frozen=True)
class StackDimensions:
    """Sizes of one stack in a model's config."""

    layers: int
    width: int
    heads: int
    ffn: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Stack:
    """A stack of layers (encoder or decoder): where it is, what each layer has, and its sizes' names in the config."""

    name: str
    module: str
    layers: str
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    layer_count: str
    width: str
    heads: str
    ffn: str

    def dimensions(self, config: Any) -> StackDimensions:
        names = (self.layer_count, self.width, self.heads, self.ffn)
        return StackDimensions(*(int(getattr(config, name)) for name in names))

    def linears(self) -> Iterator[str]:
        """Paths of all linears of a layer, in the order of computation, relative to the layer."""
        for attention in self.attentions:
            yield from attention.projections
        for feed_forward in self.feed_forwards:
            yield feed_forward.up
            yield feed_forward.down

    def linear_shape(self, linear: str, dimensions: StackDimensions) -> tuple[int, int]:
        """(inputs, outputs) of a linear in the base."""
        for feed_forward in self.feed_forwards:
            if linear == feed_forward.up:
                return dimensions.width, dimensions.ffn
            if linear == feed_forward.down:
                return dimensions.ffn, dimensions.width
        return dimensions.width, dimensions.width


@dataclass(frozen=True)
class Architecture:
    """One model family. `model_types` are the names it has in config.json."""

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]

    def stack(self, name: str) -> Stack:
        """Raises SottoError where there is no such stack."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise SottoError(f"{self.name} has no stack '{name}'{nearest(name, [stack.name for stack in self.stacks])}")
