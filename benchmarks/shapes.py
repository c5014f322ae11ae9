"""Whisper's true shapes with random weights: for what depends on shapes and not on what a model has learnt."""

from __future__ import annotations

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.new_models.whisper import NewWhisper, generation_config, new_tokenizer
from sotto.surgery import factor, get_linear

# name: width, layers, heads, mel bins (Radford et al., 2022; large-v3 from its published config)
SHAPES = {
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "medium": (1024, 24, 16, 80),
    "large-v3": (1280, 32, 20, 128),
}


def config_of(name: str, decoder_layers: int | None = None, vocabulary: int = 51_866) -> WhisperConfig:
    width, layers, heads, mel_bins = SHAPES[name]
    return WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=decoder_layers or layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=mel_bins,
        vocab_size=vocabulary,
    )


def random_whisper(name: str, decoder_layers: int | None = None, dtype: torch.dtype = torch.float32) -> Recognizer:
    """A Whisper of the named shape. `decoder_layers` can be cut where only the encoder matters, to save memory."""
    width, layers, heads, mel_bins = SHAPES[name]
    dimensions = NewWhisper(width, layers, decoder_layers or layers, heads, vocabulary=300, mel_bins=mel_bins)
    tokenizer = new_tokenizer(dimensions, ["random weights know no words"])
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config_of(name, decoder_layers)).eval()
    model.to(dtype=dtype)
    model.generation_config = generation_config(dimensions, tokenizer)
    return Recognizer(model, WhisperProcessor(WhisperFeatureExtractor(feature_size=mel_bins), tokenizer))


def factor_at_random(recognizer: Recognizer, stack: Stack, index: int, linear: str, rank: int) -> None:
    """Put a linear as two random factors of that rank; its outputs stay of about the size that they had."""
    old = get_linear(recognizer.model, stack, index, linear)
    first, second = torch.randn(rank, old.in_features), torch.randn(old.out_features, rank)
    scale = 0.02 * old.in_features**-0.25
    factor(recognizer.model, stack, index, linear, scale * first, scale * second, torch.zeros(old.out_features))
