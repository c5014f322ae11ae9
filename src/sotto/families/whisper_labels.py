"""What Whisper is taught with: log-mel windows, and the tokens that its decoder is to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import WhisperProcessor

from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, Example, padded
from sotto.families.fitted_windows import drawn_seconds
from sotto.families.whisper_transcription import TIME_STEP


def shift_right(labels: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """Decoder inputs for `labels` (batch, tokens): the start token, then every label but the last."""
    inputs = labels.new_full(labels.shape, start)
    inputs[:, 1:] = labels[:, :-1]
    return inputs.masked_fill(inputs == IGNORED, pad)


@dataclass(frozen=True)
class WhisperCollator:
    """Examples -> Batch. Examples that carry a span are labelled with its times; frames of the clips, and not of the
    silence after them, are 1 in `attention_mask` (batch, frames).

    Raises SottoError for a language that the model does not know, and for a text of more than `maximum_tokens` labels.
    """

    processor: WhisperProcessor
    language: str
    maximum_tokens: int = 448
    multilingual: bool = True
    """an English-only Whisper is prompted with neither language nor task"""

    def __post_init__(self) -> None:
        if not self.multilingual and self.language != "en":
            raise SottoError(f"the model knows English only; it cannot be trained on language '{self.language}'")
        self.language_id(self.language)

    def __call__(self, examples: list[Example]) -> Batch:
        extractor = self.processor.feature_extractor
        seconds = drawn_seconds(extractor, [len(example.audio) for example in examples])
        heard = extractor(
            [example.audio for example in examples],
            sampling_rate=extractor.sampling_rate,
            max_length=seconds * extractor.sampling_rate,
            return_attention_mask=True,
            return_tensors="pt",
        )
        labels = [self.label_ids(example) for example in examples]
        longest = max(map(len, labels))
        if longest > self.maximum_tokens:
            text = examples[[len(ids) for ids in labels].index(longest)].text
            raise SottoError(
                f"a text of {longest} tokens, where the model takes {self.maximum_tokens}: '{text[:40]}'; "
                "leave the clip out or cut it in two"
            )
        return {**heard, "labels": padded(labels, self.maximum_tokens)}

    def label_ids(self, example: Example) -> list[int]:
        """Language, task, text (with or without times) and end of text, without the start token, as Whisper has it."""
        tokenizer: Any = self.processor.tokenizer
        ids = {
            name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("transcribe", "notimestamps", "endoftext")
        }
        language = self.language_id(example.language or self.language)
        text = tokenizer.encode(f" {example.text}", add_special_tokens=False)
        if example.span is not None:
            first = ids["notimestamps"] + 1
            start, end = (first + round(seconds / TIME_STEP) for seconds in (example.span.start, example.span.end))
            # Speech that runs on past the window: the end time twice, so that decoding goes on from there.
            text = [start, *text, end, end] if example.span.cut else [start, *text, end]
        else:
            text = [ids["notimestamps"], *text]
        prompt = [language, ids["transcribe"]] if self.multilingual else []
        return [*prompt, *text, ids["endoftext"]]

    def language_id(self, language: str) -> int:
        tokenizer: Any = self.processor.tokenizer
        found = tokenizer.convert_tokens_to_ids(f"<|{language}|>")
        if found in (None, tokenizer.unk_token_id):  # Whisper's unknown token is its end of text
            raise SottoError(f"the model has no language '{language}'; give one that it has, by its code: en, hi, ...")
        return int(found)
