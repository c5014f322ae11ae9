"""Which layer of its teacher each layer of a student learns from, and how far apart two layers are.

After the released code of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788; `loss.py`).
"""

from __future__ import annotations

from typing import Literal

import torch

Matching = Literal["static", "free", "monotone"]


def matched(errors: torch.Tensor, matching: Matching) -> list[int]:
    """The teacher's layer for each of the student's; `errors` is (student's layers, teacher's layers).

    `static` looks at no error: the last of as many even parts of the teacher as the student has layers, which is 2i + 1
    for 6 layers of 12. `free`: the nearest. `monotone`: the nearest from the one matched last on, so that several
    layers may have the same one, but none an earlier one than those before it.
    """
    own, wanted = errors.shape
    if matching == "static":
        return [max((layer + 1) * wanted // own - 1, 0) for layer in range(own)]
    if matching == "free":
        return [int(place) for place in errors.argmin(1)]
    found, first = [], 0
    for layer in range(own):
        first += int(errors[layer, first:].argmin())
        found.append(first)
    return found


def states_apart(own: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far states (positions, width) are apart: summed squares of the differences of their softmaxes.

    The square of the temperature is in it. Over many channels a softmax is flat, and its squares are small beside a
    divergence of tokens: the log shows both.
    """
    shares = [(states.float() / temperature).softmax(-1) for states in (own, wanted)]
    return temperature**2 * (shares[0] - shares[1]).square().sum()


def weights_apart(own: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far weights (outputs, inputs) are apart: summed sizes of the differences of the softmaxes of their rows.

    The code calls it the quantization loss, though no quantized weight is in it.
    """
    shares = [(weights.float() / temperature).softmax(-1) for weights in (own, wanted)]
    return temperature**2 * (shares[0] - shares[1]).abs().sum()
