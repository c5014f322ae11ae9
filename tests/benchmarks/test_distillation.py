import json
from pathlib import Path
from typing import Any

import pytest

import distillation
import results_file
from pruning_bench import Bench, Measured
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig
from sotto.metrics.published_sizes import whisper_kdq_bytes
from sotto.text import get_normalizer
from sotto.training import Training
from tones import PITCHES, tiny_whisper, write_folder


def test_every_way_is_trained_once_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Recognizer(*tiny_whisper(decoder_layers=2)).save(tmp_path / "student")
    Recognizer(*tiny_whisper(d_model=48, decoder_layers=3, attention_heads=4, seed=1)).save(tmp_path / "teacher")
    write_folder(tmp_path / "train", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.85, 0.9])
    write_folder(tmp_path / "test", ["two", "three"], [0.95, 0.97])
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    folders = [f"--{role}={tmp_path / role}" for role in ("train", "validation", "test", "folder", "teacher")]
    words = [*folders, f"--model={tmp_path / 'student'}", "--language=en", "--normalizer=basic", "--name=tones"]
    short = ["--steps=2", "--batch-size=2", "--precision=fp32", "--beside", "none"]
    asked: list[Path] = []

    def transcribed(source: ClipSource, teacher: Any, language: str, path: Path, *_: Any) -> ClipSource:
        asked.append(path.parents[1])
        return source  # an untrained teacher's transcripts may all loop

    monkeypatch.setattr("sotto.methods.fine_tuning.transcribed", transcribed)
    monkeypatch.setattr("sys.argv", ["distillation.py", *words, *short])
    distillation.main()
    rows: list[dict[str, Any]] = json.loads((tmp_path / "results" / "distillation-tones.json").read_text())["rows"]
    ways = distillation.ways("teacher", 1)
    assert len(asked) == sum(name.startswith("Distil-Whisper") for name in ways) == 2
    assert all("distil-whisper" in str(folder) for folder in asked)
    assert list(dict.fromkeys(row["way"] for row in rows)) == ["teacher", "student, trained directly", *ways]
    by_kind = {(row["way"], row["kind"]): row for row in rows}
    assert len(by_kind) == len(rows) == 2 + 2 * len(ways) + 2 * 3 + 9
    assert {kind for way, kind in by_kind if way == "guided, 8 bits from the start"} == {"16 bits", "8 bits"}
    assert by_kind["teacher", "16 bits"]["parameters"] > by_kind["fine-tuned only", "16 bits"]["parameters"]
    shapes = [load(str(tmp_path / name)).model for name in ("teacher", "student")]
    assert by_kind["teacher", "16 bits"]["bytes_by_rule"] == whisper_kdq_bytes(shapes[0])
    assert by_kind["guided, monotone", "8 bits"]["bytes_by_rule"] == whisper_kdq_bytes(shapes[1], 8)
    assert by_kind["guided, monotone", "4 bits"]["bytes_by_rule"] is None
    assert by_kind["guided, monotone", "8 bits"]["notes"][-1].endswith("MB when ideally packed")
    for name in ways:
        assert by_kind[name, "8 bits"]["bytes"] < by_kind[name, "16 bits"]["bytes"]
        assert name == "fine-tuned only" or by_kind[name, "8 bits"]["against_dense"] is not None
    for row in rows[2:]:
        assert ("against_16_bits" in row) == (row["kind"] != "16 bits")
        assert row["against_direct"]["wer"] == pytest.approx(row["wer"] - rows[1]["wer"])
        is_own = row["kind"] == distillation.kinds_of(row["way"])[-1]
        assert ("against_rounded_afterwards" in row) == ("bits" in row["way"] and is_own)
    in_decoder = "guided by weights, the decoder in 8 bits from the start (KDQ)"
    for name, plain, kind in (
        ("guided, 4 bits by depth", "guided, monotone", "4 bits"),
        (in_decoder, "guided by weights (KDQ)", "8 bits in the decoder"),
    ):
        aware, floating = by_kind[name, kind], by_kind[plain, kind]
        assert aware["against_rounded_afterwards"]["wer"] == pytest.approx(aware["wer"] - floating["wer"])
    assert capsys.readouterr().out.count("| guided, monotone |") == 5
    before = trained_at(tmp_path / "folder")
    monkeypatch.setattr("sys.argv", ["distillation.py", *words, *short, "--ways", "fine-tuned only"])
    distillation.main()
    assert trained_at(tmp_path / "folder") == before  # what was trained is kept
    check_known(tmp_path, monkeypatch, [*words, *short])
    other = ["--ways", "fine-tuned only", f"--direct={tmp_path / 'teacher'}"]
    monkeypatch.setattr("sys.argv", ["distillation.py", *words, *short, *other])
    distillation.main()
    rows = json.loads((tmp_path / "results" / "distillation-tones.json").read_text())["rows"]
    assert rows[1]["way"] == "student, trained directly"
    assert rows[1]["parameters"] == by_kind["teacher", "16 bits"]["parameters"]  # and not what was measured before


