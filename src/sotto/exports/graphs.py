"""What is exported of a model: plain functions of tensors, and ONNX graphs of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from sotto.families import Ctc
from sotto.quiet import only_errors

OPSET = 20  # what onnxruntime-web knows too; with 23 attention is one operator


class Encoder(nn.Module):
    """`input_features` (batch, mel bins, frames) -> states (batch, positions, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.encoder(input_features).last_hidden_state
        return states


class FirstTokens(nn.Module):
    """Tokens (batch, tokens) and states -> logits, and for each layer keys and values of both attentions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.model(
            encoder_outputs=BaseModelOutput(encoder_hidden_states),
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers: Any = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        pairs = [(own.keys, own.values, cross.keys, cross.values) for own, cross in layers]
        return (outputs.logits, *(tensor for layer in pairs for tensor in layer))


class NextTokens(nn.Module):
    """Tokens, and what is kept of those before them -> logits, and keys and values of the self-attentions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        own, cross = DynamicCache(), DynamicCache()
        layers = len(past) // 4
        for layer in range(layers):
            key, value, cross_key, cross_value = past[4 * layer : 4 * layer + 4]
            own.update(key, value, layer)
            cross.update(cross_key, cross_value, layer)
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(layers), True)
        nothing = input_ids.new_zeros(input_ids.shape[0], 1, self.model.config.d_model, dtype=past[0].dtype)
        outputs = self.model(
            encoder_outputs=BaseModelOutput(nothing),  # its keys and values are cached
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        kept: Any = own.layers
        pairs = [(layer.keys, layer.values) for layer in kept]
        return (outputs.logits, *(tensor for pair in pairs for tensor in pair))


class FrameLogits(nn.Module):
    """What a CTC model hears and its mask -> logits (batch, frames, vocabulary)."""

    def __init__(self, family: Ctc) -> None:
        super().__init__()
        self.family = family
        self.model = family.model

    def forward(self, heard: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.family.run({self.model.main_input_name: heard, "attention_mask": attention_mask})


@dataclass(frozen=True)
class Sizes:
    """Sizes of an example that a graph is traced with: all are free in the graph, and none is 1."""

    batch: int = 2
    tokens: int = 3
    past: int = 5


def past_names(layers: int, kinds: Sequence[str] = ("decoder", "encoder")) -> list[str]:
    """Names of keys and values by layer, as transformers.js and optimum have them, without what comes before."""
    return [f"{layer}.{kind}.{part}" for layer in range(layers) for kind in kinds for part in ("key", "value")]


def encoder_graph(model: Any) -> onnx.ModelProto:
    config = model.config
    features = torch.randn(Sizes.batch, config.num_mel_bins, 2 * config.max_source_positions)
    shapes = ({0: Dim("batch")},)
    return to_onnx(Encoder(model), (features,), ["input_features"], ["last_hidden_state"], shapes)


def decoder_graphs(model: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Those of the first tokens, and of the next ones."""
    config, layers = model.config, model.config.decoder_layers
    batch, tokens, past_tokens = Dim("batch"), Dim("tokens"), Dim("past_tokens")
    states = torch.randn(Sizes.batch, config.max_source_positions, config.d_model)
    ids = torch.arange(Sizes.batch * Sizes.past).view(Sizes.batch, -1) % config.vocab_size
    with torch.no_grad():
        past = FirstTokens(model)(ids, states)[1:]
    first = to_onnx(
        FirstTokens(model),
        (ids[:, : Sizes.tokens], states),
        ["input_ids", "encoder_hidden_states"],
        ["logits", *(f"present.{name}" for name in past_names(layers))],
        ({0: batch, 1: tokens}, {0: batch}),
    )
    own, cross = {0: batch, 2: past_tokens}, {0: batch}
    following = to_onnx(
        NextTokens(model),
        (ids[:, : Sizes.tokens], tuple(past)),
        ["input_ids", *(f"past_key_values.{name}" for name in past_names(layers))],
        ["logits", *(f"present.{name}" for name in past_names(layers, ["decoder"]))],
        ({0: batch, 1: tokens}, tuple(own if ".decoder." in name else cross for name in past_names(layers))),
    )
    return first, following


def frame_graph(family: Ctc) -> onnx.ModelProto:
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * family.sampling_rate).astype(np.float32)
    inputs = family.inputs([noise, noise[: len(noise) // 2]])
    inputs["attention_mask"] = inputs["attention_mask"].long()  # as transformers.js gives it
    names = [family.model.main_input_name, "attention_mask"]
    free = {0: Dim("batch"), 1: Dim("length")}
    return to_onnx(FrameLogits(family), tuple(inputs[name] for name in names), names, ["logits"], (free, free))


def to_onnx(
    module: nn.Module, example: tuple[Any, ...], inputs: list[str], outputs: list[str], shapes: tuple[Any, ...]
) -> onnx.ModelProto:
    """The graph of `module`, traced on `example`; `shapes` names the sizes that are free."""
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return bare(program.model_proto)


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what the exporter notes of every node: in a small model that takes more than the weights."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter, onnxruntime's quantization and NNCF say of their own steps."""
    with only_errors("torch.onnx", "onnxscript", "nncf", None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
