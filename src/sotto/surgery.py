"""Changes of shape. Nothing else in Sotto may change one, and nothing here decides anything.

Every function changes the model in place and writes what it did into the record at `model.config.sotto`, so that the
record and the shapes never part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sotto.architectures import Attention, FeedForward, Stack, architecture_of, set_setting
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, GatheredLinear, PackedLinear, ReducedAttention, pack
from sotto.structure import LayerStructure, Structure, check, dense_structure, from_json, to_json

Linear = nn.Linear | FactoredLinear


def structure_of(model: Any) -> Structure:
    """The record of `model`; of a model that Sotto never touched, the record of a base."""
    record = getattr(model.config, "sotto", None)
    return from_json(record) if record else dense_structure(architecture_of(model.config), model.config)


def layer_path(stack: Stack, index: int, name: str = "") -> str:
    """Dotted path of a module of layer `index`."""
    return f"{stack.layers}.{index}.{name}".rstrip(".")


def get_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> Linear:
    module = model.get_submodule(layer_path(stack, index, linear))
    assert isinstance(module, nn.Linear | FactoredLinear)
    return module


def linears_of(model: Any) -> Iterator[tuple[Stack, int, str]]:
    """Stack, layer and path within the layer of all linears of all layers."""
    for stack in architecture_of(model.config).stacks:
        for index in range(len(model.get_submodule(stack.layers))):
            for name in stack.linears():
                yield stack, index, name


def factor(
    model: nn.Module,
    stack: Stack,
    index: int,
    linear: str,
    first: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor,
) -> None:
    """Replace a linear of layer `index` by two factors: `first` (rank, inputs), `second` (outputs, rank), `bias`."""
    old = get_linear(model, stack, index, linear)
    if isinstance(old, GatheredLinear):
        raise ValueError(
            f"{layer_path(stack, index, linear)} hears some inputs only; restore them before it is factored"
        )
    rank, inputs = first.shape
    if (inputs, second.shape[0]) != (old.in_features, old.out_features) or second.shape[1] != rank:
        raise ValueError(f"factors {tuple(first.shape)} and {tuple(second.shape)} do not fit {linear}: {old}")
    most = min(old.in_features, old.out_features)
    if not 1 <= rank <= most:
        raise SottoError(f"{layer_path(stack, index, linear)}: rank {rank} is not between 1 and {most}, its dimension")
    weight = old.weight
    new = FactoredLinear(inputs, rank, second.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.first.weight.copy_(first)
        new.second.weight.copy_(second)
        new.second.bias.copy_(bias)
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, ranks={**layer.ranks, linear: rank}))


def merge(model: Any, stack: Stack, index: int, linear: str) -> None:
    """Replace the two factors of a linear by their product, a plain linear that computes the same.

    The bias goes where the base has none and softmax does not see it: that of a key, or of a position, adds the same
    to all scores of a query. Raises SottoError where the base has none and it is heard.
    """
    old = get_linear(model, stack, index, linear)
    assert isinstance(old, FactoredLinear)
    has_bias = stack.has_bias(linear, model.config)
    if not has_bias and not any(linear in unheard_biases(attention) for attention in stack.attentions):
        raise SottoError(f"{layer_path(stack, index, linear)}: the base has no bias for that of the factors; keep them")
    for attention in stack.attentions:
        if linear in attention.inward:  # reduced attention needs no factors in its output
            expand_attention(model, stack, index, attention)
    weight = old.weight
    new = nn.Linear(old.in_features, old.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weight)
        if has_bias:
            new.bias.copy_(old.bias)
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    ranks = {name: rank for name, rank in layer.ranks.items() if name != linear}
    record(model, stack, index, replace(layer, ranks=ranks))


def gather_inputs(model: nn.Module, stack: Stack, index: int, linear: str, columns: Sequence[int]) -> None:
    """Have a linear of the residual stream hear the channels `columns` only; the others' weights are dropped."""
    old = get_linear(model, stack, index, linear)
    if linear not in stack.linears_of_residual() or type(old) is not nn.Linear:
        raise ValueError(f"{layer_path(stack, index, linear)}: not a plain linear of the residual stream")
    check_positions(columns, old.in_features, f"inputs of {layer_path(stack, index, linear)}")
    weight = old.weight
    new = GatheredLinear(old.in_features, len(columns), old.out_features, old.bias is not None, device="meta")
    new.columns = torch.as_tensor(list(columns), device=weight.device)
    new.weight = nn.Parameter(weight.detach()[:, new.columns], weight.requires_grad)
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, inputs={**layer.inputs, linear: len(columns)}))


