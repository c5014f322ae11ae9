"""Low rank and calibration on every Conformer."""

from typing import Any

import numpy as np
import pytest
import torch
from small_whisper import apply
from torch import nn

from conformers import CONFORMERS, LAYERS, WIDTH, make, parakeet, scores
from sotto.calibration import calibrate, places, window_inputs
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, ClipSource
from sotto.errors import SottoError
from sotto.low_rank_math import Principal
from sotto.methods.divergence import divergence
from sotto.methods.factoring import linear_at
from sotto.methods.sensitivity import direction_sensitivities
from sotto.methods.sequential import side_by_side
from sotto.metrics.cost import count_parameters, encoder_flops
from sotto.surgery import get_linear

every_conformer = pytest.mark.parametrize("architecture", CONFORMERS)

THRESHOLDS = {"attention": 0.9, "mlp": 0.9, "rank_multiple": 2}


def stack_of(recognizer: Recognizer) -> Any:
    (stack,) = recognizer.architecture.stacks
    return stack


def heard_by(recognizer: Recognizer, clips: ClipSource, linear: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs (rows, width) of a linear of layer 0, for all windows."""
    stored: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = get_linear(recognizer.model, stack_of(recognizer), 0, linear)
    handle = module.register_forward_hook(
        lambda _, inputs, output: stored.append((inputs[0].flatten(0, -2), output.flatten(0, -2)))
    )
    with torch.no_grad():
        for inputs in window_inputs(recognizer, clips):
            recognizer.family.encode(inputs)
    handle.remove()
    inputs, outputs = (torch.cat(rows).double().numpy() for rows in zip(*stored, strict=True))
    return inputs, outputs


@every_conformer
def test_directions_are_those_of_the_outputs(architecture: str, clips: ClipSource) -> None:
    recognizer = make(architecture)
    principals = calibrate(recognizer, clips).principals()
    assert len(principals) == LAYERS * len(list(stack_of(recognizer).linears()))
    for linear in stack_of(recognizer).linears():
        _, outputs = heard_by(recognizer, clips, linear)
        found = principals["encoder", 0, linear]
        covariance = np.cov(outputs.T, bias=True)
        energies = np.linalg.eigvalsh(covariance)[::-1]
        np.testing.assert_allclose(found.mean, outputs.mean(0), atol=1e-4, err_msg=linear)
        np.testing.assert_allclose(
            found.energies[: len(energies)], energies[: len(found.energies)], atol=1e-3 * energies[0]
        )


@every_conformer
def test_only_linears_that_hear_the_same_share_moments(architecture: str, clips: ClipSource) -> None:
    recognizer = make(architecture)
    calibration = calibrate(recognizer, clips)
    attention = stack_of(recognizer).attentions[0]
    owners = {linear: point.owner[2] for (_, index, linear), point in calibration.points.items() if index == 0}
    for linear, owner in owners.items():
        if linear != owner:
            inputs, others = heard_by(recognizer, clips, linear)[0], heard_by(recognizer, clips, owner)[0]
            np.testing.assert_array_equal(inputs, others)
    sharing = [linear for linear, owner in owners.items() if owner == attention.inward[0]]
    assert len(sharing) == (2 if "rotary" in architecture else 3)


@every_conformer
def test_long_clips_are_heard_in_windows_of_half_a_minute(architecture: str) -> None:
    recognizer = make(architecture)
    audio = np.random.default_rng(0).standard_normal(70 * 16000).astype(np.float32)
    lengths = [
        inputs[recognizer.model.main_input_name].shape[1]
        for inputs in window_inputs(recognizer, [Clip("long", audio, 16000)])
    ]
    assert len(lengths) == 3
    assert lengths[0] == lengths[1] == pytest.approx(3 * lengths[2], rel=0.01)


@every_conformer
@pytest.mark.parametrize("sequential", [False, True])
def test_thresholds(architecture: str, sequential: bool, clips: ClipSource) -> None:
    recognizer = make(architecture)
    original = recognizer.copy()
    notes = apply(recognizer, clips, **THRESHOLDS, sequential=sequential)
    layers = recognizer.structure.stacks["encoder"].layers
    factored = sum(len(layer.ranks) for layer in layers)
    assert 0 < factored <= LAYERS * len(list(stack_of(recognizer).linears()))
    assert notes[0].startswith(f"{factored} linears factored")
    assert not any("reduced" in note for note in notes)
    assert count_parameters(recognizer.model).encoder < count_parameters(original.model).encoder
    transcripts = list(window_inputs(original, clips))
    assert 0 < divergence(recognizer, original, transcripts) < divergence(silenced(original), original, transcripts)


def silenced(recognizer: Recognizer) -> Recognizer:
    """Without any of its linears."""
    copied = recognizer.copy()
    with torch.no_grad():
        for stack, index, linear in places(copied, ["encoder"]):
            for parameter in linear_at(copied, (stack.name, index, linear)).parameters():
                parameter.zero_()
    return copied


@every_conformer
@pytest.mark.parametrize("weighting", ["best", "relative", "sensitivity"])
@pytest.mark.parametrize(("budget", "share"), [("parameters", 0.9), ("flops", 0.96)])
def test_budgets_are_met(architecture: str, weighting: str, budget: str, share: float, clips: ClipSource) -> None:
    recognizer = make(architecture)
    frames = recognizer.family.window_frames
    measure: dict[str, Any] = {
        "parameters": lambda: count_parameters(recognizer.model).encoder,
        "flops": lambda: encoder_flops(recognizer.model, frames),
    }
    before = measure[budget]()
    notes = apply(recognizer, clips, **{budget: share}, weighting=weighting, rank_multiple=1)
    assert (share - 0.02) * before < measure[budget]() <= share * before
    assert any("nats a frame" in note for note in notes) == (weighting == "best")


@every_conformer
def test_all_at_full_energy_stays_as_it_was(architecture: str, clips: ClipSource) -> None:
    """Blind ranks are whole here: what is factored must compute the same."""
    recognizer = make(architecture)
    before = scores(recognizer)
    apply(recognizer, clips, attention=0.999999, mlp=0.999999, rank_multiple=1)
    assert (scores(recognizer) - before).abs().max() < 0.05 * before.abs().max()


@every_conformer
def test_a_second_step_starts_from_the_first_ones_factors(architecture: str, clips: ClipSource, tmp_path: Any) -> None:
    recognizer = make(architecture)
    apply(recognizer, clips, parameters=0.95, weighting="relative", rank_multiple=1)
    apply(recognizer, clips, parameters=0.9, weighting="relative", rank_multiple=1)
    recognizer.save(tmp_path / "saved")
    torch.testing.assert_close(scores(load(tmp_path / "saved", device="cpu")), scores(recognizer))


def test_a_decoder_is_asked_for_in_vain(clips: ClipSource) -> None:
    with pytest.raises(SottoError, match="parakeet has no stack 'decoder'"):
        apply(make("parakeet"), clips, stacks=("encoder", "decoder"))


@every_conformer
def test_sensitivities_are_mean_squares_of_gradients_of_drawn_frames(architecture: str, clips: ClipSource) -> None:
    recognizer = make(architecture)
    generator = torch.Generator().manual_seed(3)
    principals = {}
    for stack, index, name in places(recognizer, ["encoder"]):
        width = linear_at(recognizer, (stack.name, index, name)).out_features
        directions = torch.linalg.qr(torch.randn(width, 5, generator=generator))[0]
        principals[stack.name, index, name] = Principal(torch.zeros(width), torch.ones(5).double(), directions)
    found = direction_sensitivities(recognizer, principals, clips, ("encoder",))
    assert all(parameter.requires_grad for parameter in recognizer.model.parameters())

    generator = torch.Generator().manual_seed(0)
    gradients: dict[Any, list[torch.Tensor]] = {place: [] for place in principals}
    family = recognizer.family
    for inputs in window_inputs(recognizer, clips):
        outputs: dict[Any, torch.Tensor] = {}
        handles = [
            linear_at(recognizer, place).register_forward_hook(
                lambda _, __, output, place=place, into=outputs: into.update({place: output})
            )
            for place in principals
        ]
        probabilities = family.run(inputs)[0, : int(family.frame_counts(inputs))].softmax(-1)
        for handle in handles:
            handle.remove()
        drawn = torch.multinomial(probabilities.detach(), 1, generator=generator)
        loss = -probabilities.gather(1, drawn).log().sum()
        for place, gradient in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            gradients[place].append(gradient.flatten(0, -2))
    for place, rows in gradients.items():
        expected = (torch.cat(rows) @ principals[place].directions).double().square().mean(0)
        assert expected.max() > 0
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-9, msg=str(place))


@every_conformer
def test_calibration_does_not_stand_in_the_way_of_gradients(architecture: str, clips: ClipSource) -> None:
    """What a model keeps of a run, such as rotary positions, has to serve the next one of the same length."""
    recognizer = make(architecture)
    calibrate(recognizer, clips)
    inputs = list(window_inputs(recognizer, clips))[-1]
    recognizer.family.logits(inputs).sum().backward()
    linear = get_linear(recognizer.model, stack_of(recognizer), 0, stack_of(recognizer).attentions[0].inward[0])
    assert linear.weight.grad is not None


def test_groups_follow_the_order_of_computation() -> None:
    recognizer = make("parakeet")
    assert list(side_by_side(stack_of(recognizer))) == [
        ("feed_forward1.linear1",),
        ("feed_forward1.linear2",),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.relative_k_proj"),
        ("self_attn.o_proj",),
        ("feed_forward2.linear1",),
        ("feed_forward2.linear2",),
    ]


def test_linears_without_bias_can_be_factored(clips: ClipSource) -> None:
    recognizer = parakeet(attention_bias=False)
    before = count_parameters(recognizer.model).encoder
    apply(recognizer, clips, parameters=0.9, weighting="relative", rank_multiple=1)
    assert count_parameters(recognizer.model).encoder <= 0.9 * before
    assert any(
        isinstance(module, nn.Linear) and module.bias is None and module.out_features < WIDTH
        for module in recognizer.model.modules()
    )