def check_known(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """A way that there is has its rows, also without what it would be held to."""
    (folder / "folder" / "fine-tuned-only-16-bits.json").unlink()
    monkeypatch.setattr("sys.argv", ["distillation.py", *words, "--known", "--ways", "guided, monotone"])
    distillation.main()
    rows = json.loads((folder / "results" / "distillation-tones.json").read_text())["rows"][2:]
    assert [row["against_dense"] is None for row in rows] == [row["kind"] == "16 bits" for row in rows]
    assert len(rows) == 5


def trained_at(folder: Path) -> list[float]:
    return sorted(path.stat().st_mtime for path in folder.rglob("model/model.safetensors"))


def measured(*hypotheses: str) -> Measured:
    clips = [(f"{number}.wav", "one two", said) for number, said in enumerate(hypotheses)]
    return Measured(1, 1, 1, 1, None, {}, (), clips, {})


def test_what_rounding_costs_and_what_training_gains_are_paired(tmp_path: Path) -> None:
    clips = DataConfig("clips")
    bench = Bench("model", clips, clips, clips, "en", get_normalizer("basic"), Training(1), tmp_path, "none")
    direct, floating, rounded = measured("", "", ""), measured("one two", "one two", ""), measured("one two", "one", "")
    found = distillation.against(bench, rounded, direct, floating)
    assert found["against_16_bits"]["wer"] == pytest.approx(1 / 6)
    assert found["against_direct"]["wer"] == pytest.approx(-1 / 2)
    assert found["against_direct"]["fewer_errors"] == pytest.approx(1 / 2)
    low, high = found["against_direct"]["interval"]
    assert low <= -1 / 2 <= high
    assert "against_16_bits" not in distillation.against(bench, floating, direct, floating)
    without_errors = measured("one two", "one two", "one two")
    assert distillation.against(bench, rounded, without_errors, floating)["against_direct"]["fewer_errors"] is None


def test_ways_keep_the_names_of_their_folders() -> None:
    ways = distillation.ways("teacher", 10)
    folders = {distillation.folder_of(name): terms for name, terms in ways.items()}
    assert len(folders) == len(ways)
    assert folders["guided-4-bits-by-distillation-loss"][0].rounded_over == 5
    assert folders["guided-4-bits-by-depth"][0].rounding_order == "depth"
    for name, order in (("distillation-loss", "loss"), ("depth", "depth"), ("greatest-loss", "greatest_loss")):
        (term,) = folders[f"guided-the-decoder-rounded-to-4-bits-by-{name}"]
        assert term.rounding.stacks == ("decoder",)
        assert term.rounding_order == order
    for name in ways:
        kinds = distillation.kinds_of(name)
        if name not in ("fine-tuned only", "guided, monotone"):
            assert ("8 bits in the decoder" in kinds) == ("(KDQ)" in name)
            assert ("4 bits in the decoder" in kinds) == ("the decoder" in name and "4 bits" in name)
        else:
            assert kinds == list(distillation.KINDS)
    _, aware = folders["guided-the-decoder-rounded-to-4-bits-from-the-start"]
    assert aware.stacks == ("decoder",)
    term, aware = folders["guided-by-weights-the-decoder-in-8-bits-from-the-start-(kdq)"]
    assert (term.select_by, term.loss_on, aware.scales, aware.stacks) == ("weight", "weight", "tensor", ("decoder",))
