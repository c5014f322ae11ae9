"""Connectionist temporal classification on Whisper's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, Example
from sotto.families.whisper_transcription import TIME_STEP
from sotto.objectives.objective import Objective, Setting, objectives

POSITIONS = "ctc_positions"


@dataclass(frozen=True)
class EncoderCtc:
    """Teaches the encoder where words are."""

    weight: float = 0.3
    units: Literal["tokens", "characters"] = "tokens"
    """what is found in the audio: the decoder's tokens, or the characters that they are written with. There are few and
    each is often heard, so that little speech is enough to find them. A character is told by its last byte of UTF-8,
    which is nearly always enough within one script"""
    flat_start: int = 0
    """steps at first in which the units are taken to follow one another evenly. From nothing CTC stands for long where
    it says the same of all audio; where the units roughly are is enough to leave that place"""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise SottoError(f"weight must be positive, found {self.weight}")
        if self.flat_start < 0:
            raise SottoError(f"flat_start must not be negative, found {self.flat_start}")


@dataclass(frozen=True)
class PositionCounts:
    """Examples -> how many of the encoder's positions, one for every `position` samples, have a part of the audio."""

    position: int

    def __call__(self, examples: list[Example]) -> Batch:
        return {POSITIONS: torch.tensor([-(-len(example.audio) // self.position) for example in examples])}


class CtcObjective(Objective):
    """CTC of the text tokens, or of the characters in them, over the encoder's positions (Graves et al., 2006)."""

    name = "ctc"
    spelling: torch.Tensor
    steps: torch.Tensor

    def __init__(self, config: EncoderCtc, width: int, position: int, spelling: torch.Tensor) -> None:
        """`width` of the encoder's states, of which there is one for every `position` samples.

        `spelling` (text tokens, longest): the units of every token, padded with -100. Where characters are found, the
        bytes of UTF-8.
        """
        super().__init__()
        self.config = config
        self.blank = int(spelling.max()) + 1
        self.head = nn.Linear(width, self.blank + 1)
        self.register_buffer("spelling", spelling, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=config.flat_start > 0)
        self.collate = PositionCounts(position) if config.flat_start else None

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(outputs.encoder_last_hidden_state).float().log_softmax(-1)
        units = [self.units_of(labels) for labels in batch["labels"]]
        if self.steps < self.config.flat_start:
            loss = even_loss(scores, units, batch[POSITIONS])
        else:
            loss = self.found(scores, units)
        return self.config.weight * loss / tokens

    def found(self, scores: torch.Tensor, units: list[torch.Tensor]) -> torch.Tensor:
        """The loss of CTC, summed, of log probabilities (batch, positions, units)."""
        scores = scores.transpose(0, 1)
        loss: torch.Tensor = nn.functional.ctc_loss(
            scores,
            torch.cat(units),
            torch.full((len(units),), scores.shape[0]),
            torch.tensor([len(each) for each in units]),
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )
        return loss

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        self.steps.fill_(step)

    def units_of(self, labels: torch.Tensor) -> torch.Tensor:
        """The units (units,) of one text's `labels` (tokens,); those of special tokens and times left out."""
        spelt = self.spelling[labels[(labels != IGNORED) & (labels < len(self.spelling))]]
        units = spelt[spelt != IGNORED]
        return units[last_bytes(units)] if self.config.units == "characters" else units


def even_loss(scores: torch.Tensor, units: list[torch.Tensor], counts: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with units that share a clip's positions evenly: its mean over these, times the number of units.

    `scores` (batch, positions, units) are log probabilities; `units` (units,) are those of each clip, which lasts for
    `counts` (batch,) positions. Models of hidden Markov states are begun in this way ("flat start").
    """
    losses = []
    for own, text, count in zip(scores, units, counts.tolist(), strict=True):
        heard = own[:count]
        if len(text) and len(heard):
            places = torch.arange(len(heard), device=own.device) * len(text) // len(heard)
            losses.append(len(text) * nn.functional.nll_loss(heard, text[places]))
    return torch.stack(losses).sum() if losses else scores.sum() * 0.0


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
    spelling = torch.arange(text_tokens)[:, None]
    if config.units == "characters":
        spelling = spelt(family.processor.tokenizer, text_tokens)
    return CtcObjective(config, settings.d_model, round(TIME_STEP * family.sampling_rate), spelling)


def spelt(tokenizer: Any, count: int) -> torch.Tensor:
    """(count, longest): the bytes of the first tokens of a byte-level vocabulary, padded with -100."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    texts = tokenizer.convert_ids_to_tokens(list(range(count)))
    rows = [torch.tensor([byte_of[character] for character in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