def restore_inputs(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """The inverse of `gather_inputs`, with weights of zero for the channels that were dropped; else nothing."""
    old = get_linear(model, stack, index, linear)
    if not isinstance(old, GatheredLinear):
        return
    new = nn.Linear(old.inputs, old.out_features, old.bias is not None, device="meta")
    weight = old.weight.detach().new_zeros(old.out_features, old.inputs)
    new.weight = nn.Parameter(weight.index_copy(1, old.columns, old.weight.detach()), old.weight.requires_grad)
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    inputs = {name: count for name, count in layer.inputs.items() if name != linear}
    record(model, stack, index, replace(layer, inputs=inputs))


def pack_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """Replace a plain linear by one whose zeros take a bit each."""
    old = get_linear(model, stack, index, linear)
    assert type(old) is nn.Linear
    values, pattern = pack(old.weight.detach())
    new = PackedLinear(old.in_features, old.out_features, len(values), old.bias is not None, device="meta")
    new.values = nn.Parameter(values, old.weight.requires_grad)
    new.pattern = pattern
    new.bias = old.bias
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, nonzeros={**layer.nonzeros, linear: len(values)}))


def unpack_linear(model: nn.Module, stack: Stack, index: int, linear: str) -> None:
    """The inverse of `pack_linear`."""
    old = model.get_submodule(layer_path(stack, index, linear))
    assert isinstance(old, PackedLinear)
    new = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta")
    new.weight = nn.Parameter(old.weight.detach(), old.values.requires_grad)
    new.bias = old.bias  # type: ignore[assignment]
    model.set_submodule(layer_path(stack, index, linear), new)
    layer = structure_of(model).layer(stack.name, index)
    nonzeros = {name: count for name, count in layer.nonzeros.items() if name != linear}
    record(model, stack, index, replace(layer, nonzeros=nonzeros))


def unheard_biases(attention: Attention) -> tuple[str, ...]:
    """The projections whose bias adds the same to all scores of a query, which softmax does not see."""
    return (attention.projections[1], *attention.inward[3:])


def reduce_attention(model: nn.Module, stack: Stack, index: int, attention: Attention) -> None:
    """Compute an attention whose query, key and value projections are factored in their reduced dimension."""
    path = layer_path(stack, index, attention.name)
    old: Any = model.get_submodule(path)
    if isinstance(old, ReducedAttention):
        return
    query, key, value, output = (get_linear(model, stack, index, name) for name in attention.projections)
    if not attention.reducible or not all(isinstance(linear, FactoredLinear) for linear in (query, key, value)):
        raise SottoError(
            f"{path}: only self-attention over a whole window, with its projections factored, can be reduced"
        )
    assert isinstance(query, FactoredLinear)
    assert isinstance(key, FactoredLinear)
    assert isinstance(value, FactoredLinear)
    new = ReducedAttention(query, key, value, output, old.num_heads, old.dropout)
    new.train(old.training)
    model.set_submodule(path, new)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, reduced=(*layer.reduced, attention.name)))


def expand_attention(model: Any, stack: Stack, index: int, attention: Attention) -> None:
    """Undo `reduce_attention`: the same projections in the attention that the base has."""
    path = layer_path(stack, index, attention.name)
    old = model.get_submodule(path)
    if not isinstance(old, ReducedAttention):
        return
    dimensions = stack.dimensions(model.config)
    with torch.device("meta"):
        new = attention.module_type(dimensions.width, dimensions.heads, old.dropout, config=model.config)
    for name in (attention.query, attention.key, attention.value, attention.output):
        setattr(new, name, getattr(old, name))
    new.num_heads = old.num_heads
    new.train(old.training)
    model.set_submodule(path, new)
    layer = structure_of(model).layer(stack.name, index)
    kept = tuple(name for name in layer.reduced if name != attention.name)
    record(model, stack, index, replace(layer, reduced=kept))


