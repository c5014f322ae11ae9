"""How fast a Whisper is in each runtime on this machine's CPU, dense and compressed, side by side.

    python benchmarks/runtimes.py --shape tiny --name tiny
    python benchmarks/runtimes.py --model benchmarks/reference/NAME --calibration CORPUS/... --audio CORPUS/... \\
        --language en --normalizer english --name NAME

With `--shape`: true shapes, random weights, noise. With `--model`: a trained model; beside the times its errors on the
clips of `--audio`, held to those of the dense model in torch, and the speed of what users of each runtime run.

Clips are heard twice, and the second pass counts: in the first, some runtimes prepare themselves for every shape of a
batch that is new to them; its speed stands beside.

Every row is measured in a process of its own, in turn, round after round, with pauses: two thread pools in one process
disturb each other. Speed-ups are medians of per-round ratios. What is written stays in `--folder`, and a second run
goes on with it. OpenVINO computes in bfloat16 by itself where the CPU has it, but for float32, where it is told not to;
CTranslate2 heeds CT2_FORCE_CPU_ISA.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any

import torch

from results_file import check_folder, write_results
from runtime_pipelines import AUDIO_CTX, BATCH, PIPELINES, Heard, Hearing, hear
from runtime_rows import COLUMNS, PLAIN, RUNTIMES, Row, cost_of_dense, dense_of, described, heading, line, written
from runtime_variants import Change, random_base, variants
from shapes import SHAPES
from sotto.checkpoint import Recognizer, load
from sotto.configuration import to_plain
from sotto.data import DataConfig, open_data
from sotto.demo import DEMO_CLIPS
from sotto.exports import CALIBRATION_CLIPS, clips_of
from sotto.metrics.errors import ErrorReport, compare
from sotto.report.formats import points, rate
from sotto.side_by_side import Timing, in_turn

LIBRARIES = (
    "onnxruntime",
    "openvino",
    "openvino-genai",
    "nncf",
    "sherpa-onnx",
    "ctranslate2",
    "faster-whisper",
    "pywhispercpp",
)
OWN = ("sotto", "batches")  # ways of hearing in Sotto
SCALE_CLIPS = 8  # for random weights, which gain nothing from more
HEARD_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "variant": COLUMNS["variant"],
    "runtime": COLUMNS["runtime"],
    "WER": lambda row: rate(row["errors"]["wer"]) if "errors" in row else "",
    "against dense torch": lambda row: with_interval(row["errors"]["against_dense"]) if "errors" in row else "",
    "RTFx in Sotto": lambda row: real_time(row.get("sotto")),
    f"RTFx in batches of {BATCH}": lambda row: real_time(row.get("batches")),
    "in the first pass": lambda row: real_time(row.get("batches"), "first_real_time_factor"),
    "× torch": lambda row: f"{row['sotto']['against_torch']:.2f}" if "sotto" in row else "",
    "× own dense": lambda row: f"{row['sotto']['against_dense']:.2f}" if "sotto" in row else "",
    "WER of its pipeline": lambda row: wer_of(row.get("pipeline")),
    "RTFx of its pipeline": lambda row: real_time(row.get("pipeline")),
    "with audio_ctx": lambda row: real_time(row.get(AUDIO_CTX)),
}


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.folder or Path("runs") / "runtimes" / arguments.name)
    check_folder(folder, {"model": arguments.shape or arguments.model, "calibration": arguments.calibration})
    base = random_base(arguments.shape) if arguments.shape else load(arguments.model, device="cpu")
    base.language = arguments.language
    clips = clips_of(arguments.calibration, base, SCALE_CLIPS if arguments.shape else CALIBRATION_CLIPS)
    runtimes = [PLAIN, *(each for each in RUNTIMES if each != PLAIN and each.name in arguments.runtimes)]
    rows = list(written(base, changes(arguments, base), runtimes, folder, clips))
    timing = Timing(arguments.rounds, arguments.repeats, arguments.threads, tokens=arguments.tokens, device="cpu")
    settings = {
        "model": arguments.shape or Path(arguments.model).name,
        "timing": to_plain(timing),
        "isa": os.environ.get("CT2_FORCE_CPU_ISA"),
        "versions": {each.name: each.version for each in distributions() if each.name in LIBRARIES},
    }
    results = timed(
        rows, timing, lambda found: write_results(f"runtimes-{arguments.name}", {**settings, "rows": found})
    )
    if arguments.audio:
        hearing = Hearing(
            DataConfig(arguments.audio, samples=arguments.samples),
            arguments.language,
            arguments.normalizer,
            arguments.threads,
        )
        heard(rows, results, hearing, arguments.rounds)
        settings |= {"test": "/".join(Path(arguments.audio).parts[-2:]), "decoding": hearing.decoding.describe()}
    print(write_results(f"runtimes-{arguments.name}", {**settings, "rows": results}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shape", choices=list(SHAPES))
    which.add_argument("--model", help="a trained Whisper")
    parser.add_argument("--also", nargs="*", default=[], help="checkpoints made of the same model, as further variants")
    parser.add_argument("--variants", nargs="*", default=list(variants(None)), help="dense is always among them")
    parser.add_argument("--runtimes", nargs="*", default=[runtime.name for runtime in RUNTIMES])
    parser.add_argument("--calibration", help="audio for low rank, proofs and scales; bundled clips if none")
    parser.add_argument("--audio", help="an audio folder with transcripts, for a trained model")
    parser.add_argument("--samples", type=int, help="clips of --audio to draw")
    parser.add_argument("--language", default="en")
    parser.add_argument("--normalizer", default="basic")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="for what is written; runs/runtimes/NAME if none")
    parser.add_argument("--name", required=True, help="of the file in results/")
    return parser.parse_args()


def changes(arguments: argparse.Namespace, base: Recognizer) -> dict[str, Change]:
    """The variants that are asked for."""
    calibration = None
    if arguments.model:
        config = DataConfig(arguments.calibration or str(DEMO_CLIPS), samples=CALIBRATION_CLIPS)
        calibration = open_data(config, sampling_rate=base.sampling_rate)
    known = {name: each for name, each in variants(calibration).items() if name in ("dense", *arguments.variants)}
    return known | {Path(each).name: lambda _, place=each: load(place, device="cpu") for each in arguments.also}


def timed(rows: Sequence[Row], timing: Timing, write: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
    """Visit all rows round after round, and write after every round what is known by then."""
    dense, results = cost_of_dense(rows), []
    for number in range(timing.rounds):
        for row, visits in zip(rows, in_turn([row.visit(timing, dense) for row in rows], 1), strict=True):
            row.visits += visits
        results = [described(row, rows) for row in rows]
        write(results)
        print(f"round {number + 1} of {timing.rounds}", flush=True)
    print(heading(list(COLUMNS)))
    for result in results:
        print(line(result, COLUMNS), flush=True)
    return results


def heard(rows: Sequence[Row], results: Sequence[dict[str, Any]], hearing: Hearing, rounds: int) -> None:
    """Put beside the times of every row errors and speed on real clips, in Sotto, there in batches too, and in the
    runtime's own pipeline; of whisper.cpp, which is told the words, the speed alone."""
    asked = [(number, row, by) for number, row in enumerate(rows) for by in ways_of(row)]
    calls = [
        partial(hear, by, row.dtype if by in OWN else row.runtime.precision, str(row.place), hearing)
        for _, row, by in asked
    ]
    found = in_turn(calls, rounds)
    passes = {(row.name, by): each for (_, row, by), each in zip(asked, found, strict=True)}
    plain = passes[dense_of(rows, PLAIN).name, "sotto"]
    for number, row, by in asked:
        own, dense = passes[row.name, by], passes[dense_of(rows, row.runtime).name, by]
        results[number]["pipeline" if by == row.runtime.to else by] = speed_of(own, plain, dense)
        errors, before = own[0].errors, plain[0].errors
        if by == "sotto" and errors and before:
            results[number]["errors"] = errors_of(errors, before)
    print(heading(list(HEARD_COLUMNS)))
    for result in results:
        print(line(result, HEARD_COLUMNS), flush=True)


