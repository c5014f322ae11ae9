"""The graphs that sherpa-onnx runs: its tensors, by its names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticLayer
from transformers.modeling_outputs import BaseModelOutput

from sotto.exports.graphs import Encoder, FirstTokens, FrameLogits, Sizes, to_onnx
from sotto.families import Ctc

TOKEN_CACHES = ("in_n_layer_self_k_cache", "in_n_layer_self_v_cache")
AUDIO_CACHES = ("n_layer_cross_k", "n_layer_cross_v")


@dataclass(frozen=True)
class KeptSizes:
    """For every layer of a decoder (heads, head dimension) of what it keeps of the tokens, and of the audio."""

    tokens: tuple[tuple[int, int], ...]
    audio: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        """Of the widest: layers stand in one tensor, the narrower ones beside zeros."""
        return max(heads * dimension for heads, dimension in (*self.tokens, *self.audio))


@torch.no_grad()
def kept_sizes(model: Any) -> KeptSizes:
    """What a layer keeps can be narrower than the config says, or one number where the module is absent."""
    states = torch.zeros(1, 1, model.config.d_model)
    kept = FirstTokens(model)(torch.zeros(1, 1, dtype=torch.int64), states)[1:]
    sizes = [(tensor.shape[1], tensor.shape[3]) for tensor in kept]
    return KeptSizes(tuple(sizes[0::4]), tuple(sizes[2::4]))


class HeardAudio(nn.Module):
    """`mel` (batch, mel bins, frames) -> keys and values of the audio, each (layers, batch, positions, width)."""

    def __init__(self, model: Any, sizes: KeptSizes) -> None:
        super().__init__()
        self.encoder = Encoder(model)
        self.first = FirstTokens(model)
        self.frames = 2 * model.config.max_source_positions
        self.width = sizes.width

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.encoder(in_window(mel, self.frames))
        any_token = torch.zeros(mel.shape[0], 1, dtype=torch.int64)  # what is kept of the audio does not depend on it
        kept = self.first(any_token, states)[1:]
        return stacked(kept[2::4], self.width), stacked(kept[3::4], self.width)


def in_window(mel: torch.Tensor, frames: int) -> torch.Tensor:
    """`mel` (batch, mel bins, frames) of any length, cut or filled up to the window with what silence looks like.

    sherpa-onnx appends zeros. Whisper's features, a quarter of the power of ten, have what is eight powers below the
    loudest where there is no sound, and nothing below -1.5.
    """
    is_heard = (mel != 0).any(1, keepdim=True)
    loudest = mel.masked_fill(~is_heard, -torch.inf).amax((1, 2), keepdim=True)
    silence = (loudest - 8 / 4).clamp(min=-1.5)
    heard = torch.where(is_heard, mel, silence)
    return torch.cat([heard, silence.expand(-1, mel.shape[1], frames)], 2)[:, :, :frames]


class KeptTokens(StaticLayer):
    """A cache with a place for every token that there can be, of which `offset` (one number) are taken."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, offset
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.cumulative_length + torch.arange(key_states.shape[2])
        self.keys = self.keys.index_copy(2, places, key_states)
        self.values = self.values.index_copy(2, places, value_states)
        return self.keys, self.values


