"""How far a compressed recogniser has moved from its original, in what it would write; no transcripts are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sotto.checkpoint import Recognizer


@torch.inference_mode()
def divergence(
    recognizer: Recognizer, original: Recognizer, transcripts: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Mean Kullback-Leibler divergence of the token distributions from the original's, in nats a token.

    `transcripts` holds windows of features (1, mel bins, frames) and the tokens (1, tokens) that the original wrote.
    """
    total, count = 0.0, 0
    for features, tokens in transcripts:
        expected, found = (
            each.model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits[0].float()
            for each in (original, recognizer)
        )
        total += nn.functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum"
        ).item()
        count += len(expected)
    return total / max(count, 1)
