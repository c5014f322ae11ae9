"""Budgets of time: the table by hand, ranks by invented tables, every runtime on a tiny model, slips of users."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_whisper import MakeRecognizer, apply

from conformers import make
from sotto.calibration import Place, places
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.exports import targets
from sotto.exports.runtimes import ROUNDS, RUNTIMES, TURNS, median_seconds, place_of
from sotto.layers import ReducedAttention
from sotto.methods import HeadReduction, LowRank, StepContext, head_reduction, methods, timed_attentions, timed_linears
from sotto.methods.budget_costs import PartCost, paying, time_note
from sotto.methods.head_narrowing import AttentionPlace, attentions_of
from sotto.methods.rank_costs import encoder_costs
from sotto.methods.rank_times import RankTimes, measured_ranks
from sotto.methods.timed_linears import LinearShape, linear_times, measured

Tables = tuple[float, dict[LinearShape, RankTimes]]


def places_of(recognizer: Recognizer) -> list[Place]:
    return [(stack.name, index, linear) for stack, index, linear in places(recognizer, ("encoder",))]


# The table


def test_between_measured_ranks_time_is_a_straight_line() -> None:
    times = RankTimes(whole=9.0, ranks=(16, 32, 64), seconds=(2.0, 4.0, 3.0))
    assert [times.at(rank) for rank in (16, 24, 32, 48, 64)] == [2.0, 3.0, 4.0, 3.5, 3.0]
    assert (times.at(4), times.at(100)) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "multiple", "expected"),
    [
        (512, 512, 16, (16, 64, 112, 160, 208, 256)),  # 256 = 512 * 512 / 1024
        (512, 2048, 16, (16, 96, 176, 240, 320, 400)),  # 409.6
        (32, 32, 8, (8, 16)),
        (8, 8, 16, (16,)),  # pays nowhere, and is never chosen
    ],
)
def test_ranks_are_measured_from_the_least_to_the_largest_that_saves(
    inputs: int, outputs: int, multiple: int, expected: tuple[int, ...]
) -> None:
    assert measured_ranks(inputs, outputs, multiple) == expected


def test_ranks_are_multiples_of_what_the_runtime_rounds_up_to_for_nothing() -> None:
    assert LowRank(parameters=0.5).multiple == LowRank(time=0.5).multiple == 16
    assert {each: LowRank(time=0.5, runtime=each).multiple for each in RUNTIMES} == {
        "torch": 16,
        "onnx": 16,
        "onnx-int8": 32,
        "openvino": 32,
        "openvino-int8": 32,
        "openvino-int8-calibrated": 64,
    }
    assert LowRank(time=0.5, runtime="onnx-int8", rank_multiple=8).multiple == 8


def test_ranks_pay_where_they_take_less_than_the_whole_and_than_any_larger_rank() -> None:
    times = {16: 5.0, 32: 4.0, 48: 6.0, 64: 6.0, 80: 8.0, 96: 10.0, 112: 12.0}
    assert paying(10.0, times) == PartCost(10.0, (32, 64, 80), (4.0, 6.0, 8.0))
    assert paying(4.0, times) == PartCost(4.0, (), ())


def test_the_note_says_what_was_measured_and_what_is_expected() -> None:
    assert time_note(0.5312, 0.698, "onnx-int8 with 2 threads") == (
        "the encoder takes 0.531 s over a window in onnx-int8 with 2 threads here; 70 % of it are expected to be left"
    )


@pytest.mark.parametrize(
    ("runtime", "device", "place"),
    [
        (None, "cpu", "torch with 2 threads"),
        (None, "cuda:0", "torch on cuda:0"),
        ("torch", "cuda:0", "torch on cuda:0"),
        ("onnx-int8", "cuda:0", "onnx-int8 with 2 threads"),
    ],
)
def test_only_torch_is_timed_on_a_gpu(
    runtime: str | None, device: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert place_of(runtime, torch.device(device)) == place
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert place_of("openvino", torch.device(device)) == "openvino with 1 thread"


def test_the_whole_and_every_group_run_in_every_round() -> None:
    heard: list[str] = []

    def run(name: str) -> Callable[[], None]:
        return lambda: heard.append(name)

    whole, parts = median_seconds(run("W"), [{"a": run("a"), "b": run("b")}, {"c": run("c")}])
    assert "".join(heard) == ("W" + "ab" * TURNS + "c" * TURNS) * (ROUNDS + 1)
    assert whole >= 0
    assert parts.keys() == {"a", "b", "c"}


# Allocation


def invented(rank_seconds: Callable[[int], float]) -> Callable[..., Tables]:
    """In place of measuring: a linear takes as long as it has weights, in millionths; factors what they are told."""

    def tables(_: Recognizer, shapes: Collection[LinearShape], __: str, multiple: int) -> Tables:
        found = {}
        for shape in shapes:
            ranks = measured_ranks(shape.inputs, shape.outputs, multiple)
            seconds = tuple(rank_seconds(rank) * (shape.inputs + shape.outputs) * 1e-6 for rank in ranks)
            found[shape] = RankTimes(shape.inputs * shape.outputs * 1e-6, ranks, seconds)
        return 0.5, found

    return tables


def seconds_left(recognizer: Recognizer, whole: float, rank_seconds: Callable[[int], float]) -> float:
    """Of an encoder of width 128, by what is invented."""
    layers = recognizer.structure.stacks["encoder"].layers
    widths = {"fc1": (128, 512), "fc2": (512, 128)}
    for layer in layers:
        for name, rank in layer.ranks.items():
            inputs, outputs = widths.get(name, (128, 128))
            whole -= (inputs * outputs - rank_seconds(rank) * (inputs + outputs)) * 1e-6
    return whole


@pytest.mark.parametrize("weighting", ["relative", "best"])
def test_ranks_meet_the_budget_by_the_table(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """Factors that take 20 more than their weights say: the least ranks save something, the largest nothing."""

    def rank_seconds(rank: int) -> float:
        return rank + 20.0

    monkeypatch.setattr(timed_linears, "measured", invented(rank_seconds))
    recognizer = make_recognizer(128, heads=4)
    notes = apply(recognizer, clips, time=0.7, runtime="onnx-int8", rank_multiple=16, weighting=weighting)
    left = seconds_left(recognizer, 0.5, rank_seconds)
    step = 16 * (128 + 512) * 1e-6
    assert 0.7 * 0.5 - step < left <= 0.7 * 0.5
    ranks = [rank for layer in recognizer.structure.stacks["encoder"].layers for rank in layer.ranks.values()]
    assert len(set(ranks)) > 1
    assert notes[-1] == time_note(0.5, left / 0.5, place_of("onnx-int8", torch.device("cpu")))
    assert len(notes) == (4 if weighting == "best" else 3)


def test_only_linears_whose_factors_pay_are_factored(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 60 on top, rank 16 of 128 by 128 takes 76 * 256 > 128 * 128, but that of 128 by 512 saves."""
    monkeypatch.setattr(timed_linears, "measured", invented(lambda rank: rank + 60.0))
    recognizer = make_recognizer(128, heads=4)
    apply(recognizer, clips, time=0.9, weighting="relative")
    assert {name for layer in recognizer.structure.stacks["encoder"].layers for name in layer.ranks} <= {"fc1", "fc2"}


