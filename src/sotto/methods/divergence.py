"""How far a compressed recogniser has moved from its original, in what it would write; no transcripts are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import nn

from sotto.calibration import window_inputs
from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.families import Inputs
from sotto.progress import track


@torch.no_grad()
def divergence(recognizer: Recognizer, original: Recognizer, transcripts: Sequence[Inputs]) -> float:
    """Mean Kullback-Leibler divergence of the distributions from the original's, in nats a decision (token or frame).

    `transcripts` holds inputs for one window each, with the original's transcript where decisions depend on one.
    """
    total, count = 0.0, 0
    for inputs in transcripts:
        expected, found = (each.family.logits(inputs).float() for each in (original, recognizer))
        total += nn.functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum"
        ).item()
        count += len(expected)
    return total / max(count, 1)


@torch.no_grad()
def transcripts_of(recognizer: Recognizer, clips: Iterable[Clip], count: int, task: str) -> list[Inputs]:
    """The first `count` windows of the clips, with what the recogniser writes of them; `task` names the work."""
    windows = track(islice(window_inputs(recognizer, clips), count), task)
    return [recognizer.family.with_transcript(inputs, recognizer.language) for inputs in windows]
