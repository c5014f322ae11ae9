"""The sentence with the result, the rows before/after, and the tables for the terminal."""

from dataclasses import replace

import pytest
from made_up_run import bare, base_model, compared, run, two, with_wer
from rich.console import Console
from rich.table import Table

from sotto.metrics.cost import Parameters
from sotto.report import formats
from sotto.report.numbers import RunNumbers
from sotto.report.table import EXPORT_LABELS, export_table, exports, groups, layer_table, summary, table


def printed(shown: Table, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def row(numbers: RunNumbers, label: str) -> list[str]:
    """The cells of one row as text."""
    rows = {row.label: row for group in groups(numbers) for row in group.rows}
    return [f"{cell.value} {cell.detail}".strip() for cell in rows[label].cells]


def test_the_sentence_of_the_made_up_run() -> None:
    numbers = two(with_wer(base_model(), 0.018), with_wer(run().models[1], 0.021))
    final = replace(numbers.models[1], comparison=compared(0.003, -0.001, 0.007))
    assert summary(two(numbers.models[0], final)) == (
        "The encoder has 41 % of its parameters; "
        "WER went from 1.8 % to 2.1 % (+0.3 points, 95 % interval -0.1 to +0.7)."
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"encoder": 9_000_000}, "The encoder has 118 % of its parameters"),
        ({"decoder": 14_776_128}, "The decoder has 50 % of its parameters"),
        (
            {"encoder": 7_632_383, "decoder": 14_776_128},
            "The encoder has 100.00 % of its parameters and the decoder has 50 % of its parameters",
        ),
        ({"nonzero": 18_592_320}, "50 % of the parameters are not zero"),
        ({"nonzero": 37_184_640}, "The model is as large as its base"),
    ],
)
def test_the_sentence_says_what_changed_in_size(change: dict[str, int], expected: str) -> None:
    base = bare(base_model())
    final = replace(base, parameters=replace(base.parameters, **change))
    assert summary(two(base, final)) == f"{expected}; WER was not measured."


def test_the_sentence_speaks_of_bytes_where_no_parameter_went() -> None:
    base = replace(bare(base_model()), bytes_on_disk=1000)
    assert summary(two(base, replace(base, bytes_on_disk=270))).startswith(
        "The weights take 27 % of their bytes on disk;"
    )
    zeros = replace(base, bytes_on_disk=270, parameters=replace(base.parameters, nonzero=18_592_320))
    assert "27 % of their bytes on disk and 50 % of the parameters are not zero;" in summary(two(base, zeros))
    assert summary(two(base, replace(base, bytes_on_disk=1003))).startswith("The model is as large as its base;")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.123, 0.119, "WER went from 12.3 % to 11.9 % (-0.4 points)."),
        (0.02, 0.0202, "WER stayed at 2.0 % (+0.02 points)."),
        (0.02, 0.02, "WER stayed at 2.0 % (0.0 points)."),
        (0.02, None, "the WER of the base is 2.0 % (95 % interval 1.5 to 2.7 %), that of the result was not measured."),
        (None, 0.02, "the WER of the base was not measured, that of the result is 2.0 % (95 % interval 1.5 to 2.7 %)."),
        (None, None, "WER was not measured."),
    ],
)
def test_the_sentence_on_errors_without_a_comparison(before: float | None, after: float | None, expected: str) -> None:
    base = bare(base_model())
    models = [base if wer is None else with_wer(base, wer) for wer in (before, after)]
    assert summary(two(*models)) == f"The model is as large as its base; {expected}"


def test_the_sentence_of_one_model() -> None:
    only = replace(run(), models=(with_wer(base_model(), 0.018),))
    assert summary(only) == (
        "The model has 37.2M parameters, 7.6M of them in the encoder; its WER is 1.8 % (95 % interval 1.3 to 2.5 %)."
    )
    ctc = replace(bare(base_model()), parameters=Parameters(total=1000, nonzero=1000, encoder=1000, decoder=0))
    assert summary(replace(run(), models=(ctc,))) == "The model has 1.0k parameters; its WER was not measured."


def test_rows_before_and_after() -> None:
    numbers = run()
    assert row(numbers, "Parameters") == ["37.2M", "32.7M 88 %", "32.7M 88 %", "32.7M 88 %"]
    assert row(numbers, "Encoder parameters") == ["7.6M", "3.1M 41 %", "3.1M 41 %", "3.1M 41 %"]
    assert row(numbers, "Weights on disk") == ["151 MB", "133 MB 88 %", "133 MB 88 %", "52.6 MB 35 %"]
    assert row(numbers, "Encoder FLOPs")[:2] == ["36.9 GFLOPs", "18.8 GFLOPs 51 %"]
    assert row(numbers, "Insertions")[:3] == ["0 0.0 %", "7 1.3 %", "5 0.9 %"]
    assert row(numbers, "Looping hypotheses")[:2] == ["0.0 % 0 clips", "2.3 % 1 clip"]
    assert row(numbers, "Total latency")[:2] == ["502 ms", "386 ms 77 %"]
    assert row(numbers, "RTFx")[:2] == ["59.8", "77.8 1.30×"]


