"""Calibration against the moments of all activations, stored in the test and taken at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import nn

from sotto.calibration import Calibration, calibrate, places
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource, DataConfig, open_data, windows
from sotto.errors import SottoError
from sotto.layers import FactoredLinear
from sotto.surgery import factor, layer_path
from whisper_windows import features_of, own_transcript

RATE = 16000
SECONDS = (1.0, 0.4, 2.5, 1.05)
WINDOWS = 1 + 1 + 3 + 1  # of one second; a tail of 50 ms is dropped
POSITIONS = 50

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that swells, each clip at its own pace."""
    path = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        noise = generator.standard_normal(round(seconds * RATE))
        swell = np.sin(np.linspace(0, 5 + 9 * number, len(noise))) ** 2
        soundfile.write(path / f"{number}.wav", 0.2 * swell * noise, RATE)
    return path


@pytest.fixture
def clips(folder: Path) -> ClipSource:
    return open_data(DataConfig(str(folder)), sampling_rate=RATE)


def each_window(recognizer: Recognizer, clips: ClipSource) -> list[torch.Tensor]:
    return [features_of(recognizer, [window]) for clip in clips for window in windows(clip.audio, RATE, 1.0)]


def all_outputs(recognizer: Recognizer, run: Callable[[], None]) -> dict[str, Array]:
    """Every row (rows, outputs) that each linear gives while `run` runs."""
    stored: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: stored.setdefault(name, []).append(output.flatten(0, -2))
        )
        for name, module in recognizer.model.named_modules()
        if isinstance(module, nn.Linear | FactoredLinear)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).double().numpy() for name, rows in stored.items()}


def run_encoder(recognizer: Recognizer, clips: ClipSource) -> Callable[[], None]:
    def run() -> None:
        for features in each_window(recognizer, clips):
            recognizer.model.get_encoder()(features)

    return run


def assert_moments_of(calibration: Calibration, stored: dict[str, Array], stacks: tuple[str, ...]) -> None:
    """Means, covariances and orthonormal directions of every linear, within float32's rounding of the rows."""
    count = 0
    for stack, index, linear in places(calibration.recognizer, stacks):
        outputs = stored[layer_path(stack, index, linear)]
        expected = np.cov(outputs, rowvar=False, bias=True)
        found = calibration.principal(stack, index, linear)
        directions = found.directions.numpy()
        covariance = directions @ np.diag(found.energies.numpy()) @ directions.T
        assert np.abs(found.mean.numpy() - outputs.mean(0)).max() < 1e-4 * np.abs(outputs.mean(0)).max(), linear
        assert np.abs(covariance - expected).max() < 1e-4 * np.abs(expected).max(), linear
        assert (np.diff(found.energies.numpy()) <= 0).all()
        live = directions[:, found.energies.numpy() > 1e-6 * float(found.energies[0])]
        assert np.allclose(live.T @ live, np.eye(live.shape[1]), atol=1e-6)
        count += 1
    assert count == sum({"encoder": 6, "decoder": 10}[name] * 3 for name in stacks)


def test_moments_of_the_encoder_are_those_of_its_activations(recognizer: Recognizer, clips: ClipSource) -> None:
    calibration = calibrate(recognizer, clips)
    assert_moments_of(calibration, all_outputs(recognizer, run_encoder(recognizer, clips)), ("encoder",))
    assert {moments.count for moments in calibration.moments.values()} == {WINDOWS * POSITIONS}


def test_moments_of_the_decoder_are_those_of_its_activations(recognizer: Recognizer, clips: ClipSource) -> None:
    """The encoder's are then taken once a window as well, though generating runs it too."""
    calibration = calibrate(recognizer, clips, ("encoder", "decoder"))
    model = recognizer.model

    def run() -> None:
        for features, tokens in pairs:
            model(input_features=features, decoder_input_ids=tokens, use_cache=False)

    pairs = [(features, own_transcript(recognizer, features)) for features in each_window(recognizer, clips)]
    assert_moments_of(calibration, all_outputs(recognizer, run), ("encoder", "decoder"))
    counts = {point.owner[2]: kept.count for point, kept in calibration.moments.items() if point.owner[0] == "decoder"}
    spoken = sum(tokens.shape[1] for _, tokens in pairs)
    assert counts.pop("encoder_attn.k_proj") == WINDOWS * POSITIONS
    assert set(counts.values()) == {spoken}


