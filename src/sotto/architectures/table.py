"""The words of an architecture table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sotto.configuration import nearest
from sotto.errors import SottoError


@dataclass(frozen=True)
class Attention:
    """An attention module of a layer: names relative to the layer (`name`) and to the module (all others)."""

    name: str
    module_type: type
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "out_proj"
    position: str | None = None
    """projection of the relative positions, where there is one"""
    head_biases: tuple[str, ...] = ()
    """parameters (heads, head dimension) that are added to the queries"""
    head_count: str | None = "num_heads"
    """where the module reads its number of heads; None where it cannot have fewer than its config says"""
    head_dim: str | None = None
    """where the module reads its head dimension; None where it cannot have another than its config says"""
    same_input: tuple[str, ...] = ("query", "key", "value")
    """the projections that hear one and the same input"""
    layer_norm: str | None = None
    """the norm before the module (path within the layer), where it is outside of it; so in the other modules"""
    cached: bool = False
    """keeps keys and values from one token to the next"""
    reducible: bool = False
    """sees the whole window at once, without mask, cache or relative positions: can be computed in the reduced
    dimension"""

    @property
    def projections(self) -> tuple[str, str, str, str]:
        """Paths of query, key, value and output projection, relative to the layer."""
        return self.path(self.query), self.path(self.key), self.path(self.value), self.path(self.output)

    @property
    def inward(self) -> tuple[str, ...]:
        """Paths of the projections whose outputs are cut into heads, those of the positions included."""
        return self.projections[:3] + ((self.path(self.position),) if self.position else ())

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of all projections, in the order of computation."""
        return (*self.inward, self.projections[3])

    @property
    def sharing_input(self) -> tuple[str, ...]:
        """Paths of the projections that hear one and the same input."""
        return tuple(self.path(getattr(self, part)) for part in self.same_input)

    def path(self, part: str) -> str:
        return f"{self.name}.{part}"


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward network of a layer: the linear into the inner width, and the one out of it."""

    name: str
    up: str
    down: str
    layer_norm: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return self.up, self.down


@dataclass(frozen=True)
class Convolution:
    """The convolution module of a Conformer layer: names relative to the layer (`name`) and to the module.

    A pointwise convolution into two halves, of which GLU makes one; a depthwise one; a norm over its channels; an
    activation; a pointwise convolution out of them.
    """

    name: str
    pointwise_in: str
    depthwise: str
    norm: str
    pointwise_out: str
    layer_norm: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return ()

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Names of the four within the module, in the order of computation."""
        return self.pointwise_in, self.depthwise, self.norm, self.pointwise_out


LayerModule = Attention | FeedForward | Convolution


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
    """A stack of layers (encoder or decoder): where it is, what each layer has, and its settings' names in the config.

    `modules` are in the order of computation. A setting's name may be a path: `encoder_config.hidden_size`.
    """

    name: str
    layers: str
    modules: tuple[LayerModule, ...]
    layer_count: str
    width: str
    heads: str
    ffn: str
    positions: str | None = None
    """how many positions the stack always sees; None where that depends on the audio"""
    bias: str | None = None
    """whether linears have a bias; None where all have one but for those in `without_bias`"""
    without_bias: tuple[str, ...] = ()
    """linears (paths within the layer) that never have one"""

    @property
    def attentions(self) -> tuple[Attention, ...]:
        return tuple(module for module in self.modules if isinstance(module, Attention))

    @property
    def feed_forwards(self) -> tuple[FeedForward, ...]:
        return tuple(module for module in self.modules if isinstance(module, FeedForward))

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        return tuple(module for module in self.modules if isinstance(module, Convolution))

    def dimensions(self, config: Any) -> StackDimensions:
        names = (self.layer_count, self.width, self.heads, self.ffn)
        return StackDimensions(*(int(get_setting(config, name)) for name in names))

    def linears(self) -> Iterator[str]:
        """Paths of all linears of a layer, in the order of computation, relative to the layer."""
        for module in self.modules:
            yield from module.linears

    def linears_of_residual(self) -> Iterator[str]:
        """Paths of the linears whose inputs are as wide as the stack: all but those out of heads and inner widths."""
        outward = {ffn.down for ffn in self.feed_forwards} | {attention.projections[3] for attention in self.attentions}
        yield from (linear for linear in self.linears() if linear not in outward)

    def linear_shape(self, linear: str, dimensions: StackDimensions) -> tuple[int, int]:
        """(inputs, outputs) of a linear in the base."""
        for feed_forward in self.feed_forwards:
            if linear == feed_forward.up:
                return dimensions.width, dimensions.ffn
            if linear == feed_forward.down:
                return dimensions.ffn, dimensions.width
        return dimensions.width, dimensions.width

    def has_bias(self, linear: str, config: Any) -> bool:
        """Whether a linear of the base has a bias."""
        return linear not in self.without_bias and (self.bias is None or bool(get_setting(config, self.bias)))


@dataclass(frozen=True)
class Architecture:
    """One model family. `model_types` are the names it has in config.json, transformers' own first."""

    name: str
    model_types: tuple[str, str]
    stacks: tuple[Stack, ...]
    activation: str
    """name in the config of the activation, under which Sotto's checkpoints are marked"""
    tied_embedding: tuple[str, str] | None = None
    """where the table of tokens is and the output head that has the same weights"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """entries of the config that must have these values"""

    def stack(self, name: str) -> Stack:
        """Raises SottoError where there is no such stack."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise SottoError(f"{self.name} has no stack '{name}'{nearest(name, [stack.name for stack in self.stacks])}")


def get_setting(config: Any, path: str) -> Any:
    """An entry of a config; the path leads through the configs inside of it."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def set_setting(config: Any, path: str, value: Any) -> None:
    *inner, name = path.split(".")
    setattr(get_setting(config, ".".join(inner)) if inner else config, name, value)