class TokensInPlaces(nn.Module):
    """Tokens (batch, tokens), what is kept of those before and of the audio, and how many those before are.

    Returns logits, and keys and values of all tokens, each (layers, batch, places, width).
    """

    def __init__(self, model: Any, sizes: KeptSizes) -> None:
        super().__init__()
        self.model = model
        self.sizes = sizes

    def forward(
        self,
        tokens: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        audio_keys: torch.Tensor,
        audio_values: torch.Tensor,
        offset: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own: list[Any] = []
        cross = DynamicCache()
        for layer, (size, audio_size) in enumerate(zip(self.sizes.tokens, self.sizes.audio, strict=True)):
            own.append(KeptTokens(of_layer(keys[layer], size), of_layer(values[layer], size), offset[0]))
            cross.update(of_layer(audio_keys[layer], audio_size), of_layer(audio_values[layer], audio_size), layer)
        cache = EncoderDecoderCache(Cache(layers=own), cross)
        cache.is_updated = dict.fromkeys(range(len(own)), True)
        nothing = torch.zeros(tokens.shape[0], 1, self.model.config.d_model)  # its keys and values are cached
        outputs = self.model(
            encoder_outputs=BaseModelOutput(nothing),
            decoder_input_ids=tokens,
            past_key_values=cache,
            use_cache=True,
        )
        width = self.sizes.width
        return (
            outputs.logits,
            stacked([layer.keys for layer in own], width),
            stacked([layer.values for layer in own], width),
        )


def stacked(layers: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """(batch, heads, places, head dimension) of every layer -> (layers, batch, places, width)."""
    flat = [layer.transpose(1, 2).flatten(2) for layer in layers]
    return torch.stack([nn.functional.pad(layer, (0, width - layer.shape[2])) for layer in flat])


def of_layer(kept: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch, places, width) -> (batch, heads, places, head dimension), without the zeros beside a narrower layer."""
    heads, dimension = size
    found: torch.Tensor = kept[..., : heads * dimension].unflatten(2, size).transpose(1, 2)
    return found


class FramesOfFeatures(nn.Module):
    """Features (batch, mel bins, frames) and lengths (batch,) -> log-probabilities and scores (batch, frames, tokens).

    sherpa-onnx reads the first.
    """

    def __init__(self, family: Ctc) -> None:
        super().__init__()
        self.frame_logits = FrameLogits(family)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_heard = torch.arange(features.shape[2]) < lengths[:, None]
        without_padding = features.masked_fill(~is_heard[:, None], 0.0)  # sherpa-onnx fills up with -23
        logits: torch.Tensor = self.frame_logits(without_padding.transpose(1, 2), is_heard)
        return logits.log_softmax(-1), logits


class FramesOfSamples(nn.Module):
    """Samples (batch, length) without padding -> scores (batch, frames, tokens)."""

    def __init__(self, family: Ctc) -> None:
        super().__init__()
        self.frame_logits = FrameLogits(family)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.frame_logits(samples, torch.ones_like(samples, dtype=torch.int64))
        return scores


def encoder_graph(model: Any, sizes: KeptSizes) -> onnx.ModelProto:
    mel = torch.randn(Sizes.batch, model.config.num_mel_bins, model.config.max_source_positions)
    shapes = ({0: Dim("batch"), 2: Dim("frames", min=2)},)
    return to_onnx(HeardAudio(model, sizes), (mel,), ["mel"], list(AUDIO_CACHES), shapes)


def decoder_graph(model: Any, sizes: KeptSizes) -> onnx.ModelProto:
    config, layers = model.config, len(sizes.tokens)
    tokens = torch.arange(Sizes.batch * Sizes.tokens).view(Sizes.batch, -1) % config.vocab_size
    lengths = (config.max_target_positions, config.max_target_positions, *2 * [config.max_source_positions])
    kept = [torch.randn(layers, Sizes.batch, length, sizes.width) for length in lengths]
    batch = Dim("batch")
    return to_onnx(
        TokensInPlaces(model, sizes),
        (tokens, *kept, torch.tensor([2])),
        ["tokens", *TOKEN_CACHES, *AUDIO_CACHES, "offset"],
        ["logits", "out_n_layer_self_k_cache", "out_n_layer_self_v_cache"],
        ({0: batch, 1: Dim("tokens")}, {1: batch}, {1: batch}, {1: batch}, {1: batch}, {}),
    )


def features_graph(family: Ctc) -> onnx.ModelProto:
    features = torch.randn(Sizes.batch, family.processor.feature_extractor.feature_size, 200)
    free = ({0: Dim("batch"), 2: Dim("length")}, {0: Dim("batch")})
    return to_onnx(
        FramesOfFeatures(family),
        (features, torch.tensor([200, 100])),
        ["audio_signal", "length"],
        ["logprobs", "logits"],
        free,
    )


def samples_graph(family: Ctc) -> onnx.ModelProto:
    samples = torch.randn(Sizes.batch, 2 * family.sampling_rate)
    return to_onnx(FramesOfSamples(family), (samples,), ["samples"], ["logits"], ({0: Dim("batch"), 1: Dim("length")},))
