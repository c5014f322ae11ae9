"""Every command on Conformer checkpoints, from compression to subtitles."""

import csv
import json
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner, Result

from conformers import RATE, make, noise
from sotto.checkpoint import load
from sotto.cli import app
from sotto.errors import SottoError
from sotto.metrics.cost import count_parameters
from sotto.side_by_side import Timing, visit

ARCHITECTURES = ("parakeet", "wav2vec2_conformer")

each = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    for role, first in (("calibration", 0), ("test", 10)):
        (root / role).mkdir()
        rows = [("file_name", "text")]
        for number in range(first, first + 3):
            soundfile.write(root / role / f"{number}.wav", noise(0.6 + 0.1 * number, number), RATE)
            rows.append((f"{number}.wav", "one two three"))
        with (root / role / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return {role: root / role for role in ("calibration", "test")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {architecture: make(architecture).save(root / architecture) for architecture in ARCHITECTURES}


def sotto(*arguments: object) -> Result:
    done = CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def runs(
    bases: dict[str, Path], clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    found = {}
    for architecture, base in bases.items():
        recipe = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
        settings = {
            "base": str(base),
            "language": "en",
            "data": {role: {"path": str(path)} for role, path in clips.items()},
            "steps": [{"low_rank": {"parameters": 0.9, "rank_multiple": 2}}],
        }
        recipe.write_text(json.dumps(settings))  # which is YAML too
        run = tmp_path_factory.mktemp("runs") / architecture
        found[architecture] = run, sotto("compress", recipe, "-o", run).stdout
    return found


@each
def test_compress(architecture: str, runs: dict[str, tuple[Path, str]], bases: dict[str, Path]) -> None:
    run, shown = runs[architecture]
    before, after = (
        count_parameters(load(path, device="cpu").model).total for path in (bases[architecture], run / "model")
    )
    assert 0.85 * before < after <= 0.9 * before
    flat = " ".join(shown.split())
    assert "FLOPs: of one window of 10 s, though the model takes audio of any length" in flat
    assert "Decoder parameters" not in shown
    assert "Decoder FLOPs" not in shown
    numbers = json.loads((run / "report.json").read_text())
    _, small = numbers["models"]
    assert small["window_seconds"] == 10.0
    assert small["comparison"]["clips"] == 3
    assert small["latency"]["audio_seconds"] == pytest.approx(1.6)
    assert "nats a frame" in " ".join(small["notes"])
    assert "reduced" not in " ".join(small["notes"])
    page = (run / "report.html").read_text()
    assert "They are of one window of 10 s, though the model takes audio of any length." in page
    assert "import sotto  # registers" in (run / "model" / "README.md").read_text()


@each
def test_evaluate(
    architecture: str, runs: dict[str, tuple[Path, str]], bases: dict[str, Path], clips: dict[str, Path]
) -> None:
    run, _ = runs[architecture]
    shown = sotto("evaluate", run / "model", clips["test"], "--against", bases[architecture], "--language", "en").stdout
    assert "WER difference, paired" in shown
    with pytest.raises(SottoError, match="a CTC model has no beam search"):
        sotto("evaluate", run / "model", clips["test"], "--beams", 5)


@each
def test_inspect(architecture: str, runs: dict[str, tuple[Path, str]]) -> None:
    run, _ = runs[architecture]
    shown = sotto("inspect", run / "model").stdout
    for linear in make(architecture).architecture.stacks[0].linears():
        assert linear.split(".")[-1] in shown
    assert "encoder 1" in shown
    assert "decoder" not in shown


@each
def test_transcribe(
    architecture: str, runs: dict[str, tuple[Path, str]], clips: dict[str, Path], tmp_path: Path
) -> None:
    run, _ = runs[architecture]
    audio = clips["test"] / "10.wav"
    text = sotto("transcribe", run / "model", audio).stdout.strip()
    heard = json.loads(sotto("transcribe", run / "model", audio, "-f", "json", "--timestamps").stdout)
    assert heard["text"] == text
    assert " ".join(segment["text"] for segment in heard["segments"]) == " ".join(text.split())
    assert sotto("transcribe", run / "model", audio, "-f", "vtt").stdout.startswith("WEBVTT")
    with pytest.raises(SottoError, match="a CTC model cannot translate"):
        sotto("transcribe", run / "model", audio, "--task", "translate")


@each
def test_benchmark_is_over_ten_seconds_of_noise(architecture: str, runs: dict[str, tuple[Path, str]]) -> None:
    run, _ = runs[architecture]
    found = visit(str(run / "model"), Timing(rounds=1, repeats=1))
    assert found.latency is not None
    assert found.latency.audio_seconds == 10.0
    assert found.latency.tokens == 0
    assert found.window_seconds == 10.0
    assert found.load_seconds is not None
    assert found.load_seconds > 0
    assert found.memory_increase is not None
    assert found.peak_memory is not None
    assert 0 <= found.memory_increase < found.peak_memory
    assert all(layer.flops > 0 for layer in found.layers)
    assert sum(layer.flops for layer in found.layers) < found.encoder_flops
    assert found.decoder_flops == found.decoder_tokens == 0


def test_an_export_is_transcribed_evaluated_and_timed_as_a_checkpoint_is(
    bases: dict[str, Path], clips: dict[str, Path], tmp_path: Path
) -> None:
    base, test, folder = bases["parakeet"], clips["test"], tmp_path / "onnx"
    said = sotto("export", base, "--to", "onnx", "-o", folder, "--audio", test).output
    assert "transcripts of 0 in 3 clips" in said
    assert f"export: {folder}" in said
    assert sotto("transcribe", folder, test).output == sotto("transcribe", base, test).output
    sotto("evaluate", folder, test, "--against", base, "--json", tmp_path / "errors.json")
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["comparison"]["wer_difference"] == 0
    assert errors["models"][str(folder)]["per_clip"] == errors["models"][str(base)]["per_clip"]
    timed = sotto("benchmark", base, folder, "--rounds", "1", "--repeats", "1", "--json", tmp_path / "numbers.json")
    assert timed.exit_code == 0
    first, second = json.loads((tmp_path / "numbers.json").read_text())["models"]
    assert second["numbers"]["parameters"] == first["numbers"]["parameters"]
    assert second["numbers"]["latency"]["total"] > 0
    assert "onnx" in sotto("export", "--help").output
