"""Sensitivities against autograd on stored outputs, and against what they are to foretell."""

from collections.abc import Iterator

import pytest
import torch
from small_whisper import MakeRecognizer, each_window
from torch import nn

from sotto.calibration import Place, calibrate, places
from sotto.checkpoint import Recognizer
from sotto.data import Clip, ClipReference, ClipSource, DataConfig
from sotto.families.whisper import Whisper
from sotto.low_rank_math import Principal
from sotto.methods import sensitivity
from sotto.methods.sensitivity import direction_sensitivities
from sotto.surgery import get_linear
from whisper_windows import own_transcript

STACKS = ("encoder", "decoder")


def linear_at(recognizer: Recognizer, place: Place) -> nn.Module:
    stack, index, name = place
    return get_linear(recognizer.model, recognizer.architecture.stack(stack), index, name)


def random_principals(recognizer: Recognizer) -> dict[Place, Principal]:
    """A few orthonormal directions for every linear, as good as any."""
    generator = torch.Generator().manual_seed(0)
    principals = {}
    for stack, index, name in places(recognizer, STACKS):
        width = linear_at(recognizer, (stack.name, index, name)).out_features
        directions = torch.linalg.qr(torch.randn(width, 5, generator=generator))[0]
        principals[stack.name, index, name] = Principal(torch.zeros(width), torch.ones(5).double(), directions)
    return principals


def likelihood_gradients(
    recognizer: Recognizer, features: torch.Tensor, generator: torch.Generator, listened: list[Place]
) -> dict[Place, torch.Tensor]:
    """d(-log p of one drawn transcript) / d(outputs of each linear), (frames, outputs), for one window."""
    with torch.no_grad():
        tokens = own_transcript(recognizer, features)
    outputs: dict[Place, torch.Tensor] = {}
    handles = [
        linear_at(recognizer, place).register_forward_hook(
            lambda _, __, output, place=place: outputs.update({place: output})
        )
        for place in listened
    ]
    logits = recognizer.model(input_features=features, decoder_input_ids=tokens).logits[0]
    for handle in handles:
        handle.remove()
    probabilities = torch.softmax(logits, -1)
    drawn = torch.multinomial(probabilities.detach(), 1, generator=generator)
    loss = -torch.log(probabilities.gather(1, drawn)).sum()
    gradients = torch.autograd.grad(loss, [outputs[place] for place in listened])
    return {place: gradient.flatten(0, -2) for place, gradient in zip(listened, gradients, strict=True)}


