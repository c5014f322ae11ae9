"""Sequential calibration against least squares over stored activations, and against one-pass factors."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_whisper import MakeRecognizer, apply, difference, each_window, encoded

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.methods.sequential import fit_layer, side_by_side
from sotto.surgery import get_linear
from whisper_windows import own_transcript

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.out_proj", "fc1", "fc2")

Array = NDArray[np.float64]


def inputs_and_outputs(recognizer: Recognizer, index: int, features: torch.Tensor) -> dict[str, tuple[Array, Array]]:
    """Every row that goes in and out of the linears of an encoder layer, in one batch."""
    stack = recognizer.architecture.stack("encoder")
    stored: dict[str, tuple[Array, Array]] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs, output: stored.update(
            {name: (inputs[0].flatten(0, -2).double().numpy(), output.flatten(0, -2).double().numpy())}
        )

    handles = [get_linear(recognizer.model, stack, index, name).register_forward_hook(keep(name)) for name in LINEARS]
    encoded(recognizer.model, features)
    for handle in handles:
        handle.remove()
    return stored


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_every_linear_is_fitted_once_after_all_that_it_hears(make_recognizer: MakeRecognizer, stack: str) -> None:
    table = make_recognizer().architecture.stack(stack)
    groups = list(side_by_side(table))
    assert [linear for group in groups for linear in group] == list(table.linears())
    assert groups[:2] == [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.out_proj",)]
    assert groups[-2:] == [("fc1",), ("fc2",)]


def test_a_layer_is_fitted_from_what_it_hears_now_to_what_it_said_before(
    make_recognizer: MakeRecognizer, clips: ClipSource
) -> None:
    recognizer = make_recognizer(32, layers=2)
    original = recognizer.copy()
    features = each_window(recognizer, clips)
    generator = torch.Generator().manual_seed(0)
    for parameter in recognizer.model.get_submodule("model.encoder.layers.0").parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)  # what compression might do
    stack = recognizer.architecture.stack("encoder")
    now, before = inputs_and_outputs(recognizer, 1, features), inputs_and_outputs(original, 1, features)
    ridge = 1e-4  # rounding alone decides a solution that nothing holds in the directions without variance
    free = fit_layer(recognizer, original, stack, 1, LINEARS, clips, ridge=ridge)
    tied = fit_layer(recognizer, original, stack, 1, LINEARS, clips, ridge=1e7)
    for name in LINEARS:
        x, y = now[name][0], before[name][1]
        centered = x - x.mean(0)
        weight = get_linear(original.model, stack, 1, name).weight.detach().double().numpy()
        pull = np.sqrt(len(x) * ridge * centered.var(0).mean()) * np.eye(x.shape[1])
        rows, targets = np.vstack((centered, pull)), np.vstack((y - y.mean(0), pull @ weight.T))
        solution = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        drift = np.abs(centered @ (solution - weight).T).max()
        assert drift > 0.05, name  # or the next lines would show nothing
        assert np.abs(centered @ (free[name].weight.numpy() - solution).T).max() < 0.01 * drift, name
        assert np.allclose(tied[name].weight, weight, atol=1e-5)
        assert np.allclose(free[name].input_mean, x.mean(0), atol=1e-4)
        assert np.allclose(free[name].target_mean, y.mean(0), atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("settings", [{"preset": "balanced"}, {"attention": 0.9, "mlp": 0.95}], ids=str)
def test_fits_in_turn_lose_less_than_all_factors_at_once(
    make_recognizer: MakeRecognizer, clips: ClipSource, settings: dict[str, Any], seed: int
) -> None:
    """On the calibration audio, at equal ranks, the error at the end of the encoder is clearly smaller."""
    original = make_recognizer(64, 3, 2, seed)
    features = each_window(original, clips)
    expected = encoded(original.model, features)
    errors, structures = {}, {}
    for sequential in (False, True):
        recognizer = make_recognizer(64, 3, 2, seed)
        apply(recognizer, clips, **settings, outlier_share=None, rank_multiple=8, sequential=sequential)
        errors[sequential] = difference(expected, encoded(recognizer.model, features))
        structures[sequential] = recognizer.structure
    assert structures[True] == structures[False]
    assert errors[True] < 0.9 * errors[False]


def test_nothing_to_make_up_for_gives_the_papers_factors(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    """The first linears of the first layer hear what they heard before; no matter what the ridge is."""
    at_once, in_turn = make_recognizer(), make_recognizer()
    settings = {"attention": 0.9, "mlp": 0.9, "rank_multiple": 4, "reduced_attention": False}
    apply(at_once, clips, **settings)
    apply(in_turn, clips, **settings, sequential=True, ridge=0.1)
    stack = at_once.architecture.stack("encoder")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        first, second = (get_linear(each.model, stack, 0, name) for each in (at_once, in_turn))
        assert first.weight.shape == second.weight.shape
        torch.testing.assert_close(first.weight, second.weight, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(first.bias, second.bias, rtol=1e-3, atol=1e-3)
    first, second = (get_linear(each.model, stack, 1, "fc1") for each in (at_once, in_turn))
    assert (first.weight - second.weight).abs().max() > 0.01  # there is something to make up for by then


def test_the_original_stays_and_nobody_listens_on(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer()
    original = recognizer.copy()
    before = {name: value.clone() for name, value in original.model.state_dict().items()}
    stack = recognizer.architecture.stack("encoder")

    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError

    handle = original.model.get_encoder().layers[1].register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        fit_layer(recognizer, original, stack, 0, LINEARS, clips, ridge=0.0)
    handle.remove()
    for each in (recognizer, original):
        assert not any(get_linear(each.model, stack, 0, name)._forward_hooks for name in LINEARS)
    recognizer.model.get_parameter("model.encoder.layers.0.fc1.weight").data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in original.model.state_dict().items())


def test_the_decoder_is_fitted_after_the_encoder(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    """On the original's own transcripts the logits then stay closer to it than with all factors at once."""
    original = make_recognizer()
    heard = each_window(original, clips).split(1)
    with torch.no_grad():
        spoken = [own_transcript(original, features) for features in heard]

    @torch.no_grad()
    def logits(model: Any) -> torch.Tensor:
        pairs = zip(heard, spoken, strict=True)
        return torch.cat([model(input_features=x, decoder_input_ids=tokens).logits[0] for x, tokens in pairs])

    errors = {}
    for sequential in (False, True):
        recognizer = make_recognizer()
        settings = {"attention": 0.9, "mlp": 0.95, "rank_multiple": 8, "stacks": ("encoder", "decoder")}
        apply(recognizer, clips, **settings, sequential=sequential)
        assert recognizer.structure.stacks["decoder"].layers[0].ranks
        errors[sequential] = difference(logits(original.model), logits(recognizer.model))
    assert 1e-4 < errors[True] < 0.8 * errors[False]
