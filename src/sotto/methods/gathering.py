"""Whether a linear that hears some of its inputs only is faster than one that multiplies the others by zero."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.families import Ctc
from sotto.layers import GatheredLinear

REPEATS = 9


class GatherTimes:
    """Measures on this machine, in the model's precision, and remembers every shape.

    An encoder hears all frames of a window at once; a decoder one token at a time.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self.device, self.dtype = recognizer.model.device, recognizer.model.dtype
        self.rows = {stack.name: rows_of(recognizer, stack) for stack in recognizer.architecture.stacks}
        self.known: dict[tuple[str, int, int, int], bool] = {}

    def pays(self, stack: Stack, inputs: int, kept: int, outputs: int) -> bool:
        shape = (stack.name, inputs, kept, outputs)
        if shape not in self.known:
            heard = torch.randn(1, self.rows[stack.name], inputs, device=self.device, dtype=self.dtype)
            whole = nn.Linear(inputs, outputs, device=self.device, dtype=self.dtype)
            some = GatheredLinear(inputs, kept, outputs, bias=True, device=self.device, dtype=self.dtype)
            some.columns.copy_(torch.arange(kept))
            self.known[shape] = is_faster(lambda: some(heard), lambda: whole(heard), self.device)
        return self.known[shape]


def rows_of(recognizer: Recognizer, stack: Stack) -> int:
    """Rows that a linear of the stack multiplies at once."""
    if stack.name == "decoder":
        return 1
    family = recognizer.family
    if isinstance(family, Ctc):
        return round(family.window_seconds * family.sampling_rate / family.samples_per_frame)
    return int(recognizer.model.config.max_source_positions)


@torch.no_grad()
def is_faster(new: Callable[[], object], old: Callable[[], object], device: torch.device) -> bool:
    """Whether the median time of `new`, taken in turn with `old`, is below 0.95 of the latter's."""
    times: dict[Callable[[], object], list[float]] = {new: [], old: []}
    for run in (new, old):
        run()
    for _ in range(REPEATS):
        for run in (new, old):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[run].append(time.perf_counter() - start)
    return statistics.median(times[new]) < 0.95 * statistics.median(times[old])
