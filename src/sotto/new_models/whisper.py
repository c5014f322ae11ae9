"""A new, untrained Whisper with a vocabulary of its own: the base of a model trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from sotto.errors import SottoError
from sotto.families.whisper_transcription import TIME_STEP
from sotto.new_models.registry import new_models

SHARPNESS = 1.6  # of the heads that look nearby: about 10 between the score there and those far away


@dataclass(frozen=True)
class NewWhisper:
    """Dimensions of a Whisper to be trained from nothing (names as in WhisperConfig)."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    attention_heads: int
    ffn_dim: int | None = None
    vocabulary: int = 500
    """most entries of the byte-level BPE vocabulary, special tokens not counted"""
    languages: tuple[str, ...] = ("en",)
    window_seconds: float = 30.0
    mel_bins: int = 80
    maximum_tokens: int = 448
    dropout: float = 0.0
    start: Literal["transformers", "scaled", "local"] = "transformers"
    """how random weights are drawn. transformers: all with a deviation of 0.02, which at small widths leaves the audio
    forty times quieter than the positions that are added to it, and an encoder hardly learns to hear. scaled: by the
    number of inputs. local: scaled, and the encoder's heads look at nearby positions, each at its own distance"""

    def __post_init__(self) -> None:
        for name in ("attention_heads", "encoder_layers", "decoder_layers", "maximum_tokens"):
            if getattr(self, name) < 1:
                raise SottoError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.mel_bins < 2:  # transformers pads features of one bin another way
            raise SottoError(f"mel_bins must be at least 2, found {self.mel_bins}")
        if self.ffn_dim is not None and self.ffn_dim < 1:
            raise SottoError(f"ffn_dim must be at least 1, found {self.ffn_dim}")
        if self.d_model < 4 or self.d_model % 2:
            raise SottoError(f"d_model must be even and at least 4, found {self.d_model}")
        if self.d_model % self.attention_heads:
            raise SottoError(f"d_model {self.d_model} is not a multiple of attention_heads {self.attention_heads}")
        if self.window_seconds < 1 or self.window_seconds % 1:
            raise SottoError(f"window_seconds must be a whole number of seconds, found {self.window_seconds}")
        if self.vocabulary < 256:
            raise SottoError(f"vocabulary must be at least 256 (one entry a byte), found {self.vocabulary}")
        if not 0 <= self.dropout < 1:
            raise SottoError(f"dropout must be at least 0 and below 1, found {self.dropout}")
        if not self.languages:
            raise SottoError("languages must name at least one language, such as 'en'")
        for language in self.languages:
            if language not in LANGUAGES:
                raise SottoError(f"unknown language '{language}'; give one of Whisper's codes, such as 'en'")


