"""Head reduction on models: scores and outputs by truncated SVDs, what it costs, slips of users."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_whisper import MakeRecognizer, difference, each_window, encoded
from small_whisper import apply as apply_low_rank

from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.head_reduction_math import Balance, HeadBases
from sotto.layers import FactoredLinear, ReducedAttention
from sotto.methods import HeadReduction, StepContext, methods
from sotto.methods.head_costs import head_costs
from sotto.methods.head_dimensions import by_threshold
from sotto.methods.head_narrowing import attentions_of, measured_bases, narrow
from sotto.methods.head_reduction import apply_head_reduction
from sotto.metrics.cost import count_parameters, encoder_flops
from sotto.surgery import gather_inputs, keep_heads, narrow_heads

WIDTH, HEADS, CHANNELS, LAYERS = 32, 2, 16, 2
POSITIONS = 50


def apply(recognizer: Recognizer, clips: ClipSource | None, **settings: Any) -> list[str]:
    return apply_head_reduction(recognizer, HeadReduction(**settings), StepContext(Path(), calibration=clips))


def head_dims(recognizer: Recognizer, stack: str = "encoder") -> list[dict[str, int]]:
    """What each layer's record says; the modules must agree."""
    layers = [dict(layer.head_dims) for layer in recognizer.structure.stacks[stack].layers]
    for layer, module in zip(layers, recognizer.model.get_submodule(f"model.{stack}.layers"), strict=True):
        for name in ("self_attn", "encoder_attn"):
            attention = getattr(module, name, None)
            if attention is not None:
                assert attention.head_dim == layer.get(name, attention.embed_dim // HEADS)
                assert attention.v_proj.out_features == attention.num_heads * attention.head_dim
    return layers


def heads_of(recognizer: Recognizer, features: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
    """Queries, keys, values and output columns of a layer's attention, (heads, rows, channels), and its output bias."""
    attention = recognizer.model.model.encoder.layers[layer].self_attn
    found = {}
    names = ("q_proj", "k_proj", "v_proj")
    handles = [
        getattr(attention, name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output.flatten(0, -2)})
        )
        for name in names
    ]
    encoded(recognizer.model, features)
    for handle in handles:
        handle.remove()
    found["out_proj"] = attention.out_proj.weight.detach()
    by_head = {name: rows.double().view(len(rows), HEADS, -1).transpose(0, 1) for name, rows in found.items()}
    return by_head | {"bias": attention.out_proj.bias.detach().double()}


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[..., :rank] * values[..., None, :rank] @ v[..., :rank, :]


def test_heads_keep_the_best_scores_and_outputs_of_their_dimension(
    make_recognizer: MakeRecognizer, clips: ClipSource
) -> None:
    """Of the first layer, whose inputs stay what they are; over all pairs of all positions of all windows."""
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    features = each_window(recognizer, clips)
    before = heads_of(recognizer, features, 0)
    notes = apply(recognizer, clips, head_dim=3)
    after = heads_of(recognizer, features, 0)
    assert notes == ["encoder: heads with 3, 3 of 16 channels"]
    assert head_dims(recognizer) == [{"self_attn": 3}] * LAYERS

    def scores(found: dict[str, torch.Tensor]) -> torch.Tensor:
        keys = found["k_proj"] - found["k_proj"].mean(1, keepdim=True)
        return found["q_proj"] @ keys.mT

    expected = best(scores(before), 3)
    assert difference(scores(before), expected) > 0.05
    assert difference(expected, scores(after)) < 1e-3
    mean = before["v_proj"].mean(1, keepdim=True)
    spoken = best((before["v_proj"] - mean) @ before["out_proj"].mT, 3) + mean @ before["out_proj"].mT
    found = after["v_proj"] @ after["out_proj"].mT
    assert difference(spoken.sum(0) + before["bias"], found.sum(0) + after["bias"]) < 1e-3


