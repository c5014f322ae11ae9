"""Which layer of a student learns from which layer of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Match = tuple[int, int]
"""(teacher's layer, student's layer)."""


def identical(teacher_base: Sequence[int], student_base: Sequence[int]) -> list[Match]:
    """Layers that are the same layer of a common base, given which layer of it each one is."""
    place = {base: index for index, base in enumerate(teacher_base)}
    return [(place[base], index) for index, base in enumerate(student_base) if base in place]


def ordered(errors: torch.Tensor) -> list[Match]:
    """Each teacher's layer with the student's layer of the least error below the one matched last, from the top down.

    `errors` (teacher's layers, student's layers). After CoFi (Xia et al., 2022, section 3.3; version 4 of its code),
    which takes each third layer of the teacher and leaves out layers without attention. A teacher's layer with no layer
    left for it goes without.
    """
    matches, below = [], errors.shape[1]
    for layer in reversed(range(errors.shape[0])):
        if below == 0:
            break
        below = int(errors[layer, :below].argmin())
        matches.append((layer, below))
    return matches[::-1]