def new_tokenizer(config: NewWhisper, texts: Iterable[str]) -> WhisperTokenizer:
    """A byte-level BPE trained on `texts`, with Whisper's special and timestamp tokens after it, in Whisper's order."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f" {text}" for text in texts), trainer)
    trained = json.loads(bpe.to_str())["model"]
    known = list(LANGUAGES)  # transformers finds a language by its place in this list: those before it are there too
    languages = known[: 1 + max(known.index(language) for language in config.languages)]
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer = WhisperTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        pad_token="<|endoftext|>",
        extra_special_tokens=[AddedToken(token, special=True, normalized=False) for token in special[1:]],
    )
    steps = round(config.window_seconds / TIME_STEP)
    timestamps = [f"<|{step * TIME_STEP:.2f}|>" for step in range(steps + 1)]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in timestamps])
    tokenizer.set_prefix_tokens(language=config.languages[0], task="transcribe", predict_timestamps=False)
    return tokenizer


def new_processor(config: NewWhisper, texts: Iterable[str], tokenizer: Any = None) -> WhisperProcessor:
    """A tokenizer, trained on `texts` where none is given, and a log-mel feature extractor for the window.

    Raises SottoError for a tokenizer of another family, window or language.
    """
    if tokenizer is not None:
        check_tokenizer(config, tokenizer)
    extractor = WhisperFeatureExtractor(feature_size=config.mel_bins, chunk_length=round(config.window_seconds))
    return WhisperProcessor(extractor, tokenizer or new_tokenizer(config, texts))


def check_tokenizer(config: NewWhisper, tokenizer: Any) -> None:
    known = tokenizer.get_vocab()
    names = [f"<|{name}|>" for name in config.languages]
    last, beyond = (f"<|{config.window_seconds + more:.2f}|>" for more in (0.0, TIME_STEP))
    if any(token not in known for token in ("<|startoftranscript|>", last, *names)) or beyond in known:
        raise SottoError(
            f"vocabulary_from: its tokens are not those of a Whisper of {config.window_seconds:g} s that knows "
            f"{', '.join(config.languages)}; take one with the same window and languages"
        )


@new_models.register("whisper", NewWhisper)
def build(
    config: NewWhisper, texts: Iterable[str], seed: int, tokenizer: Any = None
) -> tuple[WhisperForConditionalGeneration, Any]:
    processor = new_processor(config, texts, tokenizer)
    return new_model(config, processor.tokenizer, seed), processor


def new_model(config: NewWhisper, tokenizer: WhisperTokenizer, seed: int) -> WhisperForConditionalGeneration:
    """Random weights for `config`, sized for `tokenizer`, with a generation config that pipelines can use."""
    torch.manual_seed(seed)
    ffn = config.ffn_dim or 4 * config.d_model
    end: Any = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    start: Any = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=config.mel_bins,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
            encoder_ffn_dim=ffn,
            decoder_ffn_dim=ffn,
            max_source_positions=round(config.window_seconds / TIME_STEP),
            max_target_positions=config.maximum_tokens,
            dropout=config.dropout,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
        )
    )
    if config.start in ("scaled", "local"):
        scale_start(model)
    if config.start == "local":
        look_nearby(model)
    model.generation_config = generation_config(config, tokenizer)
    return model


@torch.no_grad()
def scale_start(model: WhisperForConditionalGeneration) -> None:
    """Draw the weights of linears and convolutions anew, so that outputs are about as large as inputs.

    Convolutions have twice the deviation, which GELU takes away again; what is added to the residual stream is small at
    first (Radford et al., 2019: 1 / sqrt(number of additions)).
    """
    depth = model.config.encoder_layers + model.config.decoder_layers
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Conv1d):
            module.weight.normal_(std=2 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.Linear):
            added = name.endswith(("out_proj", "fc2"))
            module.weight.normal_(std=(module.in_features * (depth if added else 1)) ** -0.5)


@torch.no_grad()
def look_nearby(model: WhisperForConditionalGeneration) -> None:
    """Have the heads of Whisper's encoder attend to nearby positions at first, as a convolution would.

    Positions come as sines and cosines of many frequencies. A head's keys take the highest of them, and its queries the
    same ones turned by the angle that the head's distance is at each frequency: their product is highest there.
    """
    heads = model.config.encoder_attention_heads
    for layer in model.model.encoder.layers:
        attention = layer.self_attn
        keys, queries = (
            projection.weight.view(heads, -1, model.config.d_model)
            for projection in (attention.k_proj, attention.q_proj)
        )
        for head, distance in enumerate(distances(heads)):
            keys[head] = turned_positions(model.config.d_model, attention.head_dim, 0.0)
            queries[head] = turned_positions(model.config.d_model, attention.head_dim, distance)


def distances(heads: int) -> list[float]:
    """How many positions (20 ms) before or after its own each head looks: near ones first, on both sides in turn."""
    return [(1 if head % 2 else -1) * (1.5 + 3 * (head // 2)) for head in range(heads)]


def turned_positions(width: int, head_dim: int, distance: float) -> torch.Tensor:
    """Weights (head_dim, width) that take the highest frequencies of Whisper's positions `distance` positions on."""
    pairs, frequencies = head_dim // 2, width // 2
    angular = 10_000 ** (-torch.arange(pairs) / (frequencies - 1))
    turn_cos, turn_sin = torch.cos(angular * distance), torch.sin(angular * distance)
    weights = torch.zeros(head_dim, width)
    pair = torch.arange(pairs)
    weights[pair, pair], weights[pair, frequencies + pair] = turn_cos, turn_sin
    weights[pairs + pair, pair], weights[pairs + pair, frequencies + pair] = -turn_sin, turn_cos
    return SHARPNESS * weights


def generation_config(config: NewWhisper, tokenizer: WhisperTokenizer) -> GenerationConfig:
    """Whisper's decoding settings in full: without them timestamps, languages and other runtimes' converters fail."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    upper_half = range(config.decoder_layers // 2, config.decoder_layers)
    return GenerationConfig(
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=config.maximum_tokens,
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in config.languages},
        task_to_id={task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("translate", "transcribe")},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        max_initial_timestamp_index=round(1.0 / TIME_STEP),
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[end],
        # Which heads align words with audio is learnt; the upper half of the decoder is Whisper's own fallback.
        alignment_heads=[[layer, head] for layer in upper_half for head in range(config.attention_heads)],
    )
