"""The statistics of batch norm, taken anew for a model that has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.data import Clip, ClipSource
from sotto.families import evaluating
from sotto.families.family import batches

CLIPS = 512  # about so many are enough for means and variances of a channel


@torch.no_grad()
def renew_statistics(recognizer: Recognizer, sources: Sequence[ClipSource], batch_size: int) -> None:
    """Means and variances of every batch norm: the averages over batches of clips, all else being as in evaluation.

    Clips of about the same length are heard together, as in training: padding counts as silence.
    """
    model, family = recognizer.model, recognizer.family
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # torch then takes the plain average of all batches
        clips = sorted(spread(sources, family.longest_seconds), key=lambda clip: clip.seconds)
        for batch in batches(clips, family.longest_seconds, batch_size):
            family.encode(family.inputs([clip.audio for clip in batch]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def spread(sources: Sequence[ClipSource], longest_seconds: float) -> Iterator[Clip]:
    """About 512 clips from all over the folders, without those that are too long to be learnt from."""
    stride = max(1, sum(len(source.references) for source in sources) // CLIPS)
    for source in sources:
        yield from (clip for clip in source.shard(0, stride) if clip.seconds <= longest_seconds)
