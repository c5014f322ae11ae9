"""Low rank on models: the paper's algorithm by a batch SVD, its published size, budgets, slips of users."""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_whisper import MakeRecognizer, apply, difference, each_window, encoded
from torch import nn
from transformers import WhisperForConditionalGeneration

from encoder_gpu import FIGURE_6
from shapes import config_of
from sotto.architectures import get_architecture
from sotto.checkpoint import Recognizer
from sotto.configuration import parse
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, ReducedAttention
from sotto.low_rank_math import Curve, allocate
from sotto.methods import budget_costs, methods
from sotto.methods.low_rank_config import PRESETS, LowRank
from sotto.metrics.cost import count_parameters, encoder_flops
from sotto.surgery import factor

Array = NDArray[np.float64]


def ranks_of(recognizer: Recognizer, stack: str = "encoder") -> list[dict[str, int]]:
    """What each layer's record says; the modules must agree."""
    layers = [dict(layer.ranks) for layer in recognizer.structure.stacks[stack].layers]
    for layer, module in zip(layers, recognizer.model.get_submodule(f"model.{stack}.layers"), strict=True):
        found = {name: each.rank for name, each in module.named_modules() if isinstance(each, FactoredLinear)}
        assert found == layer
    return layers


# The paper


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    encoder = model.get_submodule("model.encoder")
    return {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}


def stored_outputs(model: nn.Module, features: torch.Tensor) -> dict[str, Array]:
    """Y of each linear of the encoder, over all frames of all windows."""
    stored = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: stored.update({name: output.flatten(0, -2).double().numpy()})

    handles = [module.register_forward_hook(keep(name)) for name, module in linears(model).items()]
    encoded(model, features)
    for handle in handles:
        handle.remove()
    return stored


def published_algorithm(model: nn.Module, outputs: dict[str, Array], preset: str) -> dict[str, int]:
    """Compress as the paper's code does, by an SVD of all outputs at once, and return the ranks.

    Each linear becomes its own product of factors, in float64: eq. (2), (5), (6) and the code's rule of what to skip.
    """
    width = model.config.d_model
    ranks = {}
    for name, linear in linears(model).items():
        threshold = PRESETS[preset]["attn" not in name]
        y = outputs[name]
        mean = y.mean(0)
        _, s, vt = np.linalg.svd(y - mean, full_matrices=False)
        share = np.concatenate(([0.0], np.cumsum(s**2))) / np.sum(s**2)
        k = next((k for k in range(0, len(s), 16) if share[k] > threshold), len(s))
        if k > (0.5 if "attn" in name else 0.8) * width:
            continue
        v = vt[:k].T
        weight = linear.weight.detach().double().numpy().T
        bias = linear.bias.detach().double().numpy() if linear.bias is not None else 0.0
        merged = nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            merged.weight.copy_(torch.from_numpy((weight @ v @ v.T).T))
            merged.bias.copy_(torch.from_numpy(mean + (bias - mean) @ v @ v.T))
        model.set_submodule(f"model.encoder.{name}", merged)
        ranks[name.removeprefix("layers.")] = k
    return ranks


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_the_ranks_and_outputs_of_the_published_algorithm(
    make_recognizer: MakeRecognizer, clips: ClipSource, preset: str
) -> None:
    recognizer = make_recognizer(128, heads=4)
    features = each_window(recognizer, clips)
    reference = copy.deepcopy(recognizer.model)
    expected = published_algorithm(reference, stored_outputs(reference, features), preset)
    notes = apply(recognizer, clips, preset=preset, outlier_share=None)
    found = {
        f"{index}.{name}": rank for index, layer in enumerate(ranks_of(recognizer)) for name, rank in layer.items()
    }
    assert found == expected
    assert len(set(expected.values())) >= 3  # or the thresholds would not have been put to the test
    assert (len(expected) < 12) == (preset == "quality")
    assert notes[0] == f"{len(expected)} linears factored, {12 - len(expected)} left whole"
    output = encoded(recognizer.model, features)
    assert difference(encoded(reference.double(), features.double()), output) < 1e-4
    original = encoded(make_recognizer(128, heads=4).model, features)
    assert 1e-3 < difference(original, output) < 0.1  # compressed, and not beyond recognition


