"""Batches of clips of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthSampler(LengthGroupedSampler):
    """Orders by length within groups of up to 50 batches, shuffled before: each epoch in a way of its own.

    `shortest_first`: the first epoch goes from the shortest to the longest.
    """

    def __init__(self, batch_size: int, lengths: Sequence[float], seed: int, shortest_first: bool = False) -> None:
        hundredths = [round(100 * length) for length in lengths]
        super().__init__(batch_size, lengths=hundredths, generator=torch.Generator().manual_seed(seed))
        self.seed = seed
        self.shortest_first = shortest_first
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.generator.manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        if self.shortest_first and self.epoch == 0:
            return iter(sorted(range(len(self.lengths)), key=self.lengths.__getitem__))
        found: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return found


def varied(lengths: Sequence[float]) -> bool:
    return len(set(lengths)) > 1