def test_linears_that_share_an_input_share_their_moments(recognizer: Recognizer, clips: ClipSource) -> None:
    calibration = calibrate(recognizer, clips, ("encoder", "decoder"))
    measured: dict[str, list[str]] = {}
    for (stack, index, linear), point in calibration.points.items():
        if index == 0:
            side = "input" if point.at_input else "output"
            measured.setdefault(f"{stack} {side} of {point.owner[2]}", []).append(linear)
    attention = {"self_attn.q_proj": ["q_proj", "k_proj", "v_proj"], "self_attn.out_proj": ["out_proj"]}
    own = {name: [f"self_attn.{linear}" for linear in linears] for name, linears in attention.items()}
    cross = {
        "encoder_attn.q_proj": ["encoder_attn.q_proj"],
        "encoder_attn.k_proj": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
        "encoder_attn.out_proj": ["encoder_attn.out_proj"],
    }
    assert measured == {
        **{f"encoder input of {name}": linears for name, linears in own.items()},
        "encoder input of fc1": ["fc1"],
        "encoder output of fc2": ["fc2"],
        **{f"decoder input of {name}": linears for name, linears in (own | cross).items()},
        "decoder input of fc1": ["fc1"],
        "decoder output of fc2": ["fc2"],
    }
    assert len(calibration.moments) == 3 * (4 + 7)


def test_a_linear_that_is_factored_is_measured_like_any_other(recognizer: Recognizer, clips: ClipSource) -> None:
    stack = recognizer.architecture.stack("encoder")
    generator = torch.Generator().manual_seed(0)
    for linear, inputs, outputs in (("self_attn.k_proj", 16, 16), ("fc1", 16, 24), ("fc2", 24, 16)):
        shapes = ((5, inputs), (outputs, 5), (outputs,))
        factor(recognizer.model, stack, 1, linear, *(torch.randn(shape, generator=generator) for shape in shapes))
    calibration = calibrate(recognizer, clips)
    assert_moments_of(calibration, all_outputs(recognizer, run_encoder(recognizer, clips)), ("encoder",))
    energies = calibration.principal(stack, 1, "fc1").energies
    assert energies[5:].max() < 1e-6 * energies[0]  # what rank 5 means


def test_principal_directions_let_go_of_the_moments(recognizer: Recognizer, clips: ClipSource) -> None:
    calibration = calibrate(recognizer, clips)
    expected = {
        place: calibration.principal(recognizer.architecture.stack(place[0]), *place[1:])
        for place in calibration.points
    }
    principals = calibration.principals()
    assert not calibration.moments
    assert principals.keys() == expected.keys()
    for place, principal in principals.items():
        assert torch.equal(principal.energies, expected[place].energies)
        assert torch.equal(principal.directions, expected[place].directions.float())


def test_nothing_listens_afterwards(recognizer: Recognizer, clips: ClipSource) -> None:
    calibrate(recognizer, clips, ("encoder", "decoder"))

    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError

    recognizer.model.get_encoder().register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        calibrate(recognizer, clips)
    for module in recognizer.model.modules():
        assert fail in module._forward_hooks.values() or not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_transcript_is_the_prompt_and_then_the_likeliest_tokens(recognizer: Recognizer, clips: ClipSource) -> None:
    """Language, task and absence of timestamps come first, as in the training and use of the model."""
    model, tokenizer = recognizer.model, recognizer.processor.tokenizer
    features = each_window(recognizer, clips)[0]
    with torch.no_grad():
        tokens = own_transcript(recognizer, features)
        logits: Any = model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
    prompt = tokenizer.convert_ids_to_tokens(tokens[0, :4])
    assert prompt[0] == "<|startoftranscript|>"
    assert prompt[1] in ("<|en|>", "<|hi|>")
    assert prompt[2:] == ["<|transcribe|>", "<|notimestamps|>"]
    assert 5 < tokens.shape[1] <= model.config.max_target_positions
    assert tokens[0, 5:].tolist() == logits[0, 4:-1].argmax(-1).tolist()  # the first may not be the end
    assert model.generation_config.eos_token_id not in tokens[0].tolist()


def test_a_transcript_ends_before_its_end_token(recognizer: Recognizer, clips: ClipSource) -> None:
    end = recognizer.model.generation_config.eos_token_id

    def prefer_the_end(_: nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits + 1e4 * nn.functional.one_hot(torch.tensor(end), logits.shape[-1])

    recognizer.model.proj_out.register_forward_hook(prefer_the_end)
    with torch.no_grad():
        tokens = own_transcript(recognizer, each_window(recognizer, clips)[0])
    assert tokens.shape[1] == 5  # the first token after the prompt may not be the end, the second is
    assert end not in tokens[0].tolist()


def test_an_english_only_checkpoint_has_a_prompt_of_its_own(recognizer: Recognizer, clips: ClipSource) -> None:
    settings = recognizer.model.generation_config
    settings.is_multilingual = False
    del settings.lang_to_id, settings.task_to_id
    with torch.no_grad():
        tokens = own_transcript(recognizer, each_window(recognizer, clips)[0])
    names = recognizer.processor.tokenizer.convert_ids_to_tokens(tokens[0, :2])
    assert names == ["<|startoftranscript|>", "<|notimestamps|>"]


def test_no_clip_that_can_be_used_is_an_error(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    source = open_data(DataConfig(str(tmp_path)), sampling_rate=RATE)
    with pytest.raises(SottoError, match="none of the 1 clips"):
        calibrate(recognizer, source)
    with pytest.raises(SottoError, match="no clip of .* could be used for calibration"):
        calibrate(recognizer, source.shard(0, 2))
