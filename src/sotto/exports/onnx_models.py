"""Exported models that are called as transformers' own: their forward passes are onnxruntime's.

So decoding, long audio, timestamps, beams and everything that Sotto measures is the code that runs the original.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import ParakeetForCTC, Wav2Vec2ConformerForCTC, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, Seq2SeqLMOutput

from sotto.errors import SottoError
from sotto.exports.graphs import past_names
from sotto.exports.merging import CHOICE

Arrays = dict[str, NDArray[Any]]


class Graph:
    """One ONNX file, on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        found = self.session.run(self.outputs, arrays)
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, found, strict=True)}


class OnnxEncoder(nn.Module):
    """Whisper's encoder."""

    main_input_name = "input_features"

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        found = self.graph({"input_features": input_features.float().numpy()})
        return BaseModelOutput(last_hidden_state=found["last_hidden_state"])


class OnCpu:
    """What transformers asks of a model that has no weights of its own."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


class GraphWhisper(OnCpu, WhisperForConditionalGeneration):
    """Whisper whose encoder and decoder are graphs; no weights by themselves, and no attentions to look at."""

    def __init__(self, config: Any, encoder: nn.Module, decoder: Graph) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph_encoder = encoder
        self.decoder_graph = decoder

    def get_encoder(self, modality: str | None = None) -> Any:
        return self.graph_encoder

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        if output_attentions:
            raise SottoError("an exported model gives no attentions; times of words need the checkpoint")
        assert decoder_input_ids is not None
        if encoder_outputs is None:
            assert input_features is not None
            encoder_outputs = self.graph_encoder(input_features)
        cache = past_key_values or EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.scores(decoder_input_ids, encoder_outputs[0].float(), cache)
        return Seq2SeqLMOutput(logits=logits, past_key_values=None if use_cache is False else cache)

    def scores(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        """Logits (batch, tokens, vocabulary) after the tokens of `cache`, to which these are added."""
        raise NotImplementedError


class OnnxWhisper(GraphWhisper):
    """With the merged decoder that optimum and transformers.js have."""

    def __init__(self, config: Any, encoder: Graph, decoder: Graph) -> None:
        super().__init__(config, OnnxEncoder(encoder), decoder)
        self.names = past_names(config.decoder_layers)

    def scores(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        arrays = {
            "input_ids": tokens.numpy(),
            "encoder_hidden_states": states.numpy(),
            CHOICE: np.array([cache.get_seq_length() > 0]),
            **self.past(cache),
        }
        found = self.decoder_graph(arrays)
        keep(cache, found, self.config.decoder_layers, tokens.shape[1])
        return found["logits"]

    def past(self, cache: EncoderDecoderCache) -> Arrays:
        """What is kept of each layer; empty before the first tokens."""
        if not cache.get_seq_length():
            nothing = np.zeros((0, 0, 0, 0), np.float32)
            return {f"past_key_values.{name}": nothing for name in self.names}
        layers: Any = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        kept = [tensor for own, cross in layers for tensor in (own.keys, own.values, cross.keys, cross.values)]
        return {f"past_key_values.{name}": tensor.numpy() for name, tensor in zip(self.names, kept, strict=True)}


def keep(cache: EncoderDecoderCache, found: dict[str, torch.Tensor], layers: int, tokens: int) -> None:
    """Put what `found` has of the last `tokens` into the cache, and of the audio where that was not yet there."""
    for layer in range(layers):
        key, value = (found[f"present.{layer}.decoder.{part}"][:, :, -tokens:] for part in ("key", "value"))
        cache.self_attention_cache.update(key, value, layer)
        if not cache.is_updated.get(layer):
            key, value = (found[f"present.{layer}.encoder.{part}"] for part in ("key", "value"))
            cache.cross_attention_cache.update(key, value, layer)
            cache.is_updated[layer] = True


class OnnxCtc(OnCpu):
    """What both kinds of CTC models share."""

    graph: Graph
    main_input_name: str

    def forward(self, attention_mask: torch.Tensor, **heard: torch.Tensor) -> CausalLMOutput:
        (samples,) = (value for name, value in heard.items() if name == self.main_input_name)
        arrays = {self.main_input_name: samples.float().numpy(), "attention_mask": attention_mask.numpy()}
        return CausalLMOutput(logits=self.graph(arrays)["logits"])


class OnnxParakeet(OnnxCtc, ParakeetForCTC):
    """Parakeet-CTC as one graph."""

    def __init__(self, config: Any, graph: Graph) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph = graph


class OnnxWav2Vec2Conformer(OnnxCtc, Wav2Vec2ConformerForCTC):
    """Wav2Vec2-Conformer with a CTC head as one graph."""

    def __init__(self, config: Any, graph: Graph) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph = graph