def keep_heads(model: Any, stack: Stack, index: int, attention: Attention, heads: Sequence[int]) -> None:
    """Keep some heads of an attention, by their positions as the model now stands, and drop the others.

    Raises SottoError where transformers cannot compute the attention with fewer heads than its config says.
    """
    path = layer_path(stack, index, attention.name)
    if attention.head_count is None:
        raise SottoError(f"{path}: attention with rotary positions cannot lose heads; narrow its feed-forward networks")
    module = model.get_submodule(path)
    head_dim = stack.dimensions(model.config).head_dim
    output = get_linear(model, stack, index, attention.projections[3])
    check_positions(heads, output.in_features // head_dim, f"heads of {path}")
    channels = [head * head_dim + channel for head in heads for channel in range(head_dim)]
    for projection in attention.inward:
        narrow_outputs(get_linear(model, stack, index, projection), channels)
    narrow_inputs(output, channels)
    for name in attention.head_biases:
        bias = getattr(module, name)
        kept_rows = torch.as_tensor(list(heads), device=bias.device)
        setattr(module, name, nn.Parameter(bias.detach()[kept_rows], bias.requires_grad))
    set_head_count(module, attention.head_count, len(heads))
    layer = structure_of(model).layer(stack.name, index)
    known = layer.heads.get(attention.name, range(stack.dimensions(model.config).heads))
    kept = tuple(known[head] for head in heads)
    record(model, stack, index, replace(layer, heads={**layer.heads, attention.name: kept}))
    if attention.name == "encoder_attn":
        renumber_alignment_heads(model, lambda at, head: (at, heads.index(head)) if head in heads else None, index)


def set_head_count(module: Any, name: str, count: int) -> None:
    """Tell an attention module its number of heads; one that reads it from the config gets a config of its own."""
    if name.startswith("config."):
        module.config = copy.deepcopy(module.config)
    set_setting(module, name, count)


def narrow_ffn(model: nn.Module, stack: Stack, index: int, ffn: FeedForward, neurons: Sequence[int]) -> None:
    """Keep some neurons of a feed-forward network, by their positions as the model now stands."""
    up, down = (get_linear(model, stack, index, name) for name in (ffn.up, ffn.down))
    check_positions(neurons, up.out_features, f"neurons of {layer_path(stack, index, ffn.name)}")
    narrow_outputs(up, neurons)
    narrow_inputs(down, neurons)
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, ffn_widths={**layer.ffn_widths, ffn.name: len(neurons)}))


def keep_layers(model: Any, stack: Stack, layers: Sequence[int]) -> None:
    """Keep some layers of a stack, by their positions as the model now stands."""
    modules = model.get_submodule(stack.layers)
    check_positions(layers, len(modules), f"layers of the {stack.name}")
    structure = structure_of(model)
    model.set_submodule(stack.layers, nn.ModuleList(modules[index] for index in layers))
    for position, layer in enumerate(model.get_submodule(stack.layers)):
        for attention in stack.attentions:
            module = layer.get_submodule(attention.name)
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = position  # the key-value cache is indexed by it
    set_setting(model.config, stack.layer_count, len(layers))
    kept = [structure.stacks[stack.name].layers[index] for index in layers]
    model.config.sotto = to_json(structure.with_layers(stack.name, kept))
    if stack.name == "decoder":
        renumber_alignment_heads(model, lambda at, head: (layers.index(at), head) if at in layers else None)


def apply_structure(model: Any, structure: Structure) -> None:
    """Give a base of the right number of layers the shapes of `structure`; its weights are then meaningless.

    For loading: the model may be on the meta device. Raises SottoError where the record does not fit.
    """
    check(structure, model.config)
    architecture = architecture_of(model.config)
    for stack in architecture.stacks:
        for index, layer in enumerate(structure.stacks[stack.name].layers):
            shape_layer(model, stack, index, layer)
    model.config.sotto = to_json(structure)