def test_a_difference_is_the_paired_one() -> None:
    numbers = two(base_model(), replace(run().models[1], comparison=compared(0.003, -0.001, 0.007)))
    assert row(numbers, "WER against base") == ["", "+0.3 points -0.1 to +0.7"]
    assert row(two(base_model(), replace(run().models[1], comparison=None)), "WER against base") == ["", "+2.0 points"]


def test_what_was_not_measured_is_a_dash_and_what_nobody_measured_is_left_out() -> None:
    numbers = two(base_model(), bare(run().models[1]))
    assert row(numbers, "WER") == ["0.4 % 0.0 to 1.0", "–"]
    assert row(numbers, "RTFx") == ["59.8", "–"]
    after_only = replace(numbers, models=(*numbers.models, run().models[1]))
    assert row(after_only, "WER against base") == ["", "–", "+2.0 points +0.4 to +4.3"]
    assert [group.name for group in groups(two(bare(base_model()), bare(base_model())))] == ["Size", "Work and speed"]
    ctc = replace(bare(base_model()), parameters=Parameters(10, 10, 10, 0), decoder_flops=0)
    labels = [row.label for group in groups(replace(run(), models=(ctc,))) for row in group.rows]
    assert labels == ["Parameters", "Non-zero parameters", "Encoder parameters", "Encoder FLOPs"]


@pytest.mark.parametrize("models", [1, 2, 3, 4])
def test_the_table_fits_a_terminal(models: int) -> None:
    numbers = replace(run(), title="a [bold]title[/bold]", models=run().models[:models])
    shown = printed(table(numbers))
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "…" not in shown
    assert "[bold]title[/bold]" in shown
    assert "normalizer" in shown
    assert "greedy" in shown
    assert shown.count("37.2M") == 2


def test_the_layer_table_adds_up() -> None:
    model = run().models[1]
    lines = [line.split() for line in printed(layer_table(model), width=100).splitlines()]
    assert ["encoder", "0", "self_attn.q_proj", "384", "×", "384", "61", "46.8k", "141", "MFLOPs", "0.1", "%"] in lines
    assert ["self_attn.out_proj", "384", "×", "384", "whole", "147k", "442", "MFLOPs", "0.5", "%"] in lines
    inside = sum(linear.parameters for linear in model.layers)
    assert ["encoder", "all", "linears", formats.count(inside), "12.3", "GFLOPs", "12.6", "%"] in lines
    assert ["model", "all", "else", formats.count(32_681_395 - inside), "8.6", "GFLOPs", "87.4", "%"] in lines
    assert ["model", "32.7M", "20.9", "GFLOPs", "100.0", "%"] in lines


def test_the_sentence_says_that_a_window_is_shorter() -> None:
    base = replace(bare(base_model()), window_seconds=30.0)
    found = summary(two(base, replace(base, window_seconds=10.0)))
    assert found.startswith("The model is as large as its base, with windows of 10 s instead of 30; WER")


def test_windows_are_named_for_each_model_where_they_differ() -> None:
    base = replace(base_model(), window_seconds=30.0)
    found = " ".join(printed(table(two(base, replace(run().models[1], window_seconds=10.0)))).split())
    assert "FLOPs: base: the encoder's of one window of 30 s, the decoder's of 32 tokens." in found
    assert "FLOPs: low_rank: the encoder's of one window of 10 s, the decoder's of 32 tokens." in found


def test_exports_stand_below_one_another_with_the_errors_of_the_runtime() -> None:
    numbers = run()
    first, second = exports(numbers)
    cells = {label: f"{cell.value} {cell.detail}" for label, cell in zip(EXPORT_LABELS, first.cells, strict=True)}
    last = numbers.exports[0]
    assert last.errors is not None
    assert last.comparison is not None
    assert cells["Weights on disk"].startswith(formats.size(41_000_000))
    assert cells["WER"].startswith(formats.rate(last.errors.wer))
    assert cells["WER against base"].startswith(formats.points(last.comparison.wer_difference))
    assert [cell.value for cell in second.cells[1:]] == ["\N{EN DASH}"] * 3
    found = printed(export_table(numbers), width=100)
    assert "onnx-int8" in found
    assert "sherpa-onnx-float32" in found
    assert max(map(len, found.splitlines())) <= 100
