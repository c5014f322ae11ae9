"""The record of how a model differs in shape from its base: data only, versioned, JSON, and strict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sotto.architectures import Architecture, LayerModule, Stack, StackDimensions, architecture_of, get_architecture
from sotto.configuration import nearest, parse, to_plain
from sotto.errors import SottoError
from sotto.quantization_math import Library

VERSION = 1


@dataclass(frozen=True)
class Quantized:
    """How a matrix is stored in whole numbers."""

    bits: int
    by_block: bool = False
    """whether every 32 inputs of an output have a scale of their own, and not all of them one"""
    dynamic: bool = False
    """whether inputs are rounded to 8 bits as they come, and products taken in whole numbers"""
    library: Library = "torch"
    """what takes the products"""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise SottoError(f"bits is {self.bits}; it can be 4 or 8")
        if self.bits == 8 and not self.by_block:
            return
        if self.dynamic:
            raise SottoError("products in whole numbers need 8 bits and one scale an output")
        if self.library == "torchao":
            raise SottoError("products by torchao need 8 bits and one scale an output")


@dataclass(frozen=True)
class LayerStructure:
    """How one layer differs from the layer `base_layer` of the base. What is not named is as it was."""

    base_layer: int
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """attention -> the base's heads that are kept, in order"""
    ffn_widths: Mapping[str, int] = field(default_factory=dict)
    """feed-forward network -> inner width"""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """linear (path within the layer) -> rank of its two factors"""
    reduced: tuple[str, ...] = ()
    """attentions computed in the reduced dimension"""
    inputs: Mapping[str, int] = field(default_factory=dict)
    """linear that hears some channels of the residual stream only -> how many"""
    nonzeros: Mapping[str, int] = field(default_factory=dict)
    """linear that is packed on disk -> how many of its weights are not zero"""
    channels: Mapping[str, int] = field(default_factory=dict)
    """convolution module -> how many channels it has"""
    absent: tuple[str, ...] = ()
    """modules that the layer lacks"""
    quantized: Mapping[str, Quantized] = field(default_factory=dict)
    """linear (of a factored one both factors) -> how its weights are stored"""
    head_dims: Mapping[str, int] = field(default_factory=dict)
    """attention -> channels of each of its heads; scores are scaled as in the base all the same"""

    def without(self, module: LayerModule) -> LayerStructure:
        """A copy that lacks `module`, and says nothing else of it."""
        outside: dict[str, Any] = {}
        for name in ("heads", "ffn_widths", "ranks", "inputs", "nonzeros", "channels", "quantized", "head_dims"):
            entries: Mapping[str, Any] = getattr(self, name)
            outside[name] = {key: value for key, value in entries.items() if key not in (module.name, *module.linears)}
        reduced = tuple(name for name in self.reduced if name != module.name)
        others = tuple(name for name in self.absent if name != module.name)
        return replace(self, **outside, reduced=reduced, absent=(*others, module.name))


@dataclass(frozen=True)
class StackStructure:
    """The layers of one stack, and how many the base has."""

    base_layers: int
    layers: tuple[LayerStructure, ...]


@dataclass(frozen=True)
class Structure:
    """The record of a whole model. `stacks`: encoder, decoder."""

    architecture: str
    stacks: Mapping[str, StackStructure]
    version: int = VERSION
    embedding: Quantized | None = None
    """how the table of tokens is stored, which is the output head too"""

    def layer(self, stack: str, index: int) -> LayerStructure:
        return self.stacks[stack].layers[index]

    def with_layer(self, stack: str, index: int, layer: LayerStructure) -> Structure:
        """A copy in which layer `index` of `stack`, counted as the model now stands, is `layer`."""
        layers = list(self.stacks[stack].layers)
        layers[index] = layer
        return self.with_layers(stack, layers)

    def with_layers(self, stack: str, layers: Iterable[LayerStructure]) -> Structure:
        """A copy in which the layers of `stack` are `layers`."""
        return replace(self, stacks={**self.stacks, stack: replace(self.stacks[stack], layers=tuple(layers))})


def dense_structure(architecture: Architecture, config: Any) -> Structure:
    """The record of a model that is its own base."""
    stacks = {}
    for stack in architecture.stacks:
        count = stack.dimensions(config).layers
        stacks[stack.name] = StackStructure(count, tuple(LayerStructure(index) for index in range(count)))
    return Structure(architecture.name, stacks)


def to_json(structure: Structure) -> dict[str, Any]:
    """The record as it stands in config.json, entries that say nothing left out."""
    plain: dict[str, Any] = to_plain(structure)
    if structure.embedding is None:
        del plain["embedding"]
    for stack in plain["stacks"].values():
        stack["layers"] = [
            {key: value for key, value in layer.items() if key == "base_layer" or value} for layer in stack["layers"]
        ]
    return plain


def from_json(values: Any) -> Structure:
    """Raises SottoError on an unknown key, a wrong type, or a version that this Sotto does not know."""
    version = values.get("version") if isinstance(values, Mapping) else None
    if not isinstance(version, int) or version < 1:
        raise SottoError("the structure record in config.json has no version; it was not written by Sotto")
    if version > VERSION:
        raise SottoError(
            f"the structure record is of version {version} and this Sotto reads up to {VERSION}; upgrade sotto"
        )
    return parse(Structure, values, "structure record")


