"""Terms added to the training loss. One is registered here; methods bring their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
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


objectives: Registry[Callable[[Any, nn.Module], Objective]] = Registry("objective")


@dataclass(frozen=True)
class Ctc:
    """Connectionist temporal classification on the encoder: it teaches the encoder where words are."""

    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise SottoError(f"weight must be positive, found {self.weight}")


class CtcObjective(Objective):
    """CTC of the text tokens over the encoder's positions, through a linear head (Graves et al., 2006)."""

    name = "ctc"

    def __init__(self, config: Ctc, width: int, text_tokens: int) -> None:
        super().__init__()
        self.weight = config.weight
        self.text_tokens = text_tokens
        self.head = nn.Linear(width, text_tokens + 1)

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(outputs.encoder_last_hidden_state).float().log_softmax(-1).transpose(0, 1)
        labels = batch["labels"]
        is_text = (labels != IGNORED) & (labels < self.text_tokens)
        positions = torch.full((labels.shape[0],), scores.shape[0], device=labels.device)
        loss = nn.functional.ctc_loss(
            scores,
            labels[is_text],
            positions,
            is_text.sum(1),
            blank=self.text_tokens,
            reduction="sum",
            zero_infinity=True,
        )
        return self.weight * loss / tokens


@objectives.register("ctc", Ctc)
def build_ctc(config: Ctc, model: nn.Module) -> CtcObjective:
    """Text tokens are those before Whisper's first special token, the end of text. Raises SottoError for CTC models."""
    whisper: Any = model
    if not whisper.config.is_encoder_decoder:
        raise SottoError("the objective ctc is for the encoder of a Whisper; a CTC model learns by CTC as it is")
    return CtcObjective(config, whisper.config.d_model, whisper.config.eos_token_id)