def test_every_linear_has_the_mean_square_of_its_gradients(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer()
    principals = random_principals(recognizer)
    assert len(principals) == 2 * (6 + 10)
    found = direction_sensitivities(recognizer, principals, clips, STACKS)
    generator = torch.Generator().manual_seed(0)
    gradients: dict[Place, list[torch.Tensor]] = {place: [] for place in principals}
    for features in each_window(recognizer, clips).split(1):
        for place, rows in likelihood_gradients(recognizer, features, generator, list(principals)).items():
            gradients[place].append(rows)
    assert found.keys() == principals.keys()
    for place, rows in gradients.items():
        expected = (torch.cat(rows) @ principals[place].directions).double().square().mean(0)
        assert found[place].dtype == torch.float64
        assert expected.min() > 0 or place[2].endswith("k_proj")
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    "place", [("encoder", 0, "fc1"), ("encoder", 1, "self_attn.v_proj"), ("decoder", 1, "fc2")], ids=str
)
def test_they_foretell_what_a_small_error_does(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    """Noise of variance v in the outputs raises the divergence by v / 2 times the sum over frames and directions."""
    recognizer, noise, draws = make_recognizer(), 0.01, 200
    recognizer.model.double()
    clip = next(iter(clips))
    features = each_window(recognizer, [clip])  # type: ignore[arg-type]
    with torch.no_grad():
        tokens = own_transcript(recognizer, features)
    monkeypatch.setattr(sensitivity, "WINDOWS", draws)
    monkeypatch.setattr(Whisper, "with_transcript", lambda _, inputs, __: {**inputs, "decoder_input_ids": tokens})
    linear = linear_at(recognizer, place)
    width = linear.out_features
    identity = Principal(torch.zeros(width), torch.ones(width).double(), torch.eye(width))
    weights = direction_sensitivities(recognizer, {place: identity}, [clip] * draws, STACKS)[place]  # type: ignore[arg-type]

    generator = torch.Generator().manual_seed(1)
    frames = 0

    def disturb(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal frames
        frames = output.shape[1]
        return output + noise * torch.randn(output.shape, generator=generator, dtype=output.dtype)

    with torch.no_grad():
        clean = recognizer.model(input_features=features, decoder_input_ids=tokens).logits.log_softmax(-1)
        handle = linear.register_forward_hook(disturb)
        many = {"input_features": features.expand(200, -1, -1), "decoder_input_ids": tokens.expand(200, -1)}
        noisy = recognizer.model(**many).logits.log_softmax(-1)
        handle.remove()
    divergence = float((clean.exp() * (clean - noisy)).sum((1, 2)).mean())
    assert divergence == pytest.approx(0.5 * noise**2 * frames * float(weights.sum()), rel=0.1)


def test_frozen_weights_are_no_hindrance(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    trainable, frozen = make_recognizer(), make_recognizer()
    frozen.model.requires_grad_(False)
    principals = random_principals(trainable)
    principals = {place: principal for place, principal in principals.items() if place[0] == "encoder"}
    expected = direction_sensitivities(trainable, principals, clips, STACKS)
    found = direction_sensitivities(frozen, principals, clips, STACKS)
    for place in expected:
        torch.testing.assert_close(found[place], expected[place])


def test_the_model_is_left_as_it_was(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer()
    before = {name: value.clone() for name, value in recognizer.model.state_dict().items()}
    direction_sensitivities(recognizer, random_principals(recognizer), clips, STACKS)
    assert all(torch.equal(value, before[name]) for name, value in recognizer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in recognizer.model.parameters())
    for stack, index, name in places(recognizer, STACKS):
        assert not linear_at(recognizer, (stack.name, index, name))._forward_hooks


def test_a_few_windows_are_enough(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more audio is read than is used."""
    read = []

    def reading() -> Iterator[Clip]:
        for clip in clips:
            read.append(clip.name)
            yield clip

    monkeypatch.setattr(sensitivity, "WINDOWS", 2)
    recognizer = make_recognizer()
    principals = random_principals(recognizer)
    found = direction_sensitivities(recognizer, principals, reading(), STACKS)  # type: ignore[arg-type]
    assert read == ["0.wav", "1.wav"]
    generator = torch.Generator().manual_seed(0)
    place = ("encoder", 1, "fc1")
    windows = each_window(recognizer, clips)[:2].split(1)
    rows = torch.cat([likelihood_gradients(recognizer, window, generator, [place])[place] for window in windows])
    expected = (rows @ principals[place].directions).double().square().mean(0)
    torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-12)


def test_directions_that_the_calibration_leaves_empty_have_none(
    make_recognizer: MakeRecognizer, clips: ClipSource
) -> None:
    """Where inputs never vary there are fewer directions than dimensions."""
    recognizer = make_recognizer()
    for name in ("weight", "bias"):
        recognizer.model.get_parameter(f"model.encoder.layers.0.final_layer_norm.{name}").data[4:] = 0.0
    principals = calibrate(recognizer, clips).principals()
    found = direction_sensitivities(recognizer, principals, clips, ("encoder",))
    place = ("encoder", 0, "fc1")
    assert (found[place][:4] > 0).all()
    assert not found[place][4:].any()
    assert all(bool(torch.isfinite(values).all()) for values in found.values())


@pytest.mark.parametrize(("count", "step"), [(1, 1), (10, 1), (11, 2), (19, 2), (20, 2), (21, 3), (95, 10)])
def test_few_clips_stand_for_all_of_the_data(count: int, step: int) -> None:
    listing = [ClipReference(str(number)) for number in range(count)]
    source = ClipSource(DataConfig("clips"), listing, sampling_rate=16000)
    names = [int(reference.name) for reference in source.spread(10).references]
    assert names == list(range(0, count, step))
    assert len(names) <= 10
    others = {int(reference.name) for reference in source.spread(10, offset=1).references}
    assert others.isdisjoint(names) == (step > 1)
