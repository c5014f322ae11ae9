"""Whisper as CTranslate2 runs it, called as transformers' own.

CTranslate2 decodes a window by itself, and gives no way into its loop. Cutting long audio into windows, prompts and
times of segments are transformers' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from sotto.exports.on_cpu import OnCpu, refuse_attentions

COMPUTED_IN = {"float16": "float32"}  # a CPU has no products in float16


def open_runtime(folder: Path, precision: str) -> Any:
    """CTranslate2's model, on the CPU, with as many threads as torch has."""
    computed_in = COMPUTED_IN.get(precision, precision)
    return ctranslate2.models.Whisper(str(folder), compute_type=computed_in, intra_threads=torch.get_num_threads())


def as_view(tensor: torch.Tensor) -> Any:
    """A tensor as CTranslate2 takes it."""
    return ctranslate2.StorageView.from_array(tensor.float().contiguous().numpy())


class CTranslate2Encoder(nn.Module):
    """Whisper's encoder."""

    main_input_name = "input_features"

    def __init__(self, runtime: Any) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        states = np.array(self.runtime.encode(as_view(input_features)))
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))


class CTranslate2Whisper(OnCpu, WhisperForConditionalGeneration):
    """Whisper that another runtime computes; no weights by itself, and no attentions to look at."""

    generation_config: Any

    def __init__(self, config: Any, runtime: Any) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.runtime = runtime
        self.runtime_encoder = CTranslate2Encoder(runtime)

    def get_encoder(self, modality: str | None = None) -> Any:
        return self.runtime_encoder

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (1, tokens from the prompt's last on, vocabulary) of one window; the decoder takes one by one."""
        refuse_attentions(output_attentions)
        assert decoder_input_ids is not None
        heard: Any = input_features if encoder_outputs is None else encoder_outputs[0]
        (tokens,) = decoder_input_ids.tolist()
        before = prompt_length(tokens, self.generation_config) - 1
        (found,) = self.runtime.generate(
            as_view(heard),
            [tokens],
            beam_size=1,
            max_length=length(len(tokens) - before, before),
            return_logits_vocab=True,
            suppress_blank=False,
            suppress_tokens=[],
        )
        return Seq2SeqLMOutput(logits=torch.stack([torch.from_numpy(np.array(step)) for step in found.logits[0]])[None])

    def decode_by_itself(self, encoder_outputs: Any, tokens: int) -> None:
        """Run the decoder on exactly `tokens` tokens of each window, greedily, whatever is said."""
        generation = self.generation_config
        prompt = [generation.decoder_start_token_id, generation.no_timestamps_token_id]
        self.runtime.generate(
            as_view(encoder_outputs[0]),
            [prompt] * len(encoder_outputs[0]),
            beam_size=1,
            max_length=length(tokens - 1, 1),
            suppress_tokens=[generation.eos_token_id],
        )

    def generate_with_fallback(self, *_: Any, **given: Any) -> tuple[Any, ...]:
        """One window of each clip, for transformers' `generate`; the temperature never rises."""
        prompts, generation = given["decoder_input_ids"].tolist(), given["generation_config"]
        timestamps = range(generation.no_timestamps_token_id + 1, self.config.vocab_size)
        latest = getattr(generation, "max_initial_timestamp_index", None)
        found = self.runtime.generate(
            as_view(given["segment_input"]),
            prompts,
            beam_size=generation.num_beams,
            max_length=length(generation.max_new_tokens, len(prompts[0]) - 1),
            max_initial_timestamp_index=self.config.vocab_size if latest is None else latest,
            suppress_tokens=[-1, *(() if generation.return_timestamps else timestamps)],  # -1: those of its config.json
        )
        sequences = [torch.tensor(result.sequences_ids[0], dtype=torch.long) for result in found]
        return sequences, sequences, [False] * len(sequences), given["do_condition_on_prev_tokens"], torch.Tensor

    def detect_language(
        self,
        input_features: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        generation_config: Any = None,
        num_segment_frames: int = 3000,
    ) -> torch.Tensor:
        """Token (clips,) of the language that is spoken in the first window."""
        assert input_features is not None
        found = self.runtime.detect_language(as_view(input_features[..., :num_segment_frames]))
        return torch.tensor([self.generation_config.lang_to_id[ranked[0][0]] for ranked in found])


def prompt_length(tokens: Sequence[int], generation: Any) -> int:
    """How many tokens CTranslate2 takes for the prompt: all before the first that is none of a prompt's by its number.

    So a text that begins with such tokens, as that of a model without `suppress_tokens` may, is prompt as far as that.
    """
    of_prompts = range(generation.decoder_start_token_id, generation.no_timestamps_token_id + 1)
    return next((place for place, token in enumerate(tokens) if token not in of_prompts), len(tokens))


def length(steps: int, before: int) -> int:
    """What CTranslate2 is told for at most `steps` steps, with `before` tokens before the one that the first takes.

    It stops after half of that, or where prompt and text together are that long.
    """
    return steps + max(steps, before)
