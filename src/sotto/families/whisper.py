"""Whisper: a window of fixed length, and a decoder that writes tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GenerationConfig, WhisperProcessor

from sotto.data import Clip
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.families.family import Family, Inputs
from sotto.families.fitted_windows import SETTING
from sotto.families.whisper_labels import WhisperCollator, shift_right
from sotto.families.whisper_transcription import (
    TIME_STEP,
    is_multilingual,
    language_and_task,
    quiet_transformers,
    transcribe,
)


@dataclass(frozen=True)
class Whisper(Family):
    """Decides on one token after the other, given those before it."""

    decision: ClassVar[str] = "token"
    loss_name: ClassVar[str] = "cross_entropy"
    smooths_labels: ClassVar[bool] = True

    @staticmethod
    def load_processor(name: str | Path) -> WhisperProcessor:
        """Where files are missing transformers makes up an empty tokenizer, or one that forgets the language."""
        processor = WhisperProcessor.from_pretrained(name)
        lacks_settings = Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file()
        if lacks_settings or processor.tokenizer.vocab_size < 256:  # one entry a byte
            raise SottoError(
                "the tokenizer is incomplete; copy tokenizer.json and tokenizer_config.json from the checkpoint that "
                "it was made from"
            )
        return processor

    @property
    def window_seconds(self) -> float:
        extractor = self.processor.feature_extractor
        return float(extractor.n_samples / extractor.sampling_rate)

    @property
    def longest_seconds(self) -> float:
        return self.window_seconds

    def frames(self, seconds: float) -> None:
        return None

    @property
    def window_positions(self) -> int:
        return int(self.model.config.max_source_positions)

    def inputs(self, audio: Sequence[NDArray[np.float32]]) -> Inputs:
        """`input_features` (windows, mel bins, frames), padded to the window."""
        extractor = self.processor.feature_extractor
        features = extractor(list(audio), sampling_rate=self.sampling_rate, return_tensors="pt").input_features
        return {"input_features": features.to(self.model.device, self.model.dtype)}

    def encode(self, inputs: Inputs) -> None:
        self.model.get_encoder()(inputs["input_features"])

    def with_transcript(self, inputs: Inputs, language: str | None = None) -> Inputs:
        """Adds `decoder_input_ids` (1, tokens), greedy: prompt and text, without the end token."""
        with quiet_transformers():
            found = self.model.generate(
                inputs["input_features"],
                **language_and_task(self.model.generation_config, Decoding(language=language)),
                num_beams=1,
                do_sample=False,
                return_timestamps=False,
                return_dict_in_generate=True,  # plain tokens would come without their prompt
                force_unique_generate_call=True,
                use_cache=True,
            )
        tokens = found.sequences
        ended = bool(tokens[0, -1] == self.model.generation_config.eos_token_id)
        return {**inputs, "decoder_input_ids": tokens[:, :-1] if ended else tokens}

    def logits(self, inputs: Inputs) -> torch.Tensor:
        logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
        return logits.flatten(0, 1)

    def probe(self) -> torch.Tensor:
        """Logits of a few tokens on one window of noise."""
        config = self.model.config
        frames = 2 * config.max_source_positions
        noise = torch.randn(1, config.num_mel_bins, frames, generator=torch.Generator().manual_seed(0))
        tokens = torch.arange(4)[None] % config.vocab_size
        features = noise.to(self.model.device, self.model.dtype)
        return self.logits({"input_features": features, "decoder_input_ids": tokens.to(self.model.device)})

    def generation_config(self) -> GenerationConfig:
        """Converters to other runtimes read the context length from it (whisper.cpp) and fail on null."""
        generation: GenerationConfig = self.model.generation_config
        generation.max_length = generation.max_length or self.model.config.max_target_positions
        return generation

    def transcribe(self, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
        return transcribe(self, clips, decoding)

    def shorten_window(self, seconds: float) -> None:
        """Positions are sinusoids: those of a shorter window are the first ones. Graphs have theirs within."""
        whole, encoder = self.window_seconds, self.model.get_encoder()
        if not 1 <= seconds <= whole or seconds % 1:
            raise SottoError(f"a window has whole seconds, at most the model's {whole:g}, found {seconds:g}")
        set_window(self.model.config, self.processor.feature_extractor, round(seconds))
        if hasattr(encoder, "embed_positions"):
            first = encoder.embed_positions.weight[: self.model.config.max_source_positions].detach().clone()
            encoder.embed_positions = nn.Embedding.from_pretrained(first, freeze=True)

    def fit_windows(self, silence: float) -> None:
        setattr(self.processor.feature_extractor, SETTING, silence)

    @contextmanager
    def window(self, seconds: float | None) -> Iterator[None]:
        if seconds is None:
            yield
            return
        whole, encoder = self.window_seconds, self.model.get_encoder()
        positions = getattr(encoder, "embed_positions", None)
        self.shorten_window(seconds)
        try:
            yield
        finally:
            set_window(self.model.config, self.processor.feature_extractor, round(whole))
            if positions is not None:
                encoder.embed_positions = positions.to(self.model.device)

    def window_of(self, features: torch.Tensor) -> AbstractContextManager[None]:
        """For a while the model hears windows as long as `features` (batch, mel bins, frames)."""
        positions = features.shape[-1] // 2
        return self.window(None if positions == self.window_positions else positions * TIME_STEP)

    def collator(self, language: str) -> WhisperCollator:
        multilingual = is_multilingual(self.model.generation_config)
        return WhisperCollator(self.processor, language, self.model.config.max_target_positions, multilingual)

    def loss(self, batch: Batch, label_smoothing: float) -> tuple[Any, torch.Tensor]:
        """Cross entropy of every token, given those before it."""
        labels, config = batch["labels"], self.model.config
        with self.window_of(batch["input_features"]):
            outputs = self.model(
                input_features=batch["input_features"],
                decoder_input_ids=shift_right(labels, config.decoder_start_token_id, config.pad_token_id),
                use_cache=False,
            )
        loss = nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return outputs, loss

    def counted_positions(self, batch: Batch, outputs: Any) -> dict[str, torch.Tensor]:
        """The encoder has a position for two frames; those of the silence after a clip do not count."""
        return {"encoder": batch["attention_mask"][:, ::2].bool(), "decoder": batch["labels"] != IGNORED}


def set_window(config: Any, extractor: Any, seconds: int) -> None:
    """Have model and feature extractor take windows of that length."""
    config.max_source_positions = round(seconds / TIME_STEP)
    extractor.chunk_length = seconds
    extractor.n_samples = seconds * extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