def ways_of(row: Row) -> list[str]:
    """Sotto opens no file of whisper.cpp."""
    if row.runtime.to == "whisper.cpp":
        return [row.runtime.to, AUDIO_CTX]
    return [by for by in (*OWN, row.runtime.to) if by in PIPELINES]


def errors_of(report: ErrorReport, dense: ErrorReport) -> dict[str, Any]:
    compared = compare(dense, report)
    interval = compared.wer_interval
    return {
        "wer": report.wer,
        "wer_interval": [report.wer_interval.low, report.wer_interval.high],
        "against_dense": {"wer": compared.wer_difference, "interval": [interval.low, interval.high]},
        "clips": report.clips,
        "normalizer": report.normalizer,
    }


def speed_of(passes: Sequence[Heard], plain: Sequence[Heard], own: Sequence[Heard]) -> dict[str, Any]:
    return {
        "wer": passes[0].errors.wer if passes[0].errors else None,
        "seconds": [each.seconds for each in passes],
        "first_seconds": [each.first_seconds for each in passes],
        "first_real_time_factor": median(each.audio_seconds / each.first_seconds for each in passes),
        "real_time_factor": median(each.real_time_factor for each in passes),
        "against_torch": faster(passes, plain),
        "against_dense": faster(passes, own),
    }


def faster(passes: Sequence[Heard], than: Sequence[Heard]) -> float:
    """How many times as fast: the median over rounds."""
    return median(before.seconds / after.seconds for before, after in zip(than, passes, strict=True))


def real_time(speed: dict[str, Any] | None, factor: str = "real_time_factor") -> str:
    return "" if speed is None else f"{speed[factor]:.1f}"


def wer_of(speed: dict[str, Any] | None) -> str:
    return "" if speed is None or speed["wer"] is None else rate(speed["wer"])


def with_interval(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{points(difference['wer'])} ({points(low)} to {points(high)})"


if __name__ == "__main__":
    main()
