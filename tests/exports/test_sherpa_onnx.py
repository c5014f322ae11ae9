"""Exports for sherpa-onnx: held to the model that they were made of, and heard by sherpa-onnx itself."""

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from sherpa_onnx import OfflineRecognizer

from conformers import noise, wav2vec2_conformer
from digits import CLIPS, MODEL
from mixed_shapes import mixed
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.exports import export, open_export
from sotto.exports.onnx_models import OnnxGraph
from sotto.exports.sherpa_graphs import AUDIO_CACHES, TOKEN_CACHES, kept_sizes
from sotto.exports.sherpa_onnx_folder import whisper_metadata
from sotto.opening import cost_of, open_model
from tones import RATE, clip, square_wave, tiny_whisper, write_folder

Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""
KINDS = [("whisper", "dense"), ("whisper", "mixed"), ("parakeet", "mixed"), ("wav2vec2_conformer", "mixed")]
REFERENCES = Path(__file__).parents[2] / "benchmarks" / "reference"
LEAD = np.zeros(RATE // 200, np.float32)  # half a step between frames: those of sherpa-onnx lie so much later


@pytest.fixture(scope="module")
def exported_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str]], Both]:
    @cache
    def made(kind: tuple[str, str]) -> Both:
        sizes = {"encoder_layers": 2, "decoder_layers": 2}
        found = Recognizer(*tiny_whisper(**sizes)) if kind[0] == "whisper" else of_architecture(kind[0])
        found.model.eval()
        folder = tmp_path_factory.mktemp("export")
        audio = write_folder(folder / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])
        export(mixed(found) if kind[1] == "mixed" else found, folder / "out", to="sherpa-onnx", audio=audio)
        return found, folder / "out"

    return made


@pytest.fixture(params=KINDS, ids=str)
def both(request: pytest.FixtureRequest, exported_by: Callable[[tuple[str, str]], Both]) -> Both:
    return exported_by(request.param)


@pytest.fixture(params=KINDS[:2], ids=str)
def whisper(request: pytest.FixtureRequest, exported_by: Callable[[tuple[str, str]], Both]) -> Both:
    return exported_by(request.param)


def test_an_export_computes_what_the_model_computes(both: Both) -> None:
    model, exported = both[0], open_export(both[1])
    inputs = model.family.inputs([square_wave(300, 0.9), square_wave(200, 0.5)])
    if model.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11], [1, 4, 2, 3]])
    with torch.no_grad():
        expected = model.family.logits(inputs)
    torch.testing.assert_close(exported.family.logits(inputs), expected, atol=1e-4, rtol=1e-4)


def test_it_writes_what_the_model_writes(both: Both) -> None:
    assert transcripts(open_export(both[1])) == transcripts(both[0])
    assert transcripts(open_export(both[1]), timestamps=True) == transcripts(both[0], timestamps=True)


def test_it_searches_as_the_model_searches(whisper: Both) -> None:
    assert transcripts(open_export(whisper[1]), beams=2) == transcripts(whisper[0], beams=2)


def transcripts(found: Recognizer, **settings: Any) -> list[Transcription]:
    clips = [clip("one", 0.6), clip("two", 0.8), clip("three", 2.5)]
    return list(found.family.transcribe(clips, Decoding(batch_size=2, **settings)))


def test_it_is_measured_as_a_model_is(both: Both) -> None:
    folder = both[1]
    numbers, before = cost_of(open_model(folder), str(folder)), cost_of(both[0], "model")
    assert (numbers.parameters, numbers.encoder_flops) == (before.parameters, before.encoder_flops)
    assert numbers.bytes_on_disk == sum(path.stat().st_size for path in folder.glob("*.onnx"))


