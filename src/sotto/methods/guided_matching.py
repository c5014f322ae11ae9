"""Which layer of its teacher each layer of a student learns from.

After the released code of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788; `loss.py`).
"""

from __future__ import annotations

from typing import Literal

import torch

Matching = Literal["static", "free", "monotone"]


def matched(errors: torch.Tensor, matching: Matching) -> list[int]:
    """The teacher's layer for each of the student's; `errors` is (student's layers, teacher's layers), on the CPU.

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