def shape_layer(model: nn.Module, stack: Stack, index: int, layer: LayerStructure) -> None:
    """The shapes of one layer, from the outside in: heads and neurons first, then factors, then reduced attention."""
    for attention in stack.attentions:
        if attention.name in layer.heads:
            keep_heads(model, stack, index, attention, range(len(layer.heads[attention.name])))
    for ffn in stack.feed_forwards:
        if ffn.name in layer.ffn_widths:
            narrow_ffn(model, stack, index, ffn, range(layer.ffn_widths[ffn.name]))
    for name, rank in layer.ranks.items():
        old = get_linear(model, stack, index, name)
        weight = old.weight
        new = FactoredLinear(old.in_features, rank, old.out_features, device=weight.device, dtype=weight.dtype)
        model.set_submodule(layer_path(stack, index, name), new)
    for name, kept in layer.inputs.items():
        whole = get_linear(model, stack, index, name)
        gathered = GatheredLinear(
            whole.in_features,
            kept,
            whole.out_features,
            whole.bias is not None,
            device=whole.weight.device,
            dtype=whole.weight.dtype,
        )
        model.set_submodule(layer_path(stack, index, name), gathered)
    structure = structure_of(model)
    model.config.sotto = to_json(structure.with_layer(stack.name, index, replace(layer, reduced=(), nonzeros={})))  # type: ignore[union-attr]
    for attention in stack.attentions:
        if attention.name in layer.reduced:
            reduce_attention(model, stack, index, attention)
    for name, nonzeros in layer.nonzeros.items():
        plain = get_linear(model, stack, index, name)
        packed = PackedLinear(
            plain.in_features,
            plain.out_features,
            nonzeros,
            plain.bias is not None,
            device=plain.weight.device,
            dtype=plain.weight.dtype,
        )
        model.set_submodule(layer_path(stack, index, name), packed)


def narrow_outputs(linear: Linear, rows: Sequence[int]) -> None:
    """Keep the output channels `rows` of a linear, in place."""
    last = linear.second if isinstance(linear, FactoredLinear) else linear
    index = torch.as_tensor(list(rows), device=last.weight.device)
    last.weight = nn.Parameter(last.weight.detach()[index], last.weight.requires_grad)
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias.detach()[index], last.bias.requires_grad)
    last.out_features = len(rows)


def narrow_inputs(linear: Linear, columns: Sequence[int]) -> None:
    """Keep the input channels `columns` of a linear, in place."""
    first = linear.first if isinstance(linear, FactoredLinear) else linear
    index = torch.as_tensor(list(columns), device=first.weight.device)
    first.weight = nn.Parameter(first.weight.detach()[:, index], first.weight.requires_grad)
    first.in_features = len(columns)


def record(model: Any, stack: Stack, index: int, layer: LayerStructure) -> None:
    model.config.sotto = to_json(structure_of(model).with_layer(stack.name, index, layer))


def check_positions(positions: Sequence[int], count: int, what: str) -> None:
    ordered = list(positions)
    if not ordered or ordered != sorted(set(ordered)) or ordered[0] < 0 or ordered[-1] >= count:
        raise SottoError(f"{what}: {ordered} is not an ascending choice out of {count}")


def renumber_alignment_heads(model: Any, moved: Any, only_layer: int | None = None) -> None:
    """Keep `generation_config.alignment_heads`, pairs of (decoder layer, head), true after layers or heads went.

    `moved(layer, head)` gives the new pair, or None where it is gone. Word timestamps need these heads.
    """
    pairs = getattr(model.generation_config, "alignment_heads", None) if model.can_generate() else None
    if pairs is None:
        return
    kept = [moved(at, head) if only_layer in (None, at) else (at, head) for at, head in pairs]
    model.generation_config.alignment_heads = [list(pair) for pair in kept if pair is not None] or None