def test_where_factors_never_pay_the_budget_is_refused(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_linears, "measured", invented(lambda rank: rank + 200.0))
    message = (
        "the budget 0.9 cannot be met by low rank: the least that can be left is 1.00; narrower heads save time "
        "where factors do not: precede it by head_reduction"
    )
    with pytest.raises(SottoError, match=re.escape(message)):
        apply(make_recognizer(128), clips, time=0.9)


def test_a_linear_that_is_factored_costs_what_its_rank_does(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = make_recognizer(128)
    apply(recognizer, clips, parameters=0.6, weighting="relative", reduced_attention=False)
    monkeypatch.setattr(timed_linears, "measured", invented(float))
    costs = encoder_costs(recognizer, LowRank(time=0.9), places_of(recognizer))
    layers = recognizer.structure.stacks["encoder"].layers
    assert max(rank for layer in layers for rank in layer.ranks.values()) > 32
    for (_, index, linear), cost in costs.parts.items():
        rank = layers[index].ranks.get(linear)
        if rank is not None:
            assert cost.whole == pytest.approx(rank * (640 if linear.startswith("fc") else 256) * 1e-6)
            assert cost.sizes == tuple(range(16, rank, 16))


def test_attention_is_not_reduced_by_flops_where_time_counts(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_linears, "measured", invented(float))
    found = {}
    for budget in ({"time": 0.9}, {"parameters": 0.5}):
        recognizer = make_recognizer(64, heads=1)
        apply(recognizer, clips, **budget, weighting="relative")
        found[next(iter(budget))] = any(isinstance(each, ReducedAttention) for each in recognizer.model.modules())
    assert found == {"time": False, "parameters": True}


# Narrower heads


def apply_head_reduction(recognizer: Recognizer, clips: ClipSource, **settings: Any) -> list[str]:
    return head_reduction.apply_head_reduction(
        recognizer, HeadReduction(**settings), StepContext(Path(), calibration=clips)
    )


def test_heads_get_dimensions_that_meet_the_budget_by_the_table(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those only such as pay: 24 channels take longer than 32 here."""
    seconds = {8: 0.1, 16: 0.2, 24: 0.5, 32: 0.4}
    asked = []

    def tables(_: Recognizer, choices: Mapping[AttentionPlace, Iterable[int]], __: str) -> Any:
        asked.extend(choices)
        return 1.0, dict.fromkeys(choices, seconds)

    monkeypatch.setattr(timed_attentions, "measured", tables)
    recognizer = make_recognizer(64)
    notes = apply_head_reduction(recognizer, clips, time=0.65, runtime="onnx-int8")
    found = [layer.head_dims.get("self_attn", 32) for layer in recognizer.structure.stacks["encoder"].layers]
    assert len(asked) == 1  # both layers have the same shapes
    left = 1 - sum(seconds[32] - seconds[channels] for channels in found)
    assert left <= 0.65
    assert 24 not in found
    assert notes[-1] == time_note(1.0, left, place_of("onnx-int8", torch.device("cpu")))
    with pytest.raises(SottoError, match=r"0\.3 cannot be met by head_reduction: the least that can be left is 0\.40"):
        apply_head_reduction(make_recognizer(64), clips, time=0.3)


@pytest.mark.parametrize("runtime", ["torch", "onnx-int8"])
def test_narrower_heads_are_measured(make_recognizer: MakeRecognizer, runtime: Any) -> None:
    recognizer = make_recognizer(32, layers=1)
    (place,) = attentions_of(recognizer, ("encoder",))
    encoder, times = timed_attentions.measured(recognizer, {place: [8]}, runtime)
    assert encoder > 0
    assert times[place].keys() == {8, 16}
    assert all(seconds > 0 for seconds in times[place].values())
    assert recognizer.structure.stacks["encoder"].layers[0].head_dims == {}


# Measuring


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_measures(make_recognizer: MakeRecognizer, runtime: Any) -> None:
    recognizer = make_recognizer(layers=1)
    shape = LinearShape(50, 32, 32)
    encoder, tables = measured(recognizer, [shape], runtime, 16)
    assert tables[shape].ranks == (16,)
    assert encoder > 0
    assert tables[shape].whole > 0
    assert tables[shape].seconds[0] > 0
    assert not recognizer.model.training


def test_every_linear_is_measured_on_the_rows_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Conformer's relative positions reach to both sides."""
    recognizer = make("parakeet")
    asked: list[LinearShape] = []

    def keep(_: Recognizer, shapes: Collection[LinearShape], *__: Any) -> Tables:
        asked.extend(shapes)
        return 1.0, {shape: RankTimes(float(shape.rows), (16,), (1.0,)) for shape in shapes}

    monkeypatch.setattr(timed_linears, "measured", keep)
    total, times = linear_times(recognizer, places_of(recognizer), "torch", 16)
    assert total == 1.0
    rows = {linear: times["encoder", 0, linear].whole for _, _, linear in places_of(recognizer)}
    (frames,) = {rows[linear] for linear in rows if "relative" not in linear}
    assert frames > 50  # of 10 s
    assert rows["self_attn.relative_k_proj"] == 2 * frames - 1
    assert len(asked) == len(set(asked)) < len(places_of(recognizer))


def test_a_conformer_is_measured() -> None:
    encoder, tables = measured(make("wav2vec2_conformer"), [LinearShape(40, 16, 16)], "torch", 8)
    assert encoder > tables[LinearShape(40, 16, 16)].whole > 0


# What a user may say


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": 1.2}, r"time must be between 0 and 1, found 1\.2"),
        ({"time": 0.7, "flops": 0.7}, "thresholds .* or one budget, not both"),
        ({"time": 0.7, "preset": "quality"}, "thresholds .* or one budget, not both"),
        ({"runtime": "onnx"}, "runtime is where time is measured; give time"),
        ({"flops": 0.7, "runtime": "torch"}, "runtime is where time is measured; give time"),
        ({"time": 0.7, "runtime": "onnx-int4"}, "'onnx-int4' is not one of torch, onnx, onnx-int8, openvino"),
        ({"time": 0.7, "stacks": ("decoder",)}, "a budget is for the encoder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        LowRank(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": 0.7, "flops": 0.7}, "head_reduction takes one of"),
        ({"head_dim": 8, "runtime": "onnx"}, "runtime is where time is measured; give time"),
        ({"time": 0.7, "stacks": ("decoder",)}, "a budget is for the encoder"),
    ],
)
def test_settings_of_heads_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        HeadReduction(**settings)


def test_a_runtime_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda module: None if module == "openvino" else object())
    with pytest.raises(SottoError, match=r"openvino needs openvino, .* pip install 'sotto\[openvino\]'"):
        LowRank(time=0.7, runtime="openvino-int8")
    assert LowRank(time=0.7, runtime="onnx-int8").runtime == "onnx-int8"


def test_a_recipe_says_time_and_runtime() -> None:
    step = {"low_rank": {"time": 0.7, "runtime": "onnx-int8"}}
    assert methods.parse(step, "steps[0]") == LowRank(time=0.7, runtime="onnx-int8")
    assert LowRank(time=0.7).thresholds is None