def test_tokens_are_heard_up_to_the_offset_only(whisper: Both) -> None:
    """What lies in the places of later tokens changes nothing, and what is kept goes where the offset says."""
    model, folder = whisper
    encoder, decoder = OnnxGraph(folder / "encoder.onnx"), OnnxGraph(folder / "decoder.onnx")
    features = model.family.inputs([square_wave(300, 0.9)])["input_features"]
    audio = {name: array.numpy() for name, array in encoder({"mel": features.numpy()}).items()}
    assert list(audio) == list(AUDIO_CACHES)
    width, places = audio["n_layer_cross_k"].shape[3], model.model.config.max_target_positions
    kept = np.random.default_rng(0).standard_normal((2, 2, 1, places, width)).astype(np.float32)
    found = []
    for offset, tokens in ((0, [[1, 5, 9]]), (3, [[11]])):
        step = decoder(
            {
                "tokens": np.array(tokens),
                **dict(zip(TOKEN_CACHES, kept, strict=True)),
                **audio,
                "offset": np.array([offset]),
            }
        )
        kept = np.stack([step[f"out_n_layer_self_{part}_cache"].numpy() for part in "kv"])
        found.append(step["logits"])
    with torch.no_grad():
        expected = model.model(features, decoder_input_ids=torch.tensor([[1, 5, 9, 11]])).logits
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("behind", [0, 30, 1000])
def test_the_window_is_filled_as_the_feature_extractor_fills_it(whisper: Both, behind: int) -> None:
    """sherpa-onnx gives the frames of a clip, and zeros behind them as many as it was told."""
    model, folder = whisper
    features = model.family.inputs([square_wave(300, 0.5)])["input_features"].numpy()
    heard = features[:, :, :53]  # no sound after that
    assert (features[:, :, 53:] == features[:, :, 53:].max()).all()
    given = np.concatenate([heard, np.zeros((1, heard.shape[1], behind), np.float32)], 2)
    encoder = OnnxGraph(folder / "encoder.onnx")
    expected, found = encoder({"mel": features}), encoder({"mel": given})
    for name in AUDIO_CACHES:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_what_sherpa_reads_of_a_whisper(whisper: Both) -> None:
    model, folder = whisper
    tokenizer = model.processor.tokenizer
    lines = [line.split(" ") for line in (folder / "tokens.txt").read_text().splitlines()]
    pieces = {int(number): base64.b64decode(symbol) for symbol, number in lines}
    ids = tokenizer.encode(" naïve नमस्ते", add_special_tokens=False)
    assert b"".join(pieces[number] for number in ids).decode() == " naïve नमस्ते"
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert sorted(pieces) == list(range(end))  # no special token, no time
    found = metadata(folder / "encoder.onnx")
    start, english, task = (
        tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("startoftranscript", "en", "transcribe")
    )
    assert found["sot_sequence"] == f"{start},{english},{task}"
    assert (found["all_language_codes"], found["all_language_tokens"]) == ("en", str(english))
    assert (found["n_text_layer"], found["n_text_ctx"], found["n_text_state"]) == ("2", "8", "32")
    assert int(found["no_speech"]) == tokenizer.convert_tokens_to_ids("<|nospeech|>")
    assert (int(found["no_timestamps"]), found["eot"]) == (
        tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        str(end),
    )


def test_a_whisper_that_knows_one_language_is_prompted_with_none() -> None:
    found = Recognizer(*tiny_whisper())
    found.model.generation_config.is_multilingual = False
    values = whisper_metadata(found, kept_sizes(found.model))
    assert (values["is_multilingual"], values["sot_sequence"]) == (0, str(values["sot"]))


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_sherpa_writes_what_a_trained_whisper_writes(precision: str, tmp_path: Path) -> None:
    """Its window is six seconds; sherpa-onnx is told nothing of that."""
    model = load(MODEL, device="cpu")
    record = export(model, tmp_path / "out", to="sherpa-onnx", precision=precision, audio=CLIPS / "calibration")
    assert (record.agreement.scores < 1e-5) == (precision == "float32")
    suffix = ".int8" if precision == "int8" else ""
    names = (f"encoder{suffix}.onnx", f"decoder{suffix}.onnx", "tokens.txt")
    client = OfflineRecognizer.from_whisper(*(str(tmp_path / "out" / name) for name in names), language="en")
    clips = list(open_data(DataConfig(str(CLIPS / "test"), samples=8), sampling_rate=RATE))
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    equal = sum(heard(client, clip.audio) == text for clip, text in zip(clips, expected, strict=True))
    assert equal == len(clips) if precision == "float32" else equal >= len(clips) - 1


def heard(client: OfflineRecognizer, audio: NDArray[np.float32], lead: NDArray[np.float32] = LEAD) -> str:
    stream = client.create_stream()
    stream.accept_waveform(RATE, np.concatenate([lead, audio]))
    client.decode_stream(stream)
    return str(stream.result.text.strip())


