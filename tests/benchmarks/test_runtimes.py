"""The benchmark of runtimes: what it measures, on the bundled recogniser, and what it makes of that."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import results_file
import runtime_pipelines
import runtimes
from digits import MODEL, some_clips
from runtime_pipelines import Heard, Hearing
from runtime_rows import PLAIN, Row, Runtime, described, gains_nothing, line, written
from runtime_variants import variants
from shapes import SHAPES, random_whisper
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig
from sotto.exports import clips_of
from sotto.metrics.cost import Parameters, count_parameters
from sotto.metrics.speed import LatencyReport
from sotto.report.numbers import ModelNumbers


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    """Four layers of eight heads; linears are most of it, as in the published shapes."""
    monkeypatch.setitem(SHAPES, "test", (256, 4, 8, 80))
    return random_whisper("test", decoder_layers=1)


def test_variants_have_the_share_that_they_are_named_after(small: Recognizer) -> None:
    whole = count_parameters(small.model).encoder
    shares = {name: count_parameters(change(small).model).encoder / whole for name, change in variants(None).items()}
    expected = {
        "dense": 1.0,
        "low-rank-60": 0.6,
        "low-rank-50": 0.5,
        "low-rank-40": 0.4,
        "structured": 0.56,
        "fewer-layers": 0.36,
        "fewer-layers-and-neurons": 0.31,
        "fewer-heads": 0.34,
        "fewest-heads": 0.33,
        "both": 0.4,
        "narrow": 0.47,
        "short": 1.0,
        "short-structured": 0.56,
    }
    assert list(shares) == list(expected)
    assert shares == pytest.approx(expected, abs=0.025)
    assert count_parameters(small.model).encoder == whole


def test_half_of_the_heads_and_neurons_are_gone(small: Recognizer) -> None:
    expected = {
        "structured": (4, 512),
        "both": (4, 512),
        "fewer-layers": (3, 384),
        "fewer-layers-and-neurons": (3, 256),
    }
    for name, (count, width) in expected.items():
        layers = variants(None)[name](small).structure.stacks["encoder"].layers
        assert len(layers) == count
        for layer in layers:
            assert (len(layer.heads["self_attn"]), list(layer.ffn_widths.values())) == (4, [width])
            assert len(layer.ranks) == (6 if name == "both" else 0)


def test_of_some_layers_heads_half_are_gone_again(small: Recognizer) -> None:
    for name, expected in {"fewer-heads": [2, 4, 4], "fewest-heads": [2, 2, 4]}.items():
        layers = variants(None)[name](small).structure.stacks["encoder"].layers
        assert [len(layer.heads["self_attn"]) for layer in layers] == expected
        assert {width for layer in layers for width in layer.ffn_widths.values()} == {384}


def test_the_heads_that_are_left_have_half_of_their_channels(small: Recognizer) -> None:
    for layer in variants(None)["narrow"](small).structure.stacks["encoder"].layers:
        assert (len(layer.heads["self_attn"]), layer.head_dims) == (4, {"self_attn": 16})


def test_short_ones_hear_ten_seconds(small: Recognizer) -> None:
    for name in ("short", "short-structured"):
        assert variants(None)[name](small).window_seconds == 10
    assert small.window_seconds == 30


def test_a_runtime_that_gains_nothing_is_left_out(small: Recognizer) -> None:
    left = {
        name: [to for to in ("onnx", "ctranslate2", "whisper.cpp") if not gains_nothing(Runtime(to, ""), change(small))]
        for name, change in variants(None).items()
        if name in ("dense", "low-rank-50", "structured")
    }
    assert left["dense"] == ["onnx", "ctranslate2", "whisper.cpp"]
    assert left["low-rank-50"] == ["onnx"]
    assert left["structured"] == ["onnx", "ctranslate2"]


def seen(flops: int, encoder: float, decoder: float) -> ModelNumbers:
    total = encoder + decoder
    latency = LatencyReport(0.0, encoder, decoder, total, 30 / total, 1, 0, 30.0, 64, "cpu", "float32", 2, 1)
    sizes = Parameters(30, 30, 20, 10)
    return ModelNumbers("", sizes, flops, 1, 32, 100, (), latency=latency, peak_memory=7, load_seconds=0.5)


def test_ratios_are_medians_over_rounds() -> None:
    onnx = Runtime("onnx", "int8")
    rows = [
        Row("dense", PLAIN, Path(), [seen(100, each, 1.0) for each in (4.0, 8.0, 4.0)]),
        Row("dense", onnx, Path(), [seen(100, each, 1.0) for each in (2.0, 4.0, 2.0)]),
        Row("low-rank-50", onnx, Path(), [seen(50, each, 0.5) for each in (1.5, 3.0, 1.0)]),
    ]
    found = described(rows[2], rows)
    assert found["encoder_against_torch"] == pytest.approx(8 / 3)  # of 2.67, 2.67 and 4
    assert found["total_against_torch"] == pytest.approx(9 / 3.5)  # of 2.5, 2.57 and 3.33
    assert found["encoder_against_dense"] == pytest.approx(4 / 3)  # of 1.33, 1.33 and 2
    assert found["encoder_by_flops"] == 2
    assert found["realised"] == pytest.approx((1 - 3 / 4) / (1 - 1 / 2))
    assert found["tokens_per_second"] == 128
    assert found["visits"][1] == {"encoder": 3.0, "decoder": 0.5, "total": 3.5}
    assert described(rows[1], rows)["realised"] is None
    assert "| 2.67 | 2.57 | 1.33 | 2.00 | 50 % |" in line(found, runtimes.COLUMNS)


def test_what_is_written_is_taken_as_it_is(small: Recognizer, tmp_path: Path) -> None:
    chosen = {name: change for name, change in variants(None).items() if name in ("dense", "structured")}
    first = list(written(small, chosen, [PLAIN], tmp_path, ()))
    assert [row.name for row in first] == ["dense torch-float32", "structured torch-float32"]
    chosen["structured"] = lambda model: pytest.fail("made anew")
    assert list(written(small, chosen, [PLAIN], tmp_path, ())) == first


def test_a_width_that_whisper_cpp_cannot_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(MODEL, device="cpu")
    asked = [PLAIN, Runtime("whisper.cpp", "q8_0")]
    assert [row.runtime for row in written(model, {"dense": Recognizer.copy}, asked, tmp_path, ())] == [PLAIN]
    said = capsys.readouterr().out
    assert said == "dense whisper.cpp-q8_0: a width of 144 is no multiple of the 32 that q8_0 needs\n"


def test_what_a_proof_refuses_is_left_out_with_the_reason(
    small: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.model.generation_config.no_timestamps_token_id = None
    asked = [PLAIN, Runtime("ctranslate2", "int8")]
    clips = clips_of(None, small, 1)
    rows = list(written(small, {"dense": Recognizer.copy}, asked, tmp_path, clips))
    assert [row.runtime for row in rows] == [PLAIN]
    assert "dense ctranslate2-int8: CTranslate2 needs no_timestamps_token_id" in capsys.readouterr().out


def test_a_runtime_that_is_told_the_words_has_a_speed_alone() -> None:
    row = Row("dense", Runtime("whisper.cpp", "q8_0"), Path())
    assert runtimes.ways_of(row) == ["whisper.cpp", "audio_ctx"]
    assert runtimes.ways_of(Row("dense", PLAIN, Path())) == ["sotto", "batches"]
    found = {
        "variant": "dense",
        "runtime": row.runtime.name,
        "pipeline": {"wer": None, "real_time_factor": 26.46},
        "audio_ctx": {"wer": None, "real_time_factor": 40.0},
    }
    assert line(found, runtimes.HEARD_COLUMNS).split("|")[1:-1] == [
        " dense ",
        " whisper.cpp-q8_0 ",
        *["  "] * 8,
        " 26.5 ",
        " 40.0 ",
    ]


def test_what_whisper_cpp_hears_in_either_way_stands_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"sotto": 4.0, "batches": 3.0, "whisper.cpp": 2.0, "audio_ctx": 1.0}
    monkeypatch.setattr(runtimes, "hear", lambda by, *_: Heard(seconds[by], seconds[by], 8.0, None))
    monkeypatch.setattr(runtimes, "in_turn", in_this_process)
    rows = [Row("dense", runtime, Path()) for runtime in (PLAIN, Runtime("whisper.cpp", "q8_0"))]
    results: list[dict[str, Any]] = [{"variant": "dense", "runtime": row.runtime.name} for row in rows]
    runtimes.heard(rows, results, Hearing(DataConfig("clips"), "en", "basic", 1), 2)
    plain, other = results
    assert {"sotto", "batches"} < set(plain)
    assert "pipeline" not in plain
    assert [other[way]["real_time_factor"] for way in ("pipeline", "audio_ctx")] == [4.0, 8.0]
    assert [other[way]["against_torch"] for way in ("pipeline", "audio_ctx")] == [2.0, 4.0]


def in_this_process(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[Any]]:
    return [[call() for _ in range(rounds)] for call in calls]


def test_a_trained_model_is_timed_and_heard_in_every_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = some_clips("test", tmp_path / "clips", 3)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runtimes, "in_turn", in_this_process)
    asked = ["torch-bfloat16", "openvino-float32", "sherpa-onnx-float32", "ctranslate2-float32"]
    options = ["--model", str(MODEL), "--audio", str(clips), "--folder", str(tmp_path / "models"), "--name", "try"]
    counts = ["--rounds", "1", "--repeats", "1", "--tokens", "4", "--threads", "1", "--variants", "--runtimes"]
    monkeypatch.setattr("sys.argv", ["runtimes.py", *options, *counts, *asked])
    threads = torch.get_num_threads()
    runtimes.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "results" / "runtimes-try.json").read_text())
    rows = {row["runtime"]: row for row in found["rows"]}
    assert list(rows) == ["torch-float32", *asked]
    for name, row in rows.items():
        assert row["variant"] == "dense"
        assert row["total_seconds"] > row["encoder_seconds"] > 0
        assert row["sotto"]["real_time_factor"] > 0, name
        assert row["batches"]["wer"] == row["errors"]["wer"], name
        assert row["batches"]["real_time_factor"] > 0, name
        assert row["batches"]["first_real_time_factor"] > 0, name
    for name in ("openvino-float32", "sherpa-onnx-float32", "ctranslate2-float32"):
        assert rows[name]["errors"]["wer"] == rows["torch-float32"]["errors"]["wer"] < 0.5
        assert rows[name]["pipeline"]["wer"] == rows[name]["errors"]["wer"]
        assert rows[name]["pipeline"]["against_torch"] > 0
    assert "pipeline" not in rows["torch-float32"]
    assert rows["torch-float32"]["sotto"]["against_torch"] == 1
    assert found["timing"]["device"] == "cpu"
    assert found["versions"]["openvino"]
    monkeypatch.setattr("sys.argv", ["runtimes.py", "--shape", "tiny", *options[4:], *counts])
    with pytest.raises(SystemExit, match="holds what was made with other settings"):
        runtimes.main()


def test_clips_are_heard_twice_and_the_second_pass_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = some_clips("test", tmp_path / "clips", 3)
    passes: list[int] = []
    times = iter([0.0, 7.0, 10.0, 12.0])

    def pipeline(heard: Sequence[Any]) -> list[str]:
        passes.append(len(heard))
        return [clip.text for clip in heard]

    monkeypatch.setitem(runtime_pipelines.PIPELINES, "made up", lambda *_: pipeline)
    monkeypatch.setattr(runtime_pipelines, "BATCH", 2)
    monkeypatch.setattr(runtime_pipelines.time, "perf_counter", lambda: next(times))
    hearing = runtime_pipelines.Hearing(DataConfig(str(clips)), "en", "basic", torch.get_num_threads())
    heard = runtime_pipelines.hear("made up", "float32", "nowhere", hearing)
    assert passes == [2, 3, 3]
    assert (heard.first_seconds, heard.seconds, heard.errors.wer) == (7.0, 2.0, 0.0)
    assert heard.real_time_factor == pytest.approx(heard.audio_seconds / 2)
