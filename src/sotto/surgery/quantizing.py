"""Weights in whole numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.errors import SottoError
from sotto.layers import GatheredLinear
from sotto.quantized_layers import QuantizedEmbedding, QuantizedLinear, TiedHead
from sotto.structure import Quantized, to_json
from sotto.surgery.places import layer_path, layers_of, parts_of, record, structure_of

Codes = tuple[torch.Tensor, torch.Tensor]
"""Codes (outputs, inputs) int8 and scales (outputs, blocks)."""


def quantize_linear(
    model: nn.Module, stack: Stack, index: int, linear: str, codes: Mapping[str, Codes], quantized: Quantized
) -> None:
    """Store the weights of a linear as `codes`, by the paths that `parts_of` gives."""
    shape_quantized(model, stack, index, linear, quantized)
    for path, part in parts_of(model, stack, index, linear).items():
        assert isinstance(part, QuantizedLinear)
        part.store(*codes[path])
    layer = structure_of(model).layer(stack.name, index)
    record(model, stack, index, replace(layer, quantized={**layer.quantized, linear: quantized}))


def shape_quantized(model: nn.Module, stack: Stack, index: int, linear: str, quantized: Quantized) -> None:
    """Quantized parts where a linear's were, with its biases; their weights are zero."""
    for path, old in parts_of(model, stack, index, linear).items():
        if not isinstance(old, nn.Linear):
            raise SottoError(f"{layer_path(stack, index, linear)} is quantized already")
        new = QuantizedLinear(
            old.in_features,
            old.out_features,
            quantized.bits,
            quantized.by_block,
            old.bias is not None,
            quantized.dynamic,
            isinstance(old, GatheredLinear),
            quantized.library,
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        new.bias = old.bias
        if isinstance(old, GatheredLinear):
            new.columns = old.columns
        model.set_submodule(path, new)


def quantize_embedding(model: Any, codes: Codes, quantized: Quantized) -> None:
    """Store the table of tokens, which is the output head's too, as `codes`. Raises SottoError where there is none."""
    shape_embedding(model, quantized)
    table, _head = tied_embedding(model)
    model.get_submodule(table).store(*codes)
    model.config.sotto = to_json(replace(structure_of(model), embedding=quantized))


def shape_embedding(model: Any, quantized: Quantized) -> None:
    table, head = tied_embedding(model)
    old = model.get_submodule(table)
    if not isinstance(old, nn.Embedding):
        raise SottoError(f"{table} is quantized already")
    tokens, width = old.weight.shape
    new = QuantizedEmbedding(
        width,
        tokens,
        quantized.bits,
        quantized.by_block,
        quantized.library,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    model.set_submodule(table, new)
    model.set_submodule(head, TiedHead(new, quantized.dynamic))
    model._tied_weights_keys = {}  # by name, for transformers: there is nothing left that it could tie
    model.all_tied_weights_keys = {}


def tied_embedding(model: Any) -> tuple[str, str]:
    """Where the table of tokens is, and the head of the same weights. Raises SottoError where there is none."""
    architecture = architecture_of(model.config)
    if architecture.tied_embedding is None or not model.config.tie_word_embeddings:
        raise SottoError(f"a {architecture.name} with an output head of its own has no table of tokens to quantize")
    return architecture.tied_embedding


def dequantize(model: Any) -> None:
    """Put plain floating weights, of the same values, where any are quantized."""
    for stack, index in layers_of(model):
        width = stack.dimensions(model.config).width
        for linear in stack.linears():
            for path, part in parts_of(model, stack, index, linear).items():
                if isinstance(part, QuantizedLinear):
                    model.set_submodule(path, floating_linear(part, width))
        record(model, stack, index, replace(structure_of(model).layer(stack.name, index), quantized={}))
    if structure_of(model).embedding is not None:
        table, head = tied_embedding(model)
        embedding = nn.Embedding.from_pretrained(model.get_submodule(table).weight, freeze=False)
        tokens, width = embedding.weight.shape
        tied = nn.Linear(width, tokens, bias=False, device="meta")
        tied.weight = embedding.weight
        model.set_submodule(table, embedding)
        model.set_submodule(head, tied)
        model.config.sotto = to_json(replace(structure_of(model), embedding=None))


def floating_linear(old: QuantizedLinear, width: int) -> nn.Linear:
    """A plain linear, or a gathered one out of `width` channels, that holds the weights that `old` stands for."""
    weight = old.weight
    new = nn.Linear(old.in_features, old.out_features, bias=False, device="meta")
    if old.columns is not None:
        new = GatheredLinear(width, len(old.columns), old.out_features, bias=False, device="meta")
        new.columns = old.columns
    new.weight = nn.Parameter(weight)
    new.register_parameter("bias", old.bias)
    return new
