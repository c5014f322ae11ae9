"""Tiny CTC models of the Conformer family with random weights, and what tests do to all of them."""

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetProcessor,
    ParakeetTokenizer,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from sotto.checkpoint import Recognizer
from sotto.surgery import factor, get_linear

RATE = 16000
WIDTH, HEADS, FFN, LAYERS, MELS = 16, 4, 24, 2, 16
TEXTS = ["one two three four five six seven eight nine zero oh"]

CONFORMERS = ("parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary")


def make(architecture: str, seed: int = 5) -> Recognizer:
    """A recogniser that may be changed."""
    return copy.deepcopy(built(architecture, seed))


@functools.cache
def built(architecture: str, seed: int = 5) -> Recognizer:
    if architecture == "parakeet":
        recognizer = parakeet()
    else:
        recognizer = wav2vec2_conformer("rotary" if architecture.endswith("rotary") else "relative")
    shape_weights(recognizer.model, torch.Generator().manual_seed(seed))
    return recognizer


def parakeet(**changes: Any) -> Recognizer:
    tokenizer = word_pieces()
    encoder = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "num_mel_bins": MELS,
        "subsampling_conv_channels": 8,
        "conv_kernel_size": 5,
    }
    config = ParakeetCTCConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, encoder_config=encoder | changes
    )
    extractor = ParakeetFeatureExtractor(feature_size=MELS)
    return Recognizer(ParakeetForCTC(config).eval(), ParakeetProcessor(extractor, tokenizer))


def word_pieces() -> ParakeetTokenizer:
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=36, special_tokens=["<unk>"], show_progress=False)
    pieces.train_from_iterator(TEXTS, trainer)
    pieces.add_special_tokens([AddedToken("<pad>", special=True)])
    return ParakeetTokenizer(tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>")


def wav2vec2_conformer(positions: str | None = "relative", normalized: bool = True, **changes: Any) -> Recognizer:
    """One frame is 20 ms, as in the published models."""
    tokenizer = characters()
    settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "conv_dim": (8, 8, 8),
        "conv_stride": (10, 8, 4),
        "conv_kernel": (10, 8, 4),
        "feat_extract_norm": "layer",
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "conv_depthwise_kernel_size": 5,
        "max_source_positions": 60,
    }
    config = Wav2Vec2ConformerConfig(
        vocab_size=len(tokenizer), position_embeddings_type=positions, **(settings | changes)
    )
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=normalized)
    return Recognizer(Wav2Vec2ConformerForCTC(config).eval(), Wav2Vec2Processor(extractor, tokenizer))


def characters() -> Wav2Vec2CTCTokenizer:
    known = ["<pad>", "<s>", "</s>", "<unk>", "|", *sorted(set("".join(TEXTS)) - {" "})]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({token: number for number, token in enumerate(known)}))
        return Wav2Vec2CTCTokenizer(str(path))


@torch.no_grad()
def shape_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Large enough that every part is heard, biases and statistics of batch norm too."""
    for name, parameter in model.named_parameters():
        center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = 1.5 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
        parameter.copy_(center + spread * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0.0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Noise that swells and fades."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    swell = 0.2 + np.sin(np.arange(samples) / RATE * (3 + seed)) ** 2
    return (0.1 * swell * generator.standard_normal(samples)).astype(np.float32)


@torch.no_grad()
def scores(recognizer: Recognizer, seconds: float = 1.0) -> torch.Tensor:
    """(frames, vocabulary) of one stretch of noise."""
    return recognizer.family.logits(recognizer.family.inputs([noise(seconds)]))


def factor_at_random(recognizer: Recognizer, index: int, linear: str, rank: int, seed: int = 0) -> None:
    (stack,) = recognizer.architecture.stacks
    old = get_linear(recognizer.model, stack, index, linear)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, old.in_features), (old.out_features, rank), (old.out_features,))
    parts = (0.4 * torch.randn(shape, generator=generator) for shape in shapes)
    factor(recognizer.model, stack, index, linear, *parts)