def test_large_v3_at_the_published_ranks_has_the_published_size() -> None:
    """Rank over output dimension of q, k, v, out, fc1, fc2 in each layer of large-v3, `efficiency` (LiteASR, Fig. 6).

    Ranks are multiples of 16 and the figure gives two decimals, so a rank is taken as the multiple nearest to the
    printed share: of 1280 dimensions one multiple at most rounds to it, of fc1's 5120 three neighbours do (0.3 %).
    An fc2 above 0.80 is one that the rule of what saves left whole; the figure prints the rank it would have had.
    """
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config_of("large-v3", decoder_layers=1))
    assert count_parameters(model).encoder == pytest.approx(635e6, abs=0.5e6)
    stack = get_architecture("whisper").stack("encoder")
    rows = np.array(FIGURE_6.split(), dtype=float).reshape(32, 6)
    for index, row in enumerate(rows):
        for linear, share in zip(stack.linears(), row, strict=True):
            inputs, outputs = stack.linear_shape(linear, stack.dimensions(model.config))
            if share > 0.80:
                continue
            rank = 16 * round(share * outputs / 16)
            with torch.device("meta"):
                first, second, bias = torch.empty(rank, inputs), torch.empty(outputs, rank), torch.empty(outputs)
            factor(model, stack, index, linear, first, second, bias)
    assert sum(isinstance(module, FactoredLinear) for module in model.modules()) == 32 * 6 - 4
    assert count_parameters(model).encoder == pytest.approx(308e6, abs=2e6)


# What a user may say


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": 1.0}, "attention must be between 0 and 1, found 1.0"),
        ({"mlp": 0.0}, "mlp must be between 0 and 1, found 0.0"),
        ({"parameters": 50}, "parameters must be between 0 and 1, found 50"),
        ({"outlier_share": -0.1}, "outlier_share must be between 0 and 1"),
        ({"preset": "quality", "parameters": 0.5}, "thresholds .* or one budget, not both"),
        ({"mlp": 0.99, "flops": 0.5}, "thresholds .* or one budget, not both"),
        ({"parameters": 0.5, "flops": 0.5}, "thresholds .* or one budget, not both"),
        ({"preset": "quality", "attention": 0.99}, "a preset or thresholds of its own, not both"),
        ({"rank_multiple": 0}, "rank_multiple must be at least 1, found 0"),
        ({"parameters": 0.5, "stacks": ("encoder", "decoder")}, "a budget is for the encoder; use thresholds"),
        ({"stacks": ()}, "stacks must name encoder, decoder or both"),
        ({"ridge": -1.0}, "ridge must not be negative, found -1.0"),
        ({"sequential": True, "basis": "weights"}, "leave out one of sequential and basis: weights"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        LowRank(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "balansed"}, r"steps\[0\].low_rank.preset: 'balansed' is not one of quality, balanced, efficiency"),
        ({"presett": "balanced"}, r"steps\[0\].low_rank: unknown key 'presett'; did you mean 'preset'\?"),
        (
            {"stacks": ["encoder", "decodr"]},
            r"steps\[0\].low_rank.stacks\[1\]: 'decodr' is not one of encoder, decoder",
        ),
        ({"attention": 99}, r"steps\[0\].low_rank: attention must be between 0 and 1, found 99"),
    ],
)
def test_a_recipe_with_a_slip_names_the_place_and_the_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        parse(LowRank, settings, "steps[0].low_rank")


def test_thresholds_have_defaults() -> None:
    assert LowRank().thresholds == (0.99, 0.999)
    assert LowRank(preset="efficiency").thresholds == (0.99, 0.995)
    assert LowRank(mlp=0.9).thresholds == (0.99, 0.9)
    assert LowRank(parameters=0.5).thresholds is None
    assert methods.parse({"low_rank": {"attention": 0.9}}, "steps[0]") == LowRank(attention=0.9)


def test_without_calibration_clips_there_is_nothing_to_go_by(make_recognizer: MakeRecognizer) -> None:
    with pytest.raises(SottoError, match=r"needs calibration clips; give data\.calibration"):
        apply(make_recognizer(), None)


