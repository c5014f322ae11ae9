"""Graphs for sherpa-onnx that are called as transformers' own models are: see `graph_models`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from sotto.exports.graph_models import Graph, GraphEncoder, GraphParakeet, GraphWav2Vec2Conformer, GraphWhisper
from sotto.exports.sherpa_graphs import AUDIO_CACHES, TOKEN_CACHES


class SherpaEncoder(GraphEncoder):
    """Whisper's encoder, whose states are keys and values of the audio for all layers of the decoder."""

    gives_states = False

    def forward(self, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        """States (batch, positions, twice the layers times the width)."""
        found = self.graph({"mel": input_features.float().numpy()})
        kept = torch.stack([found[name] for name in AUDIO_CACHES])
        return BaseModelOutput(last_hidden_state=kept.permute(2, 3, 0, 1, 4).flatten(2))


class SherpaWhisper(GraphWhisper):
    """Whisper with the two graphs of sherpa-onnx."""

    def __init__(self, config: Any, encoder: Graph, decoder: Graph) -> None:
        super().__init__(config, SherpaEncoder(encoder))
        self.decoder_graph = decoder
        self.heard: tuple[torch.Tensor, torch.Tensor] | None = None
        """states, and what the graph hears of them: the same for all tokens"""

    def audio(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values of the audio (2, layers, batch, positions, width)."""
        if self.heard is None or self.heard[0] is not states:
            apart = states.unflatten(2, (2, self.config.decoder_layers, -1))
            self.heard = states, apart.permute(2, 3, 0, 1, 4).contiguous()
        return self.heard[1]

    def step(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        layers, own = self.config.decoder_layers, cache.self_attention_cache
        audio = self.audio(states)
        places = audio.new_zeros(2, layers, len(tokens), self.config.max_target_positions, audio.shape[-1])
        past, end = cache.get_seq_length(), cache.get_seq_length() + tokens.shape[1]
        if past:
            kept: Any = own.layers
            for layer, of_layer in enumerate(kept):
                places[:, layer, :, :past] = torch.stack([of_layer.keys, of_layer.values]).squeeze(2)
        arrays = {
            name: array.numpy() for name, array in zip((*TOKEN_CACHES, *AUDIO_CACHES), (*places, *audio), strict=True)
        }
        found = self.decoder_graph({"tokens": tokens.numpy(), **arrays, "offset": np.array([past])})
        keys, values = (found[f"out_{name.removeprefix('in_')}"][:, :, None, past:end] for name in TOKEN_CACHES)
        for layer in range(layers):
            own.update(keys[layer], values[layer], layer)
        return found["logits"]


class SherpaParakeet(GraphParakeet):
    """Parakeet-CTC with the graph that sherpa-onnx runs for NeMo's."""

    def forward(  # type: ignore[override]
        self, input_features: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> CausalLMOutput:
        features = input_features.float().transpose(1, 2).contiguous()
        found = self.graph({"audio_signal": features.numpy(), "length": attention_mask.sum(1).numpy()})
        return CausalLMOutput(logits=found["logits"])


class SherpaWav2Vec2Conformer(GraphWav2Vec2Conformer):
    """Wav2Vec2-Conformer with a graph of samples without padding, so that clips are heard one by one."""

    def forward(  # type: ignore[override]
        self, input_values: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> CausalLMOutput:
        lengths = attention_mask.sum(1).tolist()
        clips = [samples[None, :length] for samples, length in zip(input_values.float(), lengths, strict=True)]
        found = [self.graph({"samples": samples.numpy()})["logits"][0] for samples in clips]
        return CausalLMOutput(logits=pad_sequence(found, batch_first=True))
