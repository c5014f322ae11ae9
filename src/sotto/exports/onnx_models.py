"""Models whose graphs are onnxruntime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers.cache_utils import EncoderDecoderCache

from sotto.exports.graph_models import Arrays, Graph, GraphEncoder, GraphWhisper
from sotto.exports.graphs import past_names
from sotto.exports.merging import CHOICE


class OnnxGraph:
    """One ONNX file, on the CPU, with as many threads as torch has.

    They spin for a while after their work, so that the next step of a decoder finds them awake; but a graph that is run
    in turn with others (`spins=False`) would find a core taken by those before it.
    """

    def __init__(self, path: Path, spins: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        found = self.session.run(self.outputs, arrays)
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, found, strict=True)}


class OnnxWhisper(GraphWhisper):
    """Whisper with the merged decoder of optimum and transformers.js."""

    def __init__(self, config: Any, encoder: Graph, decoder: Graph) -> None:
        super().__init__(config, GraphEncoder(encoder))
        self.decoder_graph = decoder
        self.names = past_names(config.decoder_layers)

    def step(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
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