def check(structure: Structure, config: Any) -> None:
    """Raises SottoError where the record does not fit `config`, or asks for more than the base has."""
    architecture = get_architecture(structure.architecture)
    own = architecture_of(config)
    if architecture is not own:
        raise SottoError(f"structure record: is of a {architecture.name}, but config.json is that of a {own.name}")
    known = [stack.name for stack in architecture.stacks]
    for name in structure.stacks:
        if name not in known:
            raise SottoError(f"structure record: unknown stack '{name}'{nearest(name, known)}")
    for stack in architecture.stacks:
        if stack.name not in structure.stacks:
            raise SottoError(f"structure record: stack '{stack.name}' is missing")
        check_stack(structure.stacks[stack.name], stack, stack.dimensions(config))
    if structure.embedding is not None and architecture.tied_embedding is None:
        raise SottoError(f"structure record: a {architecture.name} has no table of tokens that could be quantized")


def check_stack(record: StackStructure, stack: Stack, dimensions: StackDimensions) -> None:
    if len(record.layers) != dimensions.layers:
        raise SottoError(
            f"structure record: {stack.name} has {len(record.layers)} layers, but {stack.layer_count} in config.json "
            f"is {dimensions.layers}"
        )
    check_subset([layer.base_layer for layer in record.layers], record.base_layers, f"{stack.name}: base layers")
    for index, layer in enumerate(record.layers):
        check_layer(layer, stack, dimensions, f"{stack.name} layer {index}")


def check_layer(layer: LayerStructure, stack: Stack, dimensions: StackDimensions, where: str) -> None:
    attentions = [attention.name for attention in stack.attentions]
    for name, heads in layer.heads.items():
        check_name(name, attentions, f"{where}: attention")
        check_subset(heads, dimensions.heads, f"{where}: heads of {name}")
    for name, channels in layer.head_dims.items():
        check_name(name, [found.name for found in stack.attentions if found.head_dim], f"{where}: attention")
        check_bound(channels, dimensions.head_dim, f"{where}: head dimension of {name}")
    for name, width in layer.ffn_widths.items():
        check_name(name, [ffn.name for ffn in stack.feed_forwards], f"{where}: feed-forward network")
        check_bound(width, dimensions.ffn, f"{where}: width of {name}")
    for name, rank in layer.ranks.items():
        check_name(name, list(stack.linears()), f"{where}: linear")
        check_bound(rank, min(stack.linear_shape(name, dimensions)), f"{where}: rank of {name}")
    for name, kept in layer.inputs.items():
        check_name(name, list(stack.linears_of_residual()), f"{where}: linear of the residual stream")
        check_bound(kept, dimensions.width, f"{where}: inputs of {name}")
        if name in layer.ranks:
            raise SottoError(f"structure record: {where}: {name} is factored, and hears all of its inputs")
    for name, count in layer.nonzeros.items():
        check_name(name, list(stack.linears()), f"{where}: linear")
        inputs, outputs = stack.linear_shape(name, dimensions)
        if name in layer.ranks or name in layer.inputs:
            raise SottoError(f"structure record: {where}: {name} is no plain linear, and cannot be packed")
        if not 0 <= count <= inputs * outputs:
            raise SottoError(f"structure record: {where}: {name}: {count} of {inputs * outputs} weights are not zero")
    for name, count in layer.channels.items():
        check_name(name, [convolution.name for convolution in stack.convolutions], f"{where}: convolution module")
        check_bound(count, dimensions.width, f"{where}: channels of {name}")
    check_quantized(layer, stack, where)
    check_absent(layer, stack, where)
    check_reduced(layer, stack, where)


def check_quantized(layer: LayerStructure, stack: Stack, where: str) -> None:
    for name in layer.quantized:
        check_name(name, list(stack.linears()), f"{where}: linear")
        if name in layer.nonzeros:
            raise SottoError(f"structure record: {where}: {name} is quantized, and cannot be packed too")


def check_reduced(layer: LayerStructure, stack: Stack, where: str) -> None:
    reducible = {attention.name: attention for attention in stack.attentions if attention.reducible}
    for name in layer.reduced:
        check_name(name, list(reducible), f"{where}: attention")
        if any(projection not in layer.ranks for projection in reducible[name].projections[:3]):
            raise SottoError(f"structure record: {where}: {name} is reduced, but its projections are not all factored")


def check_absent(layer: LayerStructure, stack: Stack, where: str) -> None:
    modules = {module.name: module for module in stack.modules}
    for name in layer.absent:
        check_name(name, list(modules), f"{where}: module")
        if replace(layer, absent=()).without(modules[name]) != replace(layer, absent=(name,)):
            raise SottoError(f"structure record: {where}: {name} is absent, and has a shape")
    if len(set(layer.absent)) < len(layer.absent):
        raise SottoError(f"structure record: {where}: {list(layer.absent)} names a module twice")


def check_name(name: str, known: list[str], where: str) -> None:
    if name not in known:
        raise SottoError(f"structure record: {where} '{name}' does not exist{nearest(name, known)}")


def check_bound(value: int, most: int, where: str) -> None:
    if not 1 <= value <= most:
        raise SottoError(f"structure record: {where} is {value}; the base allows 1 to {most}")


def check_subset(kept: Iterable[int], count: int, where: str) -> None:
    kept = list(kept)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise SottoError(f"structure record: {where} {kept} are not an ascending choice out of the base's {count}")
