"""The command line: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sotto.distribution import processes
from sotto.errors import SottoError

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="sotto",
    help="Make a speech recogniser smaller and faster, and prove on real audio that it still hears.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its id on the Hugging Face hub.")]
Language = Annotated[str | None, typer.Option(help="Language that is spoken: a code (en) or a name (English).")]
NormalizerName = Annotated[
    str | None, typer.Option("--normalizer", help="Text normalizer before counting errors; by language if not given.")
]
Batch = Annotated[int, typer.Option(help="Windows that are decoded together.", min=1)]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")]


def main() -> None:
    """Run the command line: bad input is one line on stderr and exit code 2; Ctrl-C is exit code 130."""
    try:
        app()
    except SottoError as error:
        Console(stderr=True, soft_wrap=True).print(f"sotto: {error}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("sotto: stopped")
        raise


def say(line: str) -> None:
    """A line on stderr, from the first of the processes of a distributed run."""
    if processes().is_main_process:
        Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)


def show(*parts: Any) -> None:
    """Results on stdout, from the first of the processes of a distributed run."""
    if processes().is_main_process:
        for part in parts:
            # Names of folders and clips may have brackets in them, and texts what looks like an emoji's name.
            Console(soft_wrap=isinstance(part, str), markup=False, emoji=False, highlight=False).print(part)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run.")] = Path("sotto-demo"),
) -> None:
    """Compress the bundled recogniser of spoken digits: no network, no data of your own, a few minutes."""
    from sotto.demo import DEMO_RECIPE

    compress_by_recipe(DEMO_RECIPE, output)


@app.command()
def compress(
    base: Annotated[str, typer.Argument(help="A recipe (.yaml), or a checkpoint: a folder or an id on the hub.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run: checkpoints, numbers, report.")],
    low_rank: Annotated[bool, typer.Option("--low-rank", help="Factor the linears of the encoder.")] = False,
    preset: Annotated[str | None, typer.Option(help="quality, balanced (the default) or efficiency.")] = None,
    attention: Annotated[float | None, typer.Option(help="Energy to keep in attention linears, like 0.99.")] = None,
    mlp: Annotated[float | None, typer.Option(help="Energy to keep in feed-forward linears, like 0.999.")] = None,
    parameters: Annotated[float | None, typer.Option(help="Budget: share of the encoder's parameters.")] = None,
    flops: Annotated[float | None, typer.Option(help="Budget: share of the encoder's FLOPs.")] = None,
    time: Annotated[float | None, typer.Option(help="Budget: share of the encoder's time, measured here.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Where time is measured: torch (the default), onnx, ...")] = None,
    sequential: Annotated[bool, typer.Option("--sequential", help="Fit layer by layer; slower, more exact.")] = False,
    quantize: Annotated[int | None, typer.Option(help="Store the linears' weights in 8 or 4 bits.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Audio to calibrate on; needs no transcripts.")] = None,
    samples: Annotated[int | None, typer.Option(help="How many calibration clips to draw.", min=1)] = None,
    test: Annotated[str | None, typer.Option(help="Transcribed audio to measure the word error rate on.")] = None,
    language: Language = None,
    normalizer: NormalizerName = None,
    dtype: Annotated[str | None, typer.Option(help="Precision to save in; the base's if not given.")] = None,
) -> None:
    """Carry out a recipe, or compress a checkpoint with the options below.

    Examples:

        sotto compress recipe.yaml -o runs/first

        sotto compress openai/whisper-small --low-rank --calibration clips/ -o runs/small

        sotto compress openai/whisper-small --quantize 8 --test transcribed/ -o runs/small
    """
    choices = {
        "preset": preset,
        "attention": attention,
        "mlp": mlp,
        "parameters": parameters,
        "flops": flops,
        "time": time,
        "runtime": runtime,
        "sequential": sequential or None,
    }
    roles = {
        "calibration": {"path": calibration, "samples": samples} if calibration else None,
        "test": {"path": test} if test else None,
    }
    values = {
        "base": base,
        "language": language,
        "normalizer": normalizer,
        "dtype": dtype,
        "data": {role: given(data) for role, data in roles.items() if data},
        "steps": [
            *([{"low_rank": given(choices)}] if low_rank else []),
            *([{"quantization": {"bits": quantize}}] if quantize is not None else []),
        ],
    }
    if Path(base).suffix in (".yaml", ".yml"):
        if given(values).keys() - {"base", "data", "steps"} or values["data"] or values["steps"] or given(choices):
            raise SottoError(f"{base} is a recipe; write the options into it, or give a checkpoint instead")
        compress_by_recipe(Path(base), output)
        return
    if not values["steps"] or (given(choices) and not low_rank):
        raise SottoError("say how to compress: --low-rank, --quantize 8, or a recipe (.yaml) instead of a checkpoint")
    compress_by_values(given(values), "options", Path(), output)


def given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def compress_by_recipe(path: Path, output: Path) -> None:
    from sotto.configuration import read_yaml

    compress_by_values(read_yaml(path), path.name, path.parent, output)


def compress_by_values(values: dict[str, Any], where: str, root: Path, output: Path) -> None:
    from sotto.recipe import parse_recipe
    from sotto.report.table import export_table, summary, table
    from sotto.run import carry_out

    numbers = carry_out(parse_recipe(values, where), root, output, say)
    tables = [table(numbers), *([export_table(numbers)] if numbers.exports else [])]
    show(*tables, summary(numbers), f"report: {output / 'report.html'}\nmodel:  {output / 'model'}")


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="Transcribed audio: a folder with metadata.csv, or a hub dataset.")],
    against: Annotated[str | None, typer.Option(help="A second checkpoint, compared pairwise.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data.")] = None,
    samples: Annotated[int | None, typer.Option(help="How many clips to draw.", min=1)] = None,
    language: Language = None,
    normalizer: NormalizerName = None,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    batch: Batch = 8,
    worst: Annotated[int, typer.Option(help="How many of the worst clips to show.", min=0)] = 5,
    json_file: JsonFile = None,
) -> None:
    """Measure word and character error rates with 95 % intervals, and show the worst clips."""
    from sotto.data import DataConfig
    from sotto.decoding import Decoding
    from sotto.evaluation import evaluate_models, evaluation_table, worst_table
    from sotto.text import get_normalizer

    if against == model:
        raise SottoError(f"--against {against} is the same checkpoint; name another one")
    decoding = Decoding(language=language, beams=beams, batch_size=batch)
    config = DataConfig(data, split=split, samples=samples)
    names = [model, *([against] if against else [])]
    result = evaluate_models(names, config, decoding, get_normalizer(normalizer, language))
    show(evaluation_table(result), *([worst_table(result, worst)] if worst else []))
    for line in result.skipped:
        say(f"skipped {line}")
    write_json(json_file, result.to_dict())


@app.command()
def benchmark(
    models: Annotated[list[str], typer.Argument(help="Checkpoints; speeds are given against the first.")],
    audio: Annotated[str | None, typer.Option(help="Audio file to time on; noise if none.")] = None,
    rounds: Annotated[int, typer.Option(help="Visits to every model, in turn.", min=1)] = 3,
    repeats: Annotated[int, typer.Option(help="Timed passes a visit.", min=1)] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json_file: JsonFile = None,
) -> None:
    """Time models side by side: features, encoder, decoder, RTFx and peak memory, beside the FLOPs."""
    from sotto.checkpoint import DTYPES
    from sotto.configuration import nearest, to_plain
    from sotto.metrics.speed import machine
    from sotto.report.side_by_side import side_by_side_tables
    from sotto.side_by_side import Timing
    from sotto.side_by_side import benchmark as measure

    if dtype not in DTYPES:
        raise SottoError(f"unknown dtype '{dtype}'{nearest(dtype, DTYPES)}")
    timing = Timing(rounds, repeats, threads, dtype, audio)
    rows = measure(models, timing)
    show(*side_by_side_tables(rows))
    write_json(json_file, {"machine": machine(), "timing": to_plain(timing), "models": to_plain(rows)})


@app.command()
def transcribe(
    model: Model,
    audio: Annotated[list[str], typer.Argument(help="Audio files, or a folder of them; any length, any sample rate.")],
    style: Annotated[str, typer.Option("--format", "-f", help="text, json, srt or vtt.")] = "text",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for one file a clip.")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Times of segments (srt, vtt: always).")] = False,
    task: Annotated[str, typer.Option(help="transcribe, or translate to English.")] = "transcribe",
    language: Language = None,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    batch: Batch = 8,
) -> None:
    """Write down what is said in audio files."""
    from sotto.configuration import parse
    from sotto.decoding import Decoding
    from sotto.writing import transcribe_files

    settings = {"language": language, "task": task, "beams": beams, "batch_size": batch}
    decoding = parse(Decoding, {**settings, "timestamps": timestamps or style in ("srt", "vtt")}, "options")
    for written in transcribe_files(model, audio, decoding, style, output):
        typer.echo(written)


@app.command()
def inspect(model: Model) -> None:
    """Show every linear of a checkpoint: shape, rank, parameters, FLOPs, share."""
    from sotto.checkpoint import load
    from sotto.measurement import measure_cost
    from sotto.report.table import layer_table

    show(layer_table(measure_cost(load(model, device="cpu"), model)))


@app.command()
def export(
    model: Model,
    to: Annotated[
        str, typer.Option(help="The runtime: openvino, onnx, sherpa-onnx, ctranslate2, lite-whisper, transformers.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the export.")],
    precision: Annotated[
        str, typer.Option(help="float32, float16, bfloat16, int8, int8-calibrated, as far as the runtime has it.")
    ] = "float32",
    audio: Annotated[str | None, typer.Option(help="Audio to compare on; a few bundled clips if none.")] = None,
    language: Language = None,
) -> None:
    """Write a checkpoint for another runtime, and prove on real clips that it computes the same there.

    Example:

        sotto export runs/small/model --to onnx --precision int8 -o small-onnx
    """
    from sotto.exports import export as write

    record = write(model, output, to=to, precision=precision, audio=audio, language=language)
    show(*record.notes, f"{record.agreement.words}\nexport: {output}")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe (.yaml).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for checkpoints and the trained model.")],
    dtype: Annotated[str | None, typer.Option(help="Saved as float32, float16 or bfloat16.")] = None,
) -> None:
    """Train or fine-tune a recogniser; a second start goes on from the last checkpoint."""
    from sotto.training_recipe import read_training_recipe, train_by_recipe

    wer = train_by_recipe(read_training_recipe(recipe), recipe.parent, output, dtype)
    show(f"validation WER {wer:.2%}\nmodel: {output / 'model'}")


def write_json(path: Path | None, values: Any) -> None:
    if path is None or not processes().is_main_process:
        return
    try:
        path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as error:
        raise SottoError(f"{path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    main()
