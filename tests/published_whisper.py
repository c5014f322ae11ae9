"""Whispers of the published shapes, without values."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

# name: (width, layers, heads, mels, vocabulary) of the published checkpoints
PUBLISHED = {
    "tiny": (384, 4, 6, 80, 51865),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}


def published(name: str) -> WhisperForConditionalGeneration:
    width, layers, heads, mels, vocabulary = PUBLISHED[name]
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )
    with torch.device("meta"):
        return WhisperForConditionalGeneration(config)
