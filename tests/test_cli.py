"""The command line from end to end, on the bundled model, and what it says of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digits import MODEL, some_clips


def sotto(*arguments: object, cwd: Path | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command, offline; `settings` are further environment variables."""
    command = [sys.executable, "-m", "sotto", *map(str, arguments)]
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment |= {name: str(value) for name, value in settings.items()}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def refused(*arguments: object) -> str:
    """The one line that bad input gets."""
    done = sotto(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sotto: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_clips("test", tmp_path_factory.mktemp("clips") / "test", 5)


def test_importing_sotto_says_nothing_whatever_is_installed() -> None:
    ran = subprocess.run([sys.executable, "-c", "import sotto"], capture_output=True, text=True, check=True)
    assert ran.stdout == ran.stderr == ""


def test_help_lists_every_command() -> None:
    shown = sotto("--help").stdout
    for command in ("demo", "compress", "evaluate", "benchmark", "transcribe", "inspect", "train"):
        assert command in shown


def test_compress_without_a_recipe_then_evaluate_and_inspect(clips: Path, tmp_path: Path) -> None:
    calibration = some_clips("calibration", tmp_path / "calibration", 5)
    run = tmp_path / "run"
    done = sotto("compress", MODEL, "--low-rank", "--parameters", 0.6, "--calibration", calibration, "-o", run)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    report = tmp_path / "errors.json"
    options = ("--language", "en", "--normalizer", "basic", "--against", MODEL, "--json", report)
    done = sotto("evaluate", run / "model", clips, *options)
    assert done.returncode == 0, done.stderr
    assert "WER difference, paired" in done.stdout
    numbers = json.loads(report.read_text())
    assert numbers["comparison"]["clips"] == 5
    assert "basic" in numbers["comparison"]["normalizer"]
    shown = sotto("inspect", run / "model").stdout
    assert "fc1" in shown


def test_compress_to_whole_numbers_without_a_recipe(clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = sotto("compress", MODEL, "--quantize", 8, "--test", clips, "--language", "en", "-o", run)
    assert done.returncode == 0, done.stderr
    assert "The weights take 57 % of their bytes on disk" in " ".join(done.stdout.split())
    assert "8 bits" in sotto("inspect", run / "model").stdout
    assert sotto("transcribe", run / "model", clips / "audio" / "0000.opus").stdout.strip()
    assert "bits: 3 is not one of 4, 8" in refused("compress", MODEL, "--quantize", 3, "-o", tmp_path / "other")


def test_transcribe_in_every_format(clips: Path, tmp_path: Path) -> None:
    audio = clips / "audio" / "0000.opus"
    assert sotto("transcribe", MODEL, audio).stdout.strip()
    parsed = json.loads(sotto("transcribe", MODEL, audio, "--format", "json").stdout)
    assert parsed["text"]
    assert "-->" in sotto("transcribe", MODEL, audio, "--format", "srt").stdout
    assert sotto("transcribe", MODEL, audio, "--format", "vtt").stdout.startswith("WEBVTT")
    done = sotto("transcribe", MODEL, clips, "--output", tmp_path / "out", "--format", "srt")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.srt"))) == 5


def test_audio_longer_than_the_window_at_another_rate(tmp_path: Path, clips: Path) -> None:
    pieces = [soundfile.read(clips / "audio" / f"{index:04d}.opus")[0] for index in range(5)]
    long = np.repeat(np.concatenate(pieces), 3)  # 48 kHz by repetition
    soundfile.write(tmp_path / "long.wav", np.stack([long, long], 1), 48_000)
    parsed = json.loads(sotto("transcribe", MODEL, tmp_path / "long.wav", "--format", "json").stdout)
    assert parsed["seconds"] > 6
    assert parsed["segments"][-1]["end"] > 6


def test_benchmark_measures_side_by_side(tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    done = sotto("benchmark", MODEL, MODEL, "--rounds", 1, "--repeats", 1, "--json", report)
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())["models"]
    assert len(rows) == 2
    assert rows[1]["flops_ratio"] == 1.0


def test_a_checkpoint_of_the_hub_by_its_id(tmp_path: Path, clips: Path) -> None:
    """As the hub's client keeps it once it was fetched; its size on disk is known too."""
    kept = tmp_path / "models--someone--digits"
    shutil.copytree(MODEL, kept / "snapshots" / "0123abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abc")
    options = ("--low-rank", "--parameters", 0.6, "--calibration", clips, "-o", tmp_path / "run")
    done = sotto("compress", "someone/digits", *options, HF_HUB_CACHE=tmp_path)
    assert done.returncode == 0, done.stderr
    base, smaller = json.loads((tmp_path / "run" / "report.json").read_text())["models"]
    assert base["bytes_on_disk"] == (MODEL / "model.safetensors").stat().st_size > smaller["bytes_on_disk"]


def test_missing_paths(clips: Path, tmp_path: Path) -> None:
    assert "check the path" in refused("evaluate", tmp_path / "no-model", clips)
    assert "check the path" in refused("evaluate", MODEL, tmp_path / "no-data")
    assert "check the path" in refused("transcribe", MODEL, tmp_path / "no.wav")
    assert "cannot be read" in refused("compress", tmp_path / "no.yaml", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_and_a_text_file_as_audio(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no audio" in refused("evaluate", MODEL, tmp_path / "empty")
    (tmp_path / "text.wav").write_text("this is no audio")
    assert "text.wav" in refused("transcribe", MODEL, tmp_path / "text.wav")


def test_clips_without_transcripts_where_errors_are_asked(tmp_path: Path) -> None:
    bare = some_clips("test", tmp_path / "bare", 2)
    (bare / "metadata.csv").unlink()
    assert "no transcripts" in refused("evaluate", MODEL, bare)


def test_a_typo_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("base: x\nstpes: [low_rank]\n")
    assert "did you mean 'steps'" in refused("compress", tmp_path / "r.yaml", "-o", tmp_path / "run")


def test_no_method_named(tmp_path: Path) -> None:
    assert "--low-rank" in refused("compress", MODEL, "-o", tmp_path / "run")
    assert "--low-rank" in refused("compress", MODEL, "--quantize", 8, "--time", 0.5, "-o", tmp_path / "run")
    assert "give time" in refused("compress", MODEL, "--low-rank", "--runtime", "onnx", "-o", tmp_path / "run")
    (tmp_path / "r.yaml").write_text("base: x\n")
    assert "is a recipe" in refused("compress", tmp_path / "r.yaml", "--quantize", 8, "-o", tmp_path / "run")


def test_an_unknown_language_and_normalizer(clips: Path) -> None:
    assert "en" in refused("evaluate", MODEL, clips, "--language", "xx")
    assert "did you mean 'basic'" in refused("evaluate", MODEL, clips, "--normalizer", "basik")
