"""Whether a budget of time is met: an encoder of a true shape with random weights, before and after, in one runtime.

    python benchmarks/time_budget.py --shape base --time 0.8 --runtimes torch onnx-int8

Every direction of an output is taken to carry a little less than the one before it, the same in all linears. Dense and
factored encoders then take turns. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports.runtimes import RUNTIMES, Runtime
from sotto.methods.factoring import linear_at
from sotto.methods.low_rank_config import LowRank
from sotto.methods.rank_costs import encoder_costs
from sotto.methods.ranks import ranks_by_budget
from sotto.metrics.cost import encoder_flops


def ratios(dense: Recognizer, factored: Recognizer, runtime: Runtime, rounds: int) -> list[float]:
    """Time of the factored encoder as a share of the dense one's, round by round."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = [runtime.encoder_run(runtime.prepared(each), Path(scratch)) for each in (dense, factored)]
        for _ in range(rounds + 1):
            seconds = []
            for run in runs:
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            found.append(seconds[1] / seconds[0])
    return found[1:]


def measured(shape: str, config: LowRank, rounds: int) -> dict[str, object]:
    dense = random_whisper(shape, decoder_layers=1)
    found = [(stack.name, index, linear) for stack, index, linear in places(dense, ("encoder",))]
    errors = {place: 0.99 ** torch.arange(linear_at(dense, place).out_features).double() for place in found}
    costs = encoder_costs(dense, config, found)
    try:
        ranks = ranks_by_budget(config, costs, errors)
    except SottoError as error:
        return {"runtime": config.runtime, "budget": config.time, "seconds": costs.total, "refused": str(error)}
    factored = dense.copy()
    for (stack, index, linear), rank in ranks.items():
        factor_at_random(factored, factored.architecture.stack(stack), index, linear, rank)
    shares = ratios(dense, factored, RUNTIMES[config.runtime or "torch"], rounds)
    quarters = statistics.quantiles(shares, n=4)
    return {
        "runtime": config.runtime,
        "budget": config.time,
        "seconds": costs.total,
        "factored": len(ranks),
        "linears": len(found),
        "flops": encoder_flops(factored.model) / encoder_flops(dense.model),
        "expected": costs.left(ranks),
        "found": statistics.median(shares),
        "quarters": (quarters[0], quarters[2]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base")
    parser.add_argument("--time", type=float, nargs="+", default=[0.8])
    parser.add_argument("--runtimes", nargs="+", default=["torch", "onnx-int8"], choices=RUNTIMES)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for runtime in arguments.runtimes:
        for share in arguments.time:
            rows.append(measured(arguments.shape, LowRank(time=share, runtime=runtime), arguments.rounds))
            print(rows[-1], flush=True)
            write_results(f"time-budget-{arguments.shape}", {"threads": 1, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
