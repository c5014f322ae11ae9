"""What all ways have in common in which a model of the same family teaches another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sotto.architectures import architecture_of
from sotto.errors import SottoError
from sotto.families import Ctc, Family
from sotto.objectives import Setting


def open_teacher(name: str, setting: Setting, method: str) -> Family:
    """The checkpoint `name`, for `method` as it stands in messages.

    Raises SottoError for a teacher of another family, with another vocabulary, of other features than the student's,
    which it hears, or with a shorter window.
    """
    student = setting.family
    teacher = setting.open(name).family
    if architecture_of(teacher.model.config).name != architecture_of(student.model.config).name:
        raise SottoError(f"{method}: the teacher '{name}' is of another family than the student")
    if vocabulary(teacher) != vocabulary(student):
        raise SottoError(f"{method}: the teacher '{name}' has another vocabulary than the student")
    own, wanted = features(student), features(teacher)
    for unit in own:
        if wanted[unit] != own[unit]:
            raise SottoError(f"{method}: the teacher '{name}' hears {wanted[unit]} {unit}, the student {own[unit]}")
    if teacher.window_seconds < student.window_seconds:
        raise SottoError(
            f"{method}: the teacher '{name}' hears windows of {teacher.window_seconds:g} s, the student of "
            f"{student.window_seconds:g} s; shorten the student's, or take another teacher"
        )
    return teacher


def features(family: Family) -> dict[str, int | None]:
    """What a model hears, by the unit; None where its family knows no such thing."""
    extractor = family.processor.feature_extractor
    return {
        "Hz": family.sampling_rate,
        "mel bins": extractor.feature_size,
        "samples to a step": getattr(extractor, "hop_length", None),
        "samples to a frame": family.samples_per_frame if isinstance(family, Ctc) else None,
    }


def vocabulary(family: Family) -> dict[str, int]:
    found: dict[str, int] = family.processor.tokenizer.get_vocab()
    return found


@contextmanager
def hearing_alike(teacher: Family, student: Family) -> Iterator[None]:
    """While this lasts, the teacher is where the student is, and hears windows as long as it does in its training."""
    teacher.model.to(student.model.device)
    differs = teacher.window_seconds != student.window_seconds
    with teacher.window(student.window_seconds if differs else None):
        yield


def divergence_of_scores(
    own: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Kullback-Leibler divergence of scores (batch, decisions, vocabulary), summed over the decisions that count.

    It is multiplied by the square of the temperature (Hinton et al., 2015).
    """
    each = nn.functional.kl_div(
        (own.float() / temperature).log_softmax(-1),
        (wanted.float() / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * (each.sum(-1) * counted).sum()
