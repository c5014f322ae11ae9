"""WER, bytes and speed of one model in several kinds of whole numbers, without any training.

    python benchmarks/quantization.py --model benchmarks/reference/NAME --test CORPUS/... --language en \\
        --normalizer english --name NAME

Differences in WER are paired over the same clips, with 95 % intervals. Bytes are those of the file, and what they would
be where every weight took its bits and nothing else. Times are of the first test clip: encoder, a decoded token, all.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pruning_bench import change_of, error_rates
from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.measurement import evaluate, measure_speeds
from sotto.methods import Quantization, StepContext, methods
from sotto.metrics.cost import bytes_on_disk, ideal_bytes
from sotto.metrics.errors import ErrorReport
from sotto.report.formats import rate
from sotto.text import get_normalizer


def ways(has_table: bool) -> Iterator[tuple[str, Quantization]]:
    """What is compared; the table of tokens, where there is one, is in 8 bits in all but the first three."""
    yield "8 bits, a scale a matrix (as Whisper-KDQ's code)", Quantization(scales="tensor", dynamic=False)
    yield "8 bits", Quantization(dynamic=False)
    yield "8 bits, inputs too", Quantization()
    table: dict[str, Any] = {"embedding_bits": 8} if has_table else {}
    if has_table:
        yield "8 bits, inputs and the table of tokens too", Quantization(**table)
    yield "4 bits, a scale a matrix", Quantization(bits=4, scales="tensor", **table)
    yield "4 bits", Quantization(bits=4, **table)
    yield "4 bits in blocks of 32", Quantization(bits=4, scales="block", **table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "test", "language", "normalizer", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--samples", type=int, help="test clips to draw")
    arguments = parser.parse_args()
    dense = load(arguments.model)
    test = DataConfig(arguments.test, samples=arguments.samples)
    decoding = Decoding(language=arguments.language, batch_size=16)

    def errors_of(recognizer: Recognizer) -> ErrorReport:
        clips = open_data(test, sampling_rate=recognizer.sampling_rate)
        return evaluate(recognizer, clips, decoding, get_normalizer(arguments.normalizer, arguments.language))

    with tempfile.TemporaryDirectory() as scratch:
        folders = [dense.save(Path(scratch) / "dense", "float16")]
        before = errors_of(dense)
        rows = [row_of("dense, 16 bits", dense, folders[0], before, None)]
        for name, way in ways(dense.architecture.tied_embedding is not None):
            recognizer = dense.copy()
            methods.handler(way)(recognizer, way, StepContext(Path()))
            folders.append(recognizer.save(Path(scratch) / str(len(folders)), "float16"))
            rows.append(row_of(name, recognizer, folders[-1], errors_of(recognizer), before))
            print(line(rows[-1]), flush=True)
        clip = next(iter(open_data(test, sampling_rate=dense.sampling_rate)))
        for row, latency in zip(rows, measure_speeds(folders, clip.audio, dense.model.device), strict=True):
            row["milliseconds"] = {
                "encoder": 1000 * latency.encoder,
                "token": 1000 * latency.decoder / latency.tokens if latency.tokens else None,
                "total": 1000 * latency.total,
            }
    print("\n".join(map(line, rows)))
    settings = {"model": Path(arguments.model).name, "test": "/".join(Path(arguments.test).parts[-2:])}
    definition = {"clips": before.clips, "normalizer": before.normalizer, "decoding": decoding.describe()}
    print(write_results(f"quantization-{arguments.name}", {**settings, **definition, "rows": rows}))


def row_of(
    name: str, recognizer: Recognizer, folder: Path, report: ErrorReport, before: ErrorReport | None
) -> dict[str, Any]:
    sizes = {"bytes": bytes_on_disk(folder), "packed_bytes": ideal_bytes(recognizer.model, 2)}
    return {"way": name, **error_rates(report, before), **sizes}


def line(row: dict[str, Any]) -> str:
    """A row of a table in the docs."""
    times = [f"{value:.1f} ms" if value is not None else "" for value in row.get("milliseconds", {}).values()]
    size = f"{row['bytes'] / 1e6:.2f} MB ({row['bytes'] / row['packed_bytes']:.2f})"
    return f"| {' | '.join([row['way'], rate(row['wer']), change_of(row), size, *times])} |"


if __name__ == "__main__":
    main()
