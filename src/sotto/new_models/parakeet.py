"""A new, untrained Parakeet (FastConformer with a CTC head; Rekesh et al., 2023) with word pieces of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetProcessor,
    ParakeetTokenizer,
)

from sotto.errors import SottoError
from sotto.new_models.registry import new_models

ADDITIONS_PER_LAYER = 4  # two feed-forward networks, attention, convolution


@dataclass(frozen=True)
class NewParakeet:
    """Dimensions of a Parakeet to be trained from nothing (names as in ParakeetEncoderConfig)."""

    hidden_size: int
    layers: int
    attention_heads: int
    intermediate_size: int | None = None
    """four times `hidden_size` if not given"""
    subsampling_factor: int = 8
    """frames of 10 ms that become one"""
    subsampling_channels: int = 256
    convolution_kernel: int = 9
    vocabulary: int = 256
    """most word pieces of the byte pair encoding; the blank comes on top"""
    mel_bins: int = 80
    dropout: float = 0.1
    """of the input and within feed-forward networks; attention has none"""

    def __post_init__(self) -> None:
        for name in ("layers", "attention_heads", "subsampling_channels", "mel_bins", "vocabulary"):
            if getattr(self, name) < 1:
                raise SottoError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise SottoError(f"intermediate_size must be at least 1, found {self.intermediate_size}")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise SottoError(f"hidden_size must be even and at least 2, found {self.hidden_size}")
        if self.hidden_size % self.attention_heads:
            raise SottoError(
                f"hidden_size {self.hidden_size} is not a multiple of attention_heads {self.attention_heads}"
            )
        if self.subsampling_factor not in (2, 4, 8, 16):
            raise SottoError(f"subsampling_factor must be 2, 4, 8 or 16, found {self.subsampling_factor}")
        if self.mel_bins % self.subsampling_factor:
            raise SottoError(
                f"mel_bins {self.mel_bins} is not a multiple of subsampling_factor {self.subsampling_factor}"
            )
        if self.convolution_kernel < 1 or self.convolution_kernel % 2 == 0:
            raise SottoError(f"convolution_kernel must be odd, found {self.convolution_kernel}")
        if not 0 <= self.dropout < 1:
            raise SottoError(f"dropout must be at least 0 and below 1, found {self.dropout}")


def new_tokenizer(config: NewParakeet, texts: Iterable[str]) -> ParakeetTokenizer:
    """A byte pair encoding of words trained on `texts`; its last token is padding, and the blank of CTC.

    Raises SottoError where the texts have more characters than there may be word pieces.
    """
    texts = list(texts)
    characters = set("".join(texts)) - {" "}
    if config.vocabulary < len(characters) + 2:  # with the mark of a word's start and the unknown token
        raise SottoError(
            f"vocabulary must be at least {len(characters) + 2} for the {len(characters)} characters of the texts, "
            f"found {config.vocabulary}"
        )
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=config.vocabulary, special_tokens=["<unk>"], show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    pieces.add_special_tokens([AddedToken("<pad>", special=True)])
    return ParakeetTokenizer(tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>")


@new_models.register("parakeet", NewParakeet)
def build(
    config: NewParakeet, texts: Iterable[str], seed: int, tokenizer: Any = None
) -> tuple[ParakeetForCTC, ParakeetProcessor]:
    """Random weights, sized for the vocabulary, which is learnt from `texts` where no tokenizer is given.

    Raises SottoError for a tokenizer of another family.
    """
    if tokenizer is not None and not isinstance(tokenizer, ParakeetTokenizer):
        raise SottoError("vocabulary_from: its tokens are not those of a Parakeet; take the vocabulary of one")
    tokenizer = tokenizer or new_tokenizer(config, texts)
    extractor = ParakeetFeatureExtractor(feature_size=config.mel_bins)
    torch.manual_seed(seed)
    encoder = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.attention_heads,
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
        "subsampling_factor": config.subsampling_factor,
        "subsampling_conv_channels": config.subsampling_channels,
        "conv_kernel_size": config.convolution_kernel,
        "num_mel_bins": config.mel_bins,
        "dropout": config.dropout,
        "activation_dropout": config.dropout,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
    }
    model = ParakeetForCTC(
        ParakeetCTCConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, encoder_config=encoder)
    )
    scale_start(model, config.layers)
    return model, ParakeetProcessor(extractor, tokenizer)


@torch.no_grad()
def scale_start(model: ParakeetForCTC, layers: int) -> None:
    """Draw the weights of linears and convolutions anew, so that outputs are about as large as inputs.

    transformers' start (deviation 0.02 everywhere) makes audio a million times quieter in three stages of subsampling,
    so that the first layer norm sees biases only. Convolutions before a ReLU have the deviation of He et al. (2015);
    what is added to the residual stream is small at first (Radford et al., 2019: 1 / sqrt(number of additions)).
    """
    additions = ADDITIONS_PER_LAYER * layers
    encoder: Any = model.get_encoder()
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.Conv1d | nn.Linear):
            added = name.endswith(("linear2", "o_proj", "pointwise_conv2"))
            module.weight.normal_(std=(module.weight[0].numel() * (additions if added else 1)) ** -0.5)
    encoder.subsampling.linear.weight /= encoder.input_scale  # which multiplies its output