def test_sherpa_writes_what_a_wav2vec2_conformer_writes(exported_by: Callable[[tuple[str, str]], Both]) -> None:
    model, folder = exported_by(KINDS[3])
    client = OfflineRecognizer.from_omnilingual_asr_ctc(str(folder / "model.onnx"), str(folder / "tokens.txt"))
    clips = [Clip(str(seed), noise(1 + 0.3 * seed, seed), RATE, "", "") for seed in range(3)]
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    assert all(" " in text for text in expected)
    assert [heard(client, clip.audio, lead=LEAD[:0]) for clip in clips] == expected


def test_sherpa_writes_what_a_trained_parakeet_writes(tmp_path: Path) -> None:
    """In noise: sherpa-onnx's features end at a level that these clips otherwise go below."""
    model = load(REFERENCES / "conformer-english", device="cpu")
    export(model, tmp_path / "out", to="sherpa-onnx", audio=CLIPS / "calibration")
    client = OfflineRecognizer.from_nemo_ctc(str(tmp_path / "out" / "model.onnx"), str(tmp_path / "out" / "tokens.txt"))
    clips = [
        Clip(clip.name, clip.audio + 0.003 * hiss(len(clip.audio)), RATE, clip.text, clip.speaker)
        for clip in open_data(DataConfig(str(CLIPS / "test"), samples=8), sampling_rate=RATE)
    ]
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    found = [heard(client, clip.audio) for clip in clips]
    assert sum(text == other for text, other in zip(found, expected, strict=True)) >= 6


def hiss(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def test_what_sherpa_reads_of_a_parakeet(exported_by: Callable[[tuple[str, str]], Both]) -> None:
    model, folder = exported_by(KINDS[2])
    tokens = model.model.config.vocab_size
    assert metadata(folder / "model.onnx") == {
        "model_type": "EncDecCTCModelBPE",
        "vocab_size": str(tokens - 1),
        "normalize_type": "per_feature",
        "subsampling_factor": "8",
    }
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[1] for line in lines] == [str(number) for number in range(tokens)]
    assert lines[model.model.config.pad_token_id].startswith("<blk> ")
    features = np.random.default_rng(0).standard_normal((1, 16, 80)).astype(np.float32)
    found = OnnxGraph(folder / "model.onnx")({"audio_signal": features, "length": np.array([80])})
    assert list(found) == ["logprobs", "logits"]  # sherpa-onnx takes the first
    torch.testing.assert_close(found["logprobs"], found["logits"].log_softmax(-1))
    filled = np.concatenate([features, np.full((1, 16, 24), -23.0, np.float32)], 2)
    beside_longer = OnnxGraph(folder / "model.onnx")({"audio_signal": filled, "length": np.array([80])})
    torch.testing.assert_close(beside_longer["logits"][:, :10], found["logits"], atol=1e-5, rtol=1e-5)


def test_a_model_that_sherpa_would_hear_otherwise_is_refused(tmp_path: Path) -> None:
    parakeet = of_architecture("parakeet")
    parakeet.processor.feature_extractor.preemphasis = 0.9
    with pytest.raises(SottoError, match="sherpa-onnx has preemphasis 0.97 and the model 0.9; export to onnx"):
        export(parakeet, tmp_path / "out", to="sherpa-onnx")
    with pytest.raises(SottoError, match="sherpa-onnx has do_normalize True and the model False; export to onnx"):
        export(wav2vec2_conformer(normalized=False), tmp_path / "out", to="sherpa-onnx")
    with pytest.raises(SottoError, match="takes token 0 for the blank, which is token 3 of the model; export to onnx"):
        export(wav2vec2_conformer(pad_token_id=3), tmp_path / "out", to="sherpa-onnx")
    assert not list(tmp_path.iterdir())


def test_a_whisper_without_timestamps_is_refused(tmp_path: Path) -> None:
    found = Recognizer(*tiny_whisper())
    found.model.generation_config.no_timestamps_token_id = None
    with pytest.raises(SottoError, match="names no no_timestamps_token_id, which sherpa-onnx puts before every text"):
        export(found, tmp_path / "out", to="sherpa-onnx", audio=CLIPS / "calibration")


def test_precisions_that_sherpa_has_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="sherpa-onnx is written in float32, int8; found precision 'float16'"):
        export(of_architecture("parakeet"), tmp_path / "out", to="sherpa-onnx", precision="float16")
