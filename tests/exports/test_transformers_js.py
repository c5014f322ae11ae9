"""ONNX exports, heard by transformers.js itself: the texts that Sotto writes with the checkpoint."""

import json
import subprocess
from pathlib import Path

import pytest
import soundfile

from digits import CLIPS, MODEL, with_layers_of_different_shapes
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.exports import export
from sotto.exports.record import ExportRecord
from sotto.methods.factoring import factor_at_once
from sotto.methods.low_rank_config import LowRank
from sotto.surgery import reduce_attention
from tones import RATE

CLIENT = Path(__file__).parents[1] / "clients" / "transcribe.mjs"
pytestmark = pytest.mark.skipif(
    not (CLIENT.parent / "node_modules" / ".installed").is_file(),
    reason="transformers.js is not installed: `make test` does that where there is Node 20.9 or later",
)
REFERENCES = Path(__file__).parents[2] / "benchmarks" / "reference"


def heard(exported: Path, dtype: str, clips: list[Clip], folder: Path) -> list[str]:
    """The texts of transformers.js, in a process of its own."""
    paths = [folder / f"{number}.wav" for number in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip.audio, RATE, subtype="FLOAT")
    command = ["node", str(CLIENT), str(exported), dtype, "en", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout)
    return texts


def texts_of(model: Recognizer, clips: list[Clip]) -> list[str]:
    return [found.text for found in model.family.transcribe(clips, Decoding())]


def changed_texts(model: Recognizer, clips: list[Clip]) -> list[str]:
    """Texts that the unchanged model does not write."""
    expected = texts_of(model, clips)
    assert len(set(expected)) > 3
    assert expected != texts_of(load(MODEL, device="cpu"), clips)
    return expected


def exported(model: Recognizer, folder: Path, precision: str = "float32") -> ExportRecord:
    return export(model, folder, to="onnx", precision=precision, audio=CLIPS / "calibration")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return list(open_data(DataConfig(str(CLIPS / "test"), samples=40), sampling_rate=RATE))[:6]


def test_it_writes_in_8_bits_what_a_trained_whisper_writes(clips: list[Clip], tmp_path: Path) -> None:
    model = load(MODEL, device="cpu")
    expected = texts_of(model, clips)
    assert len(set(expected)) == len(clips)
    assert exported(model, tmp_path / "out", "int8").agreement.scores > 1e-3
    texts = heard(tmp_path / "out", "q8", clips, tmp_path)
    assert sum(text == other for text, other in zip(texts, expected, strict=True)) >= len(clips) - 1


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "fp32"), ("float16", "fp16")])
def test_it_finds_weights_that_lie_beside_a_large_graph(
    precision: str, dtype: str, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sotto.exports.precision.LARGEST_FILE", 10_000)
    model = load(MODEL, device="cpu")
    exported(model, tmp_path / "out", precision)
    assert len(list((tmp_path / "out" / "onnx").glob("*.onnx_data"))) == 2
    assert heard(tmp_path / "out", dtype, clips, tmp_path) == texts_of(model, clips)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "fp32"), ("int8", "q8")])
def test_it_writes_what_a_whisper_with_layers_of_different_shapes_writes(
    precision: str, dtype: str, clips: list[Clip], tmp_path: Path
) -> None:
    model = with_layers_of_different_shapes()
    expected = changed_texts(model, clips)
    exported(model, tmp_path / "out", precision)
    texts = heard(tmp_path / "out", dtype, clips, tmp_path)
    equal = sum(text == other for text, other in zip(texts, expected, strict=True))
    assert equal >= len(clips) - (precision == "int8")


def test_it_writes_what_a_whisper_of_low_rank_writes_under_either_name(clips: list[Clip], tmp_path: Path) -> None:
    """`lite-whisper` is what published checkpoints with factors are called."""
    model = load(MODEL, device="cpu")
    encoder = model.architecture.stack("encoder")
    layers = model.model.config.encoder_layers
    ranks = {("encoder", index, linear): 8 for index in range(layers) for linear in encoder.linears()}
    factor_at_once(model, LowRank(preset="quality", basis="weights"), ranks, {})
    reduce_attention(model.model, encoder, 0, encoder.attentions[0])
    expected = changed_texts(model, clips)
    exported(model, tmp_path / "out")
    assert heard(tmp_path / "out", "fp32", clips, tmp_path) == expected
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "lite-whisper"}))
    assert heard(tmp_path / "out", "fp32", clips, tmp_path) == expected


def test_it_writes_what_a_trained_parakeet_writes(clips: list[Clip], tmp_path: Path) -> None:
    model = load(REFERENCES / "conformer-english", device="cpu")
    expected = texts_of(model, clips)
    assert any(" b b" in text for text in expected)  # one token twice, which a blank keeps apart
    exported(model, tmp_path / "out")
    assert heard(tmp_path / "out", "fp32", clips, tmp_path) == expected
