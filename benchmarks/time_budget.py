"""Whether a budget of time is met: an encoder of a true shape with random weights, before and after, in one runtime.

    python benchmarks/time_budget.py low_rank --shape base --time 0.8 --runtimes torch onnx-int8
    python benchmarks/time_budget.py head_reduction --shape base --time 0.8 --runtimes torch onnx-int8

Every direction of an output, or channel of a head, is taken to carry a little less than the one before it, the same in
all layers. The encoders before and after then take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports.runtimes import RUNTIMES, Runtime, RuntimeName, seconds_of
from sotto.methods.factoring import linear_at
from sotto.methods.head_costs import head_costs
from sotto.methods.head_dimensions import by_budget
from sotto.methods.head_narrowing import attentions_of
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.low_rank_config import LowRank
from sotto.methods.rank_costs import encoder_costs
from sotto.methods.ranks import ranks_by_budget
from sotto.metrics.cost import encoder_flops
from sotto.surgery import head_dim_of, narrow_heads

Smaller = tuple[Recognizer, float]
"""What a budget leaves, and the share of the time that it expects."""


def factored(dense: Recognizer, share: float, runtime: RuntimeName) -> Smaller:
    config = LowRank(time=share, runtime=runtime)
    found = [(stack.name, index, linear) for stack, index, linear in places(dense, ("encoder",))]
    errors = {place: 0.99 ** torch.arange(linear_at(dense, place).out_features).double() for place in found}
    costs = encoder_costs(dense, config, found)
    ranks = ranks_by_budget(config, costs, errors)
    smaller = dense.copy()
    for (stack, index, linear), rank in ranks.items():
        factor_at_random(smaller, smaller.architecture.stack(stack), index, linear, rank)
    return smaller, costs.left(ranks)


def narrowed(dense: Recognizer, share: float, runtime: RuntimeName) -> Smaller:
    config = HeadReduction(time=share, runtime=runtime)
    choices = {
        place: range(config.multiple, head_dim_of(dense.model, *place), config.multiple)
        for place in attentions_of(dense, ("encoder",))
    }
    errors = {(place, channels): 0.95**channels for place, own in choices.items() for channels in own}
    costs = head_costs(dense, config, choices)
    dimensions = by_budget(config, costs, errors)
    smaller = dense.copy()
    for place, channels in dimensions.items():
        narrow_heads(smaller.model, *place, channels)
    return smaller, costs.left(dimensions)


METHODS: dict[str, Callable[[Recognizer, float, RuntimeName], Smaller]] = {
    "low_rank": factored,
    "head_reduction": narrowed,
}


def ratios(dense: Recognizer, smaller: Recognizer, runtime: Runtime, rounds: int) -> list[float]:
    """Time of the smaller encoder as a share of the dense one's, round by round."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = [runtime.encoder_run(runtime.prepared(each), Path(scratch)) for each in (dense, smaller)]
        for _ in range(rounds + 1):
            before, after = map(seconds_of, runs)
            found.append(after / before)
    return found[1:]


def measured(method: str, shape: str, share: float, runtime: RuntimeName, rounds: int) -> dict[str, object]:
    dense = random_whisper(shape, decoder_layers=1)
    asked = {"runtime": runtime, "budget": share}
    try:
        smaller, expected = METHODS[method](dense, share, runtime)
    except SottoError as error:
        return {**asked, "refused": str(error)}
    shares = ratios(dense, smaller, RUNTIMES[runtime], rounds)
    lower, _, upper = statistics.quantiles(shares, n=4)
    return {
        **asked,
        "flops": encoder_flops(smaller.model) / encoder_flops(dense.model),
        "expected": expected,
        "found": statistics.median(shares),
        "quarters": (lower, upper),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--shape", default="base")
    parser.add_argument("--time", type=float, nargs="+", default=[0.8])
    parser.add_argument("--runtimes", nargs="+", default=["torch", "onnx-int8"], choices=RUNTIMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", help="of the results; the shape's if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for runtime in arguments.runtimes:
        for share in arguments.time:
            rows.append(measured(arguments.method, arguments.shape, share, runtime, arguments.rounds))
            print(rows[-1], flush=True)
            values = {"threads": arguments.threads, "rounds": arguments.rounds, "rows": rows}
            write_results(f"time-budget-{arguments.name or arguments.shape}-{arguments.method}", values)


if __name__ == "__main__":
    main()