# Budgets


@pytest.mark.parametrize("weighting", ["relative", "sensitivity"])
@pytest.mark.parametrize("share", [0.45, 0.75])
@pytest.mark.parametrize("kind", ["parameters", "flops"])
def test_a_budget_is_kept_and_used_up(
    make_recognizer: MakeRecognizer, clips: ClipSource, kind: str, share: float, weighting: str
) -> None:
    def cost(recognizer: Recognizer) -> int:
        return count_parameters(recognizer.model).encoder if kind == "parameters" else encoder_flops(recognizer.model)

    recognizer = make_recognizer(128, heads=4)
    before = cost(recognizer)
    apply(recognizer, clips, **{kind: share}, weighting=weighting, reduced_attention=False)
    step = 16 * (128 + 512) * (1 if kind == "parameters" else 2 * 50)  # the largest step from one rank to the next
    assert share * before - step < cost(recognizer) <= share * before


def test_a_budget_that_cannot_be_met_says_what_can(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    for kind in ("parameters", "flops"):
        with pytest.raises(
            SottoError, match=r"the budget 0\.05 cannot be met .* that can be left is 0\.\d\d$"
        ) as error:
            apply(make_recognizer(128), clips, **{kind: 0.05}, weighting="relative")
        least = re.findall(r"0\.\d\d$", str(error.value))[0]
        recognizer = make_recognizer(128)
        apply(recognizer, clips, **{kind: float(least)}, weighting="relative")
        assert all(set(layer.values()) == {16} for layer in ranks_of(recognizer))
        with pytest.raises(SottoError):
            apply(make_recognizer(128), clips, **{kind: float(least) - 0.01}, weighting="relative")


@pytest.mark.parametrize("weighting", ["relative", "sensitivity"])
def test_a_linear_that_gives_nothing_gets_the_least_rank(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """And no share of nothing is taken, which would be no number and spoil the order of all others."""
    recognizer = make_recognizer(128)
    nn.init.zeros_(recognizer.model.get_parameter("model.encoder.layers.0.fc2.weight"))
    errors: list[float] = []

    def heard(curves: list[Curve], budget: float) -> list[int] | None:
        errors.extend(error for curve in curves for error in curve.errors)
        return allocate(curves, budget)

    monkeypatch.setattr(budget_costs, "allocate", heard)
    apply(recognizer, clips, parameters=0.6, weighting=weighting)
    assert np.isfinite(errors).all()
    ranks = ranks_of(recognizer)
    assert ranks[0]["fc2"] == 16
    assert max(max(layer.values()) for layer in ranks) > 16


def test_a_budget_keeps_more_of_what_the_model_heeds(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    """A layer whose outputs hardly change the transcript is cut first by sensitivity, by variance it cannot tell."""
    recognizer = make_recognizer(128)
    for name in ("self_attn.out_proj", "fc2"):
        for kind in ("weight", "bias"):
            recognizer.model.get_parameter(f"model.encoder.layers.0.{name}.{kind}").data.mul_(1e-3)
    totals = {}
    for weighting in ("relative", "sensitivity"):
        chosen = copy.deepcopy(recognizer)
        apply(chosen, clips, parameters=0.6, weighting=weighting)
        totals[weighting] = [
            sum(layer.get(name, 128) for name in ("self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"))
            for layer in ranks_of(chosen)
        ]
    assert totals["sensitivity"][0] < totals["relative"][0]
    assert totals["sensitivity"][0] == 4 * 16


# Models


def test_reduced_attention_computes_the_same_for_less(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    settings = {"attention": 0.9, "mlp": 0.999, "outlier_share": None}
    reduced, expanded = make_recognizer(64, heads=1), make_recognizer(64, heads=1)
    features = each_window(reduced, clips)
    notes = apply(reduced, clips, **settings)
    apply(expanded, clips, **settings, reduced_attention=False)
    count = sum(isinstance(module, ReducedAttention) for module in reduced.model.modules())
    assert count == sum(len(layer.reduced) for layer in reduced.structure.stacks["encoder"].layers) > 0
    assert notes[1] == f"attention of {count} layers computed in the reduced dimension"
    assert not any(isinstance(module, ReducedAttention) for module in expanded.model.modules())
    assert ranks_of(reduced) == ranks_of(expanded)
    assert difference(encoded(expanded.model, features), encoded(reduced.model, features)) < 1e-5
    assert encoder_flops(reduced.model) < encoder_flops(expanded.model)


def test_the_decoder_can_be_factored_too(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer(64)
    features = each_window(recognizer, clips)
    tokens = torch.arange(10).repeat(len(features), 1)
    with torch.no_grad():
        expected = recognizer.model(input_features=features, decoder_input_ids=tokens).logits
        apply(recognizer, clips, attention=0.99, mlp=0.99, stacks=("encoder", "decoder"))
        found = recognizer.model(input_features=features, decoder_input_ids=tokens).logits
    assert sum(map(len, ranks_of(recognizer, "decoder"))) > 5
    assert 1e-4 < difference(expected, found) < 0.5
    assert recognizer.model.generate(features[:1], max_new_tokens=5).shape[1] > 0
    alone = make_recognizer(64)
    apply(alone, clips, stacks=("decoder",))
    assert not any(ranks_of(alone))
    assert any(ranks_of(alone, "decoder"))


@pytest.mark.parametrize(
    "second",
    [
        {"preset": "quality"},
        {"attention": 0.97, "mlp": 0.97},
        {"parameters": 0.9},
        {"flops": 0.9, "weighting": "relative"},
        {"attention": 0.97, "mlp": 0.97, "sequential": True},
        {"attention": 0.97, "mlp": 0.97, "basis": "weights"},
    ],
    ids=str,
)
def test_a_second_time_never_makes_a_model_larger(
    make_recognizer: MakeRecognizer, clips: ClipSource, second: dict[str, Any]
) -> None:
    """Whatever the first step left: reduced attention, ranks that are no multiple of 16, linears still whole."""
    recognizer = make_recognizer(64, heads=1)
    features = each_window(recognizer, clips)
    apply(recognizer, clips, attention=0.99, mlp=0.999, outlier_share=None, rank_multiple=6)
    assert any(isinstance(module, ReducedAttention) for module in recognizer.model.modules())
    once, before = encoded(recognizer.model, features), count_parameters(recognizer.model).encoder
    ranks = ranks_of(recognizer)
    apply(recognizer, clips, **second, rank_multiple=4)
    assert count_parameters(recognizer.model).encoder <= before
    for old, new in zip(ranks, ranks_of(recognizer), strict=True):
        assert all(new[name] <= rank for name, rank in old.items())
    assert difference(once, encoded(recognizer.model, features)) < (0.6 if "basis" in second else 0.2)


def test_the_naive_basis_is_blind_to_the_audio(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    original = make_recognizer(128, heads=4)
    features = each_window(original, clips)
    expected = encoded(original.model, features)
    errors = {}
    for basis in ("activations", "weights"):
        recognizer = make_recognizer(128, heads=4)
        apply(recognizer, clips, preset="balanced", basis=basis, reduced_attention=False)
        errors[basis] = difference(expected, encoded(recognizer.model, features))
    assert errors["weights"] > 3 * errors["activations"]
    layer = recognizer.model.get_submodule("model.encoder.layers.0")
    u, s, vt = torch.linalg.svd(original.model.get_parameter("model.encoder.layers.0.fc1.weight"), full_matrices=False)
    k = layer.fc1.rank
    torch.testing.assert_close(layer.fc1.weight, (u[:, :k] * s[:k]) @ vt[:k], rtol=1e-4, atol=1e-5)


def test_half_precision_stays_half_precision(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer()
    recognizer.model.bfloat16()
    features = each_window(recognizer, clips)
    expected = encoded(recognizer.model, features)
    apply(recognizer, clips, attention=0.999, mlp=0.999, rank_multiple=1)
    assert any(ranks_of(recognizer))
    assert {parameter.dtype for parameter in recognizer.model.parameters()} == {torch.bfloat16}
    assert difference(expected, encoded(recognizer.model, features)) < 0.1
