"""WER, bytes and speed of one model in several kinds of whole numbers, without any training.

    python benchmarks/quantization.py --model benchmarks/reference/NAME --test CORPUS/... --language en \\
        --normalizer english --name NAME

Differences in WER are paired over the same clips, with 95 % intervals. Bytes are those of the file, and what they would
be where every weight took its bits and nothing else. Times are of the first test clip: encoder, a decoded token, all.
`--torchao` (`pip install 'sotto[torchao]'`) adds products by torchao.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning_bench import change_of, error_rates
from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.measurement import evaluate, visit_in_turn
from sotto.methods import Quantization, StepContext, methods
from sotto.metrics.cost import bytes_on_disk, ideal_bytes
from sotto.metrics.errors import ErrorReport
from sotto.report.formats import rate
from sotto.text import get_normalizer
from sotto.torchao_products import check_torchao

ROUNDS = 5


def ways(has_table: bool, torchao: bool) -> Iterator[tuple[str, Quantization]]:
    """What is compared; the table of tokens, where there is one, is in 8 bits where that is said, or bits are 4."""
    yield "8 bits, a scale a matrix (as Whisper-KDQ's code)", Quantization(scales="tensor", dynamic=False)
    yield "8 bits", Quantization(dynamic=False)
    yield "8 bits, inputs too", Quantization()
    table: dict[str, Any] = {"embedding_bits": 8} if has_table else {}
    if has_table:
        yield "8 bits, inputs and the table of tokens too", Quantization(**table)
    yield "4 bits, a scale a matrix", Quantization(bits=4, scales="tensor", **table)
    yield "4 bits", Quantization(bits=4, **table)
    yield "4 bits in blocks of 32", Quantization(bits=4, scales="block", **table)
    if torchao:
        yield "8 bits, by torchao", Quantization(dynamic=False, library="torchao")
        yield "8 bits, inputs too, by torchao", Quantization(library="torchao")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "test", "language", "normalizer", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--samples", type=int, help="test clips to draw")
    parser.add_argument("--torchao", action="store_true", help="products by torchao too")
    arguments = parser.parse_args()
    if arguments.torchao:
        check_torchao()  # before all else, so that nothing is lost where it is not installed
    dense = load(arguments.model)
    test = DataConfig(arguments.test, samples=arguments.samples)
    decoding = Decoding(language=arguments.language, batch_size=16)

    def errors_of(recognizer: Recognizer) -> ErrorReport:
        clips = open_data(test, sampling_rate=recognizer.sampling_rate)
        return evaluate(recognizer, clips, decoding, get_normalizer(arguments.normalizer, arguments.language))

    with tempfile.TemporaryDirectory() as scratch:
        folder = dense.save(Path(scratch) / "dense", "float16")
        before = errors_of(dense)
        rows = [{"way": "dense, 16 bits", **error_rates(before, None), **sizes_of(dense, folder)}]
        openers: list[Callable[[], Recognizer]] = [partial(load, folder)]
        for name, way in ways(dense.architecture.tied_embedding is not None, arguments.torchao):
            recognizer = dense.copy()
            methods.handler(way)(recognizer, way, StepContext(Path()))
            folder = recognizer.save(Path(scratch) / str(len(rows)), "float16")
            openers.append(partial(load, folder))
            rows.append({"way": name, **error_rates(errors_of(recognizer), before), **sizes_of(recognizer, folder)})
            print(line(rows[-1]), flush=True)
        clip = next(iter(open_data(test, sampling_rate=dense.sampling_rate)))
        for row, times in zip(rows, milliseconds(openers, clip.audio), strict=True):
            row["milliseconds"] = times
    print("\n".join(map(line, rows)))
    settings = {"model": Path(arguments.model).name, "test": "/".join(Path(arguments.test).parts[-2:])}
    if arguments.torchao:
        settings["torchao"] = version("torchao")
    definition = {"clips": before.clips, "normalizer": before.normalizer, "decoding": decoding.describe()}
    print(write_results(f"quantization-{arguments.name}", {**settings, **definition, "rows": rows}))


def milliseconds(openers: list[Callable[[], Recognizer]], audio: NDArray[np.float32]) -> list[dict[str, float | None]]:
    """Encoder, token and all of each model: medians of `ROUNDS` visits, in turn."""
    return [
        {
            "encoder": 1000 * median(visit.encoder for visit in each),
            "token": 1000 * median(visit.decoder / visit.tokens for visit in each) if each[0].tokens else None,
            "total": 1000 * median(visit.total for visit in each),
        }
        for each in visit_in_turn(openers, audio, ROUNDS)
    ]


def sizes_of(recognizer: Recognizer, folder: Path) -> dict[str, int]:
    return {"bytes": bytes_on_disk(folder), "packed_bytes": ideal_bytes(recognizer.model, 2)}


def line(row: dict[str, Any]) -> str:
    """A row of a table in the docs."""
    times = [f"{value:.1f} ms" if value is not None else "" for value in row.get("milliseconds", {}).values()]
    size = f"{row['bytes'] / 1e6:.2f} MB ({row['bytes'] / row['packed_bytes']:.2f})"
    return f"| {' | '.join([row['way'], rate(row['wer']), change_of(row), rate(row['cer']), size, *times])} |"


if __name__ == "__main__":
    main()