def test_all_channels_change_nothing(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    """In another basis, the encoder computes the same, and so does the decoder."""
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    features = each_window(recognizer, clips)
    tokens = torch.arange(10).repeat(len(features), 1)
    with torch.no_grad():
        expected = recognizer.model(input_features=features, decoder_input_ids=tokens).logits
        stacks = ("encoder", "decoder")
        places = attentions_of(recognizer, stacks)
        assert len(places) == 3 * LAYERS
        bases = measured_bases(recognizer, places, clips, stacks)
        narrow(recognizer, dict.fromkeys(places, CHANNELS), bases)
        found = recognizer.model(input_features=features, decoder_input_ids=tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_more_channels_are_nearer(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    original = make_recognizer(WIDTH, LAYERS, HEADS)
    features = each_window(original, clips)
    moved = []
    for channels in (2, 6, 10, 14):
        recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
        apply(recognizer, clips, head_dim=channels)
        moved.append(difference(encoded(original.model, features), encoded(recognizer.model, features)))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.05


def test_it_costs_what_narrower_heads_cost(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    flops, weights = encoder_flops(recognizer.model), count_parameters(recognizer.model).encoder
    apply(recognizer, clips, head_dim=6)
    gone = LAYERS * HEADS * (CHANNELS - 6)
    assert flops - encoder_flops(recognizer.model) == gone * (4 * 2 * POSITIONS * WIDTH + 2 * 2 * POSITIONS**2)
    assert weights - count_parameters(recognizer.model).encoder == gone * (4 * WIDTH + 2)  # and two biases


def test_it_is_saved_and_opened_and_decodes(make_recognizer: MakeRecognizer, clips: ClipSource, tmp_path: Path) -> None:
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    features = each_window(recognizer, clips)
    apply(recognizer, clips, head_dim=6, stacks=("encoder", "decoder"))
    assert head_dims(recognizer, "decoder") == [{"self_attn": 6, "encoder_attn": 6}] * LAYERS
    loaded = load(recognizer.save(tmp_path / "narrow"), device="cpu")
    assert loaded.structure == recognizer.structure
    assert head_dims(loaded) == [{"self_attn": 6}] * LAYERS
    assert torch.equal(encoded(loaded.model, features), encoded(recognizer.model, features))
    said, again = (each.model.generate(features, max_new_tokens=8) for each in (recognizer, loaded))
    assert torch.equal(said, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_precision(make_recognizer: MakeRecognizer, clips: ClipSource, dtype: torch.dtype) -> None:
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    recognizer.model.to(dtype)
    apply(recognizer, clips, head_dim=6)
    assert {weight.dtype for weight in recognizer.model.parameters()} == {dtype}


# With other methods


def test_fewer_heads_then_narrower_ones_then_low_rank(
    make_recognizer: MakeRecognizer, clips: ClipSource, tmp_path: Path
) -> None:
    recognizer = make_recognizer(64, LAYERS, 4)
    features = each_window(recognizer, clips)
    (stack, index, attention) = attentions_of(recognizer, ("encoder",))[0]
    keep_heads(recognizer.model, stack, index, attention, (0, 2))
    fewer = encoded(recognizer.model, features)
    apply(recognizer, clips, head_dim=12)
    narrower = encoded(recognizer.model, features)
    assert 1e-4 < difference(fewer, narrower) < 0.2
    apply_low_rank(recognizer, clips, attention=0.98, mlp=0.98, reduced_attention=False)
    layer = recognizer.structure.layer("encoder", 0)
    assert (layer.heads, layer.head_dims) == ({"self_attn": (0, 2)}, {"self_attn": 12})
    assert "fc1" in layer.ranks
    assert recognizer.model.model.encoder.layers[0].self_attn.out_proj.in_features == 2 * 12
    assert 1e-4 < difference(narrower, encoded(recognizer.model, features)) < 0.5
    loaded = load(recognizer.save(tmp_path / "all"), device="cpu")
    assert difference(encoded(recognizer.model, features), encoded(loaded.model, features)) < 1e-6


def test_factored_and_reduced_attention_is_narrowed(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    """Its factors stay, and it is no longer computed in the reduced dimension."""
    recognizer = make_recognizer(64, LAYERS, 1)
    features = each_window(recognizer, clips)
    apply_low_rank(recognizer, clips, attention=0.9, mlp=0.999, outlier_share=None)
    attention = recognizer.model.model.encoder.layers[0].self_attn
    assert isinstance(attention, ReducedAttention)
    rank, before = attention.v_proj.rank, encoded(recognizer.model, features)
    apply(recognizer, clips, head_dim=48)
    attention = recognizer.model.model.encoder.layers[0].self_attn
    assert not isinstance(attention, ReducedAttention)
    assert isinstance(attention.v_proj, FactoredLinear)
    assert (attention.v_proj.rank, attention.v_proj.out_features, attention.head_dim) == (rank, 48, 48)
    assert difference(before, encoded(recognizer.model, features)) < 0.01
    apply_low_rank(recognizer, clips, attention=0.9, mlp=0.999, outlier_share=None)
    assert isinstance(recognizer.model.model.encoder.layers[0].self_attn, ReducedAttention)


def test_gathered_inputs_are_restored(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer(WIDTH, LAYERS, HEADS)
    (stack, index, attention) = attentions_of(recognizer, ("encoder",))[0]
    gather_inputs(recognizer.model, stack, index, attention.projections[0], list(range(20)))
    features = each_window(recognizer, clips)
    before = encoded(recognizer.model, features)
    apply(recognizer, clips, head_dim=15)
    assert recognizer.structure.layer("encoder", 0).inputs == {}
    assert difference(before, encoded(recognizer.model, features)) < 0.02


# What is chosen


def test_thresholds_are_of_the_poorer_side() -> None:
    def balance(*energies: float) -> Balance:
        nothing = torch.zeros(1, 4, 4)
        return Balance(nothing, nothing, torch.tensor([energies]))

    places: list[Any] = ["scores", "outputs", "neither"]
    even, steep = balance(1.0, 1.0, 1.0, 1.0), balance(97.0, 1.0, 1.0, 1.0)
    mean = torch.zeros(1, 4)
    bases = dict(
        zip(
            places,
            (HeadBases(even, steep, mean), HeadBases(steep, even, mean), HeadBases(steep, steep, mean)),
            strict=True,
        )
    )
    choices = dict.fromkeys(places, range(1, 4))
    assert by_threshold(0.7, choices, bases) == {"scores": 3, "outputs": 3, "neither": 1}
    assert by_threshold(0.75, choices, bases) == {"neither": 1}
    assert by_threshold(0.98, choices, bases) == {"neither": 3}


def test_a_threshold_leads_to_multiples(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    chosen = []
    for threshold in (0.8, 0.95):
        recognizer = make_recognizer(64, LAYERS, HEADS)
        apply(recognizer, clips, threshold=threshold, multiple=2)
        chosen.append([layer.get("self_attn", 32) for layer in head_dims(recognizer)])
    assert all(few < more for few, more in zip(*chosen, strict=True))
    assert not any(channels % 2 for each in chosen for channels in each)


def cost(recognizer: Recognizer, kind: str) -> int:
    return count_parameters(recognizer.model).encoder if kind == "parameters" else encoder_flops(recognizer.model)


@pytest.mark.parametrize("kind", ["parameters", "flops"])
def test_a_budget_is_kept_and_used_up(make_recognizer: MakeRecognizer, clips: ClipSource, kind: str) -> None:
    recognizer = make_recognizer(64, LAYERS, HEADS)
    before = cost(recognizer, kind)
    apply(recognizer, clips, **{kind: 0.95}, multiple=8)
    step = 8 * HEADS * (4 * 64 + 2 if kind == "parameters" else 4 * 2 * POSITIONS * 64 + 4 * POSITIONS**2)
    assert 0.95 * before - step < cost(recognizer, kind) <= 0.95 * before


@pytest.mark.parametrize("kind", ["parameters", "flops"])
@pytest.mark.parametrize("factored", [False, True], ids=["whole", "factored"])
def test_a_channel_costs_what_goes_with_it(
    make_recognizer: MakeRecognizer, clips: ClipSource, kind: str, factored: bool
) -> None:
    recognizer = make_recognizer(64, LAYERS, HEADS)
    if factored:
        apply_low_rank(recognizer, clips, attention=0.9, mlp=0.999, reduced_attention=False)
        assert len(recognizer.structure.layer("encoder", 0).ranks) >= 4
    before = cost(recognizer, kind)
    place = attentions_of(recognizer, ("encoder",))[0]
    costs = head_costs(recognizer, HeadReduction(**{kind: 0.9}), {place: [20]})
    narrow_heads(recognizer.model, *place, 20)
    assert costs.total == before
    assert before * costs.left({place: 20}) == pytest.approx(cost(recognizer, kind), rel=1e-9)


def test_a_budget_narrows_the_heads_that_are_missed_least(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    recognizer = make_recognizer(64, LAYERS, HEADS)
    for kind in ("weight", "bias"):
        recognizer.model.get_parameter(f"model.encoder.layers.1.self_attn.out_proj.{kind}").data.mul_(1e-3)
    apply(recognizer, clips, flops=0.93, multiple=8)
    first, second = (layer.get("self_attn", 32) for layer in head_dims(recognizer))
    assert second < first == 32


def test_a_budget_that_cannot_be_met_says_what_can(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    for kind in ("parameters", "flops"):
        with pytest.raises(
            SottoError, match=r"0\.2 cannot be met by head_reduction: the least that can be left is"
        ) as error:
            apply(make_recognizer(64), clips, **{kind: 0.2}, multiple=16)
        least = re.findall(r"left is (0\.\d\d)", str(error.value))[0]
        recognizer = make_recognizer(64)
        apply(recognizer, clips, **{kind: float(least)}, multiple=16)
        assert head_dims(recognizer) == [{"self_attn": 16}] * LAYERS


# What a user may say


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "head_reduction takes one of head_dim, threshold, parameters, flops, time$"),
        ({"head_dim": 32, "flops": 0.9}, "head_reduction takes one of head_dim, threshold, parameters, flops, time$"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, found 1.0"),
        ({"flops": 90}, "flops must be between 0 and 1, found 90"),
        ({"parameters": 0.0}, "parameters must be between 0 and 1, found 0.0"),
        ({"head_dim": 0}, "head_dim must be at least 1, found 0"),
        ({"threshold": 0.9, "multiple": 0}, "multiple must be at least 1, found 0"),
        ({"flops": 0.9, "stacks": ("decoder",)}, "a budget is for the encoder; use head_dim or threshold"),
        ({"head_dim": 8, "stacks": ()}, "stacks must name encoder, decoder or both"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        HeadReduction(**settings)


def test_a_recipe_names_it() -> None:
    assert methods.parse({"head_reduction": {"threshold": 0.99}}, "steps[0]") == HeadReduction(threshold=0.99)
    with pytest.raises(
        SottoError, match=r"steps\[0\].head_reduction: unknown key 'head_dims'; did you mean 'head_dim'"
    ):
        methods.parse({"head_reduction": {"head_dims": 48}}, "steps[0]")


def test_what_it_cannot_do_is_said(make_recognizer: MakeRecognizer, clips: ClipSource) -> None:
    with pytest.raises(SottoError, match=r"head_reduction needs calibration clips; give data\.calibration"):
        apply(make_recognizer(), None, head_dim=8)
    with pytest.raises(SottoError, match="no head has more than 16 channels"):
        apply(make_recognizer(WIDTH, LAYERS, HEADS), clips, head_dim=16)
    with pytest.raises(SottoError, match="no head has more than 16 channels; give a smaller multiple"):
        apply(make_recognizer(WIDTH, LAYERS, HEADS), clips, threshold=0.9, multiple=16)
    for architecture in ("parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary"):
        with pytest.raises(
            SottoError, match=f"attention of a {architecture} has relative or rotary positions, .*; use low_rank$"
        ):
            apply(of_architecture(architecture), clips, head_dim=2)
