"""Exports for sherpa-onnx: held to the model that they were made of, and heard by sherpa-onnx itself."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from sherpa_onnx import OfflineRecognizer

from conformers import noise, wav2vec2_conformer
from digits import CLIPS, MODEL
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports import export, open_export
from sotto.exports.onnx_models import OnnxGraph
from sotto.exports.sherpa_graphs import AUDIO_CACHES, TOKEN_CACHES, kept_sizes
from sotto.exports.sherpa_onnx_folder import whisper_metadata
from sotto.exports.sherpa_tokens import text_tokens
from tones import RATE, square_wave, tiny_whisper

Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""
WHISPERS = [("sherpa-onnx", "whisper", shapes) for shapes in ("dense", "mixed")]
REFERENCES = Path(__file__).parents[2] / "benchmarks" / "reference"
LEAD = np.zeros(RATE // 200, np.float32)  # half a step between frames: those of sherpa-onnx lie so much later


@pytest.fixture(params=WHISPERS, ids="-".join)
def whisper(request: pytest.FixtureRequest, exported_by: Callable[[Any], Both]) -> Both:
    return exported_by(request.param)


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


def test_words_that_were_added_to_the_tokens_are_written() -> None:
    tokenizer = tiny_whisper()[1].tokenizer
    known = dict(text_tokens(tokenizer))
    tokenizer.add_tokens(["Köln"])
    new = dict(text_tokens(tokenizer)).items() - known.items()
    found = {number: base64.b64decode(symbol).decode() for symbol, number in new}
    assert found == {tokenizer.convert_tokens_to_ids("Köln"): "Köln"}


def test_a_token_that_is_not_written_in_bytes_is_refused() -> None:
    """As in a vocabulary that is no Whisper's."""

    class Words:
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "Köln\u3000": 1}

    with pytest.raises(SottoError, match="by their bytes, which token 1, 'Köln\u3000', does not spell; export to onnx"):
        list(text_tokens(Words()))


def test_what_is_kept_of_the_audio_is_put_in_order_once_for_all_tokens(whisper: Both) -> None:
    model, folder = whisper
    exported: Any = open_export(folder).model
    states = exported.get_encoder()(**model.family.inputs([square_wave(300, 0.5)])).last_hidden_state
    first = exported.audio(states)
    assert exported.audio(states) is first
    other = exported.audio(states + 1.0)  # another clip's
    torch.testing.assert_close(other, first + 1.0)


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


def test_sherpa_writes_what_a_wav2vec2_conformer_writes(exported_by: Callable[[Any], Both]) -> None:
    model, folder = exported_by(("sherpa-onnx", "wav2vec2_conformer", "mixed"))
    client = OfflineRecognizer.from_omnilingual_asr_ctc(str(folder / "model.onnx"), str(folder / "tokens.txt"))
    clips = [Clip(str(seed), noise(1 + 0.3 * seed, seed), RATE, "", "") for seed in range(3)]
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    assert all(" " in text for text in expected)
    assert [heard(client, clip.audio, lead=LEAD[:0]) for clip in clips] == expected


@pytest.mark.parametrize(("precision", "name"), [("float32", "model.onnx"), ("int8", "model.int8.onnx")])
def test_sherpa_writes_what_a_trained_parakeet_writes(precision: str, name: str, tmp_path: Path) -> None:
    """In noise: sherpa-onnx's features end at a level that these clips otherwise go below."""
    model = load(REFERENCES / "conformer-english", device="cpu")
    export(model, tmp_path / "out", to="sherpa-onnx", precision=precision, audio=CLIPS / "calibration")
    client = OfflineRecognizer.from_nemo_ctc(str(tmp_path / "out" / name), str(tmp_path / "out" / "tokens.txt"))
    clips = [
        Clip(clip.name, clip.audio + 0.003 * hiss(len(clip.audio)), RATE, clip.text, clip.speaker)
        for clip in open_data(DataConfig(str(CLIPS / "test"), samples=8), sampling_rate=RATE)
    ]
    same = model if precision == "float32" else open_export(tmp_path / "out")  # which writes other words in 8 bits
    expected = [found.text for found in same.family.transcribe(clips, Decoding())]
    found = [heard(client, clip.audio) for clip in clips]
    assert sum(text == other for text, other in zip(found, expected, strict=True)) >= 6


def hiss(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def test_what_sherpa_reads_of_a_parakeet(exported_by: Callable[[Any], Both]) -> None:
    model, folder = exported_by(("sherpa-onnx", "parakeet", "mixed"))
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
    with pytest.raises(SottoError, match="sherpa-onnx needs no_timestamps_token_id in the generation config"):
        export(found, tmp_path / "out", to="sherpa-onnx", audio=CLIPS / "calibration")


def test_precisions_that_sherpa_has_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="sherpa-onnx is written in float32, int8; found precision 'float16'"):
        export(of_architecture("parakeet"), tmp_path / "out", to="sherpa-onnx", precision="float16")
