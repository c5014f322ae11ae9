"""Terms added to the training loss. One is registered here; methods bring their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.families import Family
from sotto.registry import Registry


class Objective(nn.Module):
    """A term of the loss: `forward(model, batch, outputs, tokens) -> scalar`.

    `outputs` are the model's own for this batch; `tokens` is the number of label tokens in the whole batch, over all
    processes: a term is a sum divided by it, so that it does not depend on how the batch is split. A term of the
    weights alone is multiplied by this batch's share of `tokens`, so that it counts once over all processes. An
    objective may own parameters, which are trained beside the model and never shipped, and may act after each
    optimiser step.
    """

    name: str

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after optimiser step number `step` (from 1)."""


objectives: Registry[Callable[[Any, Family], Objective]] = Registry("objective")


@dataclass(frozen=True)
class Ctc:
    """Connectionist temporal classification on Whisper's encoder: it teaches the encoder where words are."""

    weight: float = 0.3
    units: Literal["tokens", "bytes"] = "tokens"
    """what is found in the audio: the decoder's tokens, or the bytes that they stand for. There are few bytes and each
    is often heard, so that little speech is enough to find them"""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise SottoError(f"weight must be positive, found {self.weight}")


class CtcObjective(Objective):
    """CTC of the text tokens, or of what they are spelt with, over the encoder's positions (Graves et al., 2006)."""

    name = "ctc"
    spelling: torch.Tensor

    def __init__(self, weight: float, width: int, spelling: torch.Tensor) -> None:
        """`spelling` (text tokens, longest): the units of every token, padded with -100."""
        super().__init__()
        self.weight = weight
        self.blank = int(spelling.max()) + 1
        self.head = nn.Linear(width, self.blank + 1)
        self.register_buffer("spelling", spelling, persistent=False)

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(outputs.encoder_last_hidden_state).float().log_softmax(-1).transpose(0, 1)
        units = self.units_of(batch["labels"])
        loss = nn.functional.ctc_loss(
            scores,
            units[units != IGNORED],
            torch.full((len(units),), scores.shape[0], device=units.device),
            (units != IGNORED).sum((1, 2)),
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )
        return self.weight * loss / tokens

    def units_of(self, labels: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, longest spelling): the units of `labels` (batch, tokens); -100 for all but text."""
        is_text = (labels != IGNORED) & (labels < len(self.spelling))
        return self.spelling[labels.where(is_text, 0)].where(is_text[..., None], IGNORED)


@objectives.register("ctc", Ctc)
def build_ctc(config: Ctc, family: Family) -> CtcObjective:
    """Text tokens are those before Whisper's first special token, the end of text. Raises SottoError for CTC models."""
    settings = family.model.config
    if not settings.is_encoder_decoder:
        raise SottoError("the objective ctc is for the encoder of a Whisper; a CTC model learns by CTC as it is")
    text_tokens = int(settings.eos_token_id)
    if config.units == "tokens":
        return CtcObjective(config.weight, settings.d_model, torch.arange(text_tokens)[:, None])
    return CtcObjective(config.weight, settings.d_model, spelt(family.processor.tokenizer, text_tokens))


def spelt(tokenizer: Any, count: int) -> torch.Tensor:
    """(count, longest): the bytes of the first tokens, padded with -100.

    A byte-level vocabulary writes every byte as one character.
    """
    texts = tokenizer.convert_ids_to_tokens(list(range(count)))
    numbers = {character: number for number, character in enumerate(sorted(set("".join(texts))))}
    rows = [torch.tensor([numbers[character] for character in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
