"""Connectionist temporal classification on Whisper's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.objectives.objective import Objective, Setting, objectives


@dataclass(frozen=True)
class EncoderCtc:
    """Teaches the encoder where words are."""

    weight: float = 0.3
    units: Literal["tokens", "characters"] = "tokens"
    """what is found in the audio: the decoder's tokens, or the characters that they are written with. There are few and
    each is often heard, so that little speech is enough to find them. A character is told by its last byte of UTF-8,
    which is nearly always enough within one script"""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise SottoError(f"weight must be positive, found {self.weight}")


class CtcObjective(Objective):
    """CTC of the text tokens, or of the characters in them, over the encoder's positions (Graves et al., 2006)."""

    name = "ctc"
    spelling: torch.Tensor

    def __init__(self, weight: float, width: int, spelling: torch.Tensor, of_bytes: bool = False) -> None:
        """`spelling` (text tokens, longest): the units of every token, padded with -100.

        `of_bytes`: they are bytes of UTF-8, of which the last one of every character is kept.
        """
        super().__init__()
        self.weight = weight
        self.blank = int(spelling.max()) + 1
        self.head = nn.Linear(width, self.blank + 1)
        self.register_buffer("spelling", spelling, persistent=False)
        self.of_bytes = of_bytes

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(outputs.encoder_last_hidden_state).float().log_softmax(-1).transpose(0, 1)
        units = [self.units_of(labels) for labels in batch["labels"]]
        loss = nn.functional.ctc_loss(
            scores,
            torch.cat(units),
            torch.full((len(units),), scores.shape[0]),
            torch.tensor([len(each) for each in units]),
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )
        return self.weight * loss / tokens

    def units_of(self, labels: torch.Tensor) -> torch.Tensor:
        """The units (units,) of one text's `labels` (tokens,); those of special tokens and times left out."""
        spelt = self.spelling[labels[(labels != IGNORED) & (labels < len(self.spelling))]]
        units = spelt[spelt != IGNORED]
        return units[last_bytes(units)] if self.of_bytes else units


def last_bytes(values: torch.Tensor) -> torch.Tensor:
    """Which bytes (bytes,) of UTF-8 end a character: those that no byte of the form 10xxxxxx follows."""
    following = nn.functional.pad(values[1:], (0, 1))
    return (following < 0x80) | (following >= 0xC0)


@objectives.register("ctc", EncoderCtc)
def build_ctc(config: EncoderCtc, setting: Setting) -> CtcObjective:
    """Text tokens are those before Whisper's first special token, the end of text. Raises SottoError for CTC models."""
    family = setting.family
    settings = family.model.config
    if not settings.is_encoder_decoder:
        raise SottoError("the objective ctc is for the encoder of a Whisper; a CTC model learns by CTC as it is")
    text_tokens = int(settings.eos_token_id)
    if config.units == "tokens":
        return CtcObjective(config.weight, settings.d_model, torch.arange(text_tokens)[:, None])
    return CtcObjective(config.weight, settings.d_model, spelt(family.processor.tokenizer, text_tokens), of_bytes=True)


def spelt(tokenizer: Any, count: int) -> torch.Tensor:
    """(count, longest): the bytes of the first tokens of a byte-level vocabulary, padded with -100."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    texts = tokenizer.convert_ids_to_tokens(list(range(count)))
    rows = [torch.tensor([byte_of[character] for character in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
