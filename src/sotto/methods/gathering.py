"""Whether a linear that hears some of its inputs only is faster than one that multiplies the others by zero."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.layers import GatheredLinear

REPEATS = 9
ROUNDS = 3


class GatherTimes:
    """Measures on this machine, in the model's precision, and remembers every shape.

    An encoder hears all frames of a window at once; a decoder one token at a time, but the encoder's output as a whole.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self.device, self.dtype = recognizer.model.device, recognizer.model.dtype
        self.window = recognizer.family.window_positions
        self.known: dict[tuple[int, int, int, int], bool] = {}

    def pays(self, stack: Stack, linear: str, inputs: int, kept: int, outputs: int) -> bool:
        """Whether `linear` of a layer is faster with `kept` of its `inputs`."""
        rows = rows_of(stack, linear, self.window)
        shape = (rows, inputs, kept, outputs)
        if shape not in self.known:
            # All processes of a distributed run must come to the same model.
            self.known[shape] = found_by_main(lambda: self.measured(*shape))
        return self.known[shape]

    def measured(self, rows: int, inputs: int, kept: int, outputs: int) -> bool:
        heard = torch.randn(1, rows, inputs, device=self.device, dtype=self.dtype)
        whole = nn.Linear(inputs, outputs, device=self.device, dtype=self.dtype)
        some = GatheredLinear(inputs, kept, outputs, bias=True, device=self.device, dtype=self.dtype)
        some.columns.copy_(torch.linspace(0, inputs - 1, kept).long())  # spread, as those of a pruned linear are
        # One round of short products can be chance, which a model must not depend on.
        return all(is_faster(lambda: some(heard), lambda: whole(heard), self.device) for _ in range(ROUNDS))


def rows_of(stack: Stack, linear: str, window: int) -> int:
    """Rows that a linear multiplies at once, where the encoder has `window` positions."""
    for attention in stack.attentions:
        if attention.position is not None and linear == attention.path(attention.position):
            return 2 * window - 1  # distances in both directions
        if "query" not in attention.same_input and linear in attention.sharing_input:
            return window  # keys and values of what the encoder heard
    return 1 if stack.name == "decoder" else window


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
