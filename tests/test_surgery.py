import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import WhisperForConditionalGeneration

from recognizers import recognizer as of_architecture
from sotto.architectures.whisper import WHISPER
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.layers import FactoredLinear, ReducedAttention
from sotto.structure import LayerStructure, check, dense_structure
from sotto.surgery import (
    apply_structure,
    expand_attention,
    factor,
    get_linear,
    keep_heads,
    keep_layers,
    layer_path,
    merge,
    narrow_ffn,
    narrow_heads,
    reduce_attention,
    structure_of,
)

ENCODER, DECODER = WHISPER.stacks
SELF = ENCODER.attentions[0]
FFN = ENCODER.feed_forwards[0]
LAYER = 1
HEAD_DIM = 4


def factor_at_random(model: nn.Module, stack: Any, index: int, linear: str, rank: int, seed: int = 0) -> None:
    old = get_linear(model, stack, index, linear)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, old.in_features), (old.out_features, rank), (old.out_features,))
    factor(model, stack, index, linear, *(0.4 * torch.randn(shape, generator=generator) for shape in shapes))


def bring_into_form(model: nn.Module, stack: Any, form: str) -> None:
    """Factor every linear of the layer, and reduce its attention, as `form` says."""
    if form != "plain":
        for seed, name in enumerate(stack.linears()):
            factor_at_random(model, stack, LAYER, name, 5 + seed % 3, seed)
    if form == "reduced":
        reduce_attention(model, stack, LAYER, SELF)


def silence_inputs(linear: Any, channels: Sequence[int]) -> None:
    first = linear.first if isinstance(linear, FactoredLinear) else linear
    with torch.no_grad():
        first.weight[:, list(channels)] = 0


def silence_outputs(linear: Any, channels: Sequence[int]) -> None:
    last = linear.second if isinstance(linear, FactoredLinear) else linear
    with torch.no_grad():
        last.weight[list(channels)] = 0
        last.bias[list(channels)] = 0


class Skipped(nn.Module):
    """Stands in for a layer that is gone."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def features() -> torch.Tensor:
    return torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(3))


def assert_equal_but_not_to(found: torch.Tensor, expected: torch.Tensor, before: torch.Tensor) -> None:
    assert (expected - before).abs().max() > 1e-2  # what was taken away was heard
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stack", "attention", "form"),
    [
        (ENCODER, SELF, "plain"),
        (ENCODER, SELF, "factored"),
        (ENCODER, SELF, "reduced"),
        (DECODER, DECODER.attentions[0], "plain"),
        (DECODER, DECODER.attentions[0], "factored"),
        (DECODER, DECODER.attentions[1], "plain"),
        (DECODER, DECODER.attentions[1], "factored"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_dropped_heads_are_as_silenced_ones(
    stack: Any, attention: Any, form: str, recognizer: Recognizer, logits: Any
) -> None:
    model = recognizer.model
    bring_into_form(model, stack, form)
    before = logits(model)
    silenced = copy.deepcopy(model)
    channels = [head * HEAD_DIM + channel for head in (0, 2) for channel in range(HEAD_DIM)]
    silence_inputs(get_linear(silenced, stack, LAYER, attention.projections[3]), channels)

    keep_heads(model, stack, LAYER, attention, (1, 3))

    assert_equal_but_not_to(logits(model), logits(silenced), before)
    assert model.get_submodule(layer_path(stack, LAYER, attention.name)).num_heads == 2
    assert structure_of(model).layer(stack.name, LAYER).heads == {attention.name: (1, 3)}
    assert structure_of(model).layer(stack.name, 0) == LayerStructure(0)


@pytest.mark.parametrize(
    ("stack", "attention", "form"),
    [
        (ENCODER, SELF, "plain"),
        (ENCODER, SELF, "factored"),
        (ENCODER, SELF, "reduced"),
        (DECODER, DECODER.attentions[0], "plain"),
        (DECODER, DECODER.attentions[1], "factored"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (1, 3)], ids=["all heads", "two heads"])
def test_dropped_channels_of_heads_are_as_silenced_ones(
    stack: Any, attention: Any, form: str, heads: tuple[int, ...], recognizer: Recognizer, logits: Any
) -> None:
    model = recognizer.model
    bring_into_form(model, stack, form)
    keep_heads(model, stack, LAYER, attention, heads)
    before = logits(model)
    silenced = copy.deepcopy(model)
    channels = [head * HEAD_DIM + channel for head in range(len(heads)) for channel in (1, 2, 3)]
    silence_outputs(get_linear(silenced, stack, LAYER, attention.projections[0]), channels)
    silence_inputs(get_linear(silenced, stack, LAYER, attention.projections[3]), channels)

    narrow_heads(model, stack, LAYER, attention, 2)
    narrow_heads(model, stack, LAYER, attention, 1)

    assert_equal_but_not_to(logits(model), logits(silenced), before)
    expand_attention(model, stack, LAYER, attention)
    assert_equal_but_not_to(logits(model), logits(silenced), before)
    assert get_linear(model, stack, LAYER, attention.projections[1]).out_features == len(heads)
    assert structure_of(model).layer(stack.name, LAYER).head_dims == {attention.name: 1}
    keep_heads(model, stack, LAYER, attention, (0,))
    assert get_linear(model, stack, LAYER, attention.projections[3]).in_features == 1
    assert structure_of(model).layer(stack.name, LAYER).heads == {attention.name: heads[:1]}


def test_narrower_heads_decode_with_any_cache(recognizer: Recognizer) -> None:
    model = recognizer.model
    narrow_heads(model, DECODER, 0, DECODER.attentions[0], 3)
    narrow_heads(model, DECODER, LAYER, DECODER.attentions[1], 1)

    def said(**settings: Any) -> list[int]:
        torch.manual_seed(0)
        return model.generate(  # type: ignore[no-any-return]
            features(), temperature=1.0, max_new_tokens=12, min_new_tokens=12, **settings
        )[0].tolist()

    plain = said(use_cache=False)
    assert len(set(plain)) > 6
    assert said(use_cache=True) == plain
    assert said(cache_implementation="static") == plain


def test_heads_that_cannot_be_narrowed(recognizer: Recognizer) -> None:
    narrow_heads(recognizer.model, ENCODER, LAYER, SELF, 3)
    for head_dim in (0, 4):
        with pytest.raises(
            SottoError,
            match=f"^model.encoder.layers.1.self_attn: its heads have 3 channels; {head_dim} cannot be kept$",
        ):
            narrow_heads(recognizer.model, ENCODER, LAYER, SELF, head_dim)
    parakeet = of_architecture("parakeet")
    stack = parakeet.architecture.stack("encoder")
    with pytest.raises(SottoError, match="relative or rotary positions cannot have narrower heads"):
        narrow_heads(parakeet.model, stack, 0, stack.attentions[0], 1)


@pytest.mark.parametrize("stack", [ENCODER, DECODER], ids=lambda stack: stack.name)
@pytest.mark.parametrize("form", ["plain", "factored"])
def test_dropped_neurons_are_as_silenced_ones(stack: Any, form: str, recognizer: Recognizer, logits: Any) -> None:
    model = recognizer.model
    bring_into_form(model, stack, form)
    before = logits(model)
    silenced = copy.deepcopy(model)
    kept = [0, 3, 4, 11, 23]
    silence_inputs(get_linear(silenced, stack, LAYER, FFN.down), sorted(set(range(24)) - set(kept)))

    narrow_ffn(model, stack, LAYER, FFN, kept)

    assert_equal_but_not_to(logits(model), logits(silenced), before)
    assert get_linear(model, stack, LAYER, FFN.up).out_features == 5
    assert structure_of(model).layer(stack.name, LAYER).ffn_widths == {"ffn": 5}


@pytest.mark.parametrize("stack", [ENCODER, DECODER], ids=lambda stack: stack.name)
def test_dropped_layers_are_as_skipped_ones(stack: Any, recognizer: Recognizer, logits: Any) -> None:
    model = recognizer.model
    before = logits(model)
    skipping = copy.deepcopy(model)
    skipping.set_submodule(layer_path(stack, 1), Skipped())

    keep_layers(model, stack, (0, 2))

    assert_equal_but_not_to(logits(model), logits(skipping), before)
    assert stack.dimensions(model.config).layers == 2
    assert [layer.base_layer for layer in structure_of(model).stacks[stack.name].layers] == [0, 2]
    assert structure_of(model).stacks[stack.name].base_layers == 3


def test_the_cache_is_indexed_by_the_layers_that_are_left(recognizer: Recognizer) -> None:
    model = recognizer.model
    keep_layers(model, DECODER, (0, 2))
    keep_layers(model, ENCODER, (2,))
    for position, layer in enumerate(model.model.decoder.layers):
        assert (layer.self_attn.layer_idx, layer.encoder_attn.layer_idx) == (position, position)

    def said(**settings: Any) -> list[int]:
        torch.manual_seed(0)
        tokens: list[int] = model.generate(
            features(), temperature=1.0, max_new_tokens=12, min_new_tokens=12, **settings
        )[0].tolist()
        return tokens

    plain = said(use_cache=False)
    assert len(set(plain)) > 6
    assert said(use_cache=True) == plain
    assert said(cache_implementation="static") == plain


def test_heads_are_recorded_by_their_number_in_the_base(recognizer: Recognizer) -> None:
    model = recognizer.model
    keep_heads(model, ENCODER, LAYER, SELF, (0, 2, 3))
    keep_heads(model, ENCODER, LAYER, SELF, (1, 2))
    assert structure_of(model).layer("encoder", LAYER).heads == {"self_attn": (2, 3)}
    keep_layers(model, ENCODER, (1, 2))
    keep_layers(model, ENCODER, (0,))
    assert structure_of(model).stacks["encoder"].layers == (LayerStructure(1, heads={"self_attn": (2, 3)}),)


def test_alignment_heads_follow_layers_and_heads(recognizer: Recognizer) -> None:
    model = recognizer.model
    cross = DECODER.attentions[1]
    model.generation_config.alignment_heads = [[0, 1], [1, 0], [1, 3], [2, 2]]
    keep_heads(model, DECODER, 1, DECODER.attentions[0], (0,))
    keep_layers(model, ENCODER, (0, 2))
    keep_heads(model, ENCODER, 0, SELF, (3,))
    assert model.generation_config.alignment_heads == [[0, 1], [1, 0], [1, 3], [2, 2]]
    keep_heads(model, DECODER, 1, cross, (2, 3))
    assert model.generation_config.alignment_heads == [[0, 1], [1, 1], [2, 2]]
    keep_layers(model, DECODER, (1, 2))
    assert model.generation_config.alignment_heads == [[0, 1], [1, 2]]
    timed = model.generate(features(), return_timestamps=True, return_token_timestamps=True, max_new_tokens=8)
    times = timed["token_timestamps"]
    assert times.shape == timed["sequences"].shape
    assert 0 <= times.min() <= times.max() <= 1.0 + 1e-6
    keep_heads(model, DECODER, 1, cross, (0,))
    keep_layers(model, DECODER, (1,))
    assert model.generation_config.alignment_heads is None
    model.generate(features(), max_new_tokens=4)


@pytest.mark.parametrize("linear", list(DECODER.linears()))
def test_factors_merge_into_their_product(linear: str, recognizer: Recognizer, logits: Any) -> None:
    model = recognizer.model
    before = logits(model)
    factor_at_random(model, DECODER, LAYER, linear, 3)
    factors = get_linear(model, DECODER, LAYER, linear)
    assert isinstance(factors, FactoredLinear)
    product = factors.second.weight @ factors.first.weight
    assert structure_of(model).layer("decoder", LAYER).ranks == {linear: 3}
    factored = logits(model)

    merge(model, DECODER, LAYER, linear)

    merged = get_linear(model, DECODER, LAYER, linear)
    assert isinstance(merged, nn.Linear)
    assert torch.equal(merged.weight, product)
    assert (merged.bias is None) == linear.endswith("k_proj")  # as in the base; softmax does not see it
    if merged.bias is not None:
        assert torch.equal(merged.bias, factors.bias)
    assert structure_of(model).layer("decoder", LAYER) == LayerStructure(LAYER)
    assert_equal_but_not_to(logits(model), factored, before)


def reduced_encoder(recognizer: Recognizer) -> Any:
    """The model with every linear of layer 1 of the encoder factored and its attention reduced."""
    model = recognizer.model
    bring_into_form(model, ENCODER, "reduced")
    return model


def test_reduced_attention_in_the_model_equals_the_expanded_one(recognizer: Recognizer, logits: Any) -> None:
    model = recognizer.model
    before = logits(model)
    bring_into_form(model, ENCODER, "factored")
    factored = logits(model)
    reduce_attention(model, ENCODER, LAYER, SELF)
    assert isinstance(model.model.encoder.layers[LAYER].self_attn, ReducedAttention)
    assert structure_of(model).layer("encoder", LAYER).reduced == ("self_attn",)
    assert_equal_but_not_to(logits(model), factored, before)
    once = structure_of(model)
    reduce_attention(model, ENCODER, LAYER, SELF)
    assert structure_of(model) == once
    expand_attention(model, ENCODER, LAYER, SELF)
    expand_attention(model, ENCODER, LAYER, SELF)
    assert structure_of(model).layer("encoder", LAYER).reduced == ()
    torch.testing.assert_close(logits(model), factored, atol=1e-6, rtol=0)


@pytest.mark.parametrize("linear", SELF.projections)
def test_merging_expands_reduced_attention_where_it_must(linear: str, recognizer: Recognizer, logits: Any) -> None:
    model = reduced_encoder(recognizer)
    before = logits(model)
    merge(model, ENCODER, LAYER, linear)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    is_output = linear == SELF.projections[3]
    assert isinstance(model.model.encoder.layers[LAYER].self_attn, ReducedAttention) == is_output
    assert structure_of(model).layer("encoder", LAYER).reduced == (("self_attn",) if is_output else ())


def test_a_reduced_attention_narrows_and_expands_with_its_heads(recognizer: Recognizer, logits: Any) -> None:
    model = reduced_encoder(recognizer)
    keep_heads(model, ENCODER, LAYER, SELF, (0, 3))
    narrowed = logits(model)
    expand_attention(model, ENCODER, LAYER, SELF)
    assert model.model.encoder.layers[LAYER].self_attn.num_heads == 2
    torch.testing.assert_close(logits(model), narrowed, atol=1e-5, rtol=0)


def test_reducing_and_expanding_keep_mode_and_dropout(recognizer: Recognizer, logits: Any) -> None:
    model = recognizer.model
    model.model.encoder.layers[LAYER].self_attn.dropout = 0.5
    bring_into_form(model, ENCODER, "factored")
    before = logits(model)
    reduce_attention(model, ENCODER, LAYER, SELF)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)  # the model is not in training: none dropped
    model.train()
    expand_attention(model, ENCODER, LAYER, SELF)
    attention = model.model.encoder.layers[LAYER].self_attn
    assert attention.dropout == 0.5
    assert attention.training


def test_factors_take_the_type_of_the_model(recognizer: Recognizer) -> None:
    model = recognizer.model.to(torch.bfloat16)
    factor_at_random(model, ENCODER, LAYER, "fc1", 2)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_frozen_weights_stay_frozen(recognizer: Recognizer) -> None:
    model = recognizer.model
    model.model.encoder.requires_grad_(False)
    narrow_ffn(model, ENCODER, LAYER, FFN, (0, 1))
    keep_heads(model, ENCODER, LAYER, SELF, (0,))
    narrow_ffn(model, DECODER, LAYER, FFN, (0, 1))
    assert not any(weight.requires_grad for weight in model.model.encoder.parameters())
    assert all(weight.requires_grad for weight in model.model.decoder.parameters())


@pytest.mark.parametrize(
    ("positions", "message"),
    [((), r"\[\]"), ((1, 0), r"\[1, 0\]"), ((0, 0), r"\[0, 0\]"), ((0, 99), r"\[0, 99\]"), ((-1,), r"\[-1\]")],
)
def test_positions_must_be_an_ascending_choice(
    positions: tuple[int, ...], message: str, recognizer: Recognizer, logits: Any
) -> None:
    model = recognizer.model
    before = logits(model)
    for attempt, what in (
        (lambda: keep_heads(model, ENCODER, 0, SELF, positions), "heads of model.encoder.layers.0.self_attn"),
        (lambda: narrow_ffn(model, DECODER, 2, FFN, positions), "neurons of model.decoder.layers.2.ffn"),
        (lambda: keep_layers(model, DECODER, positions), "layers of the decoder"),
    ):
        with pytest.raises(SottoError, match=f"^{what}: {message} is not an ascending choice out of \\d+$"):
            attempt()
    assert torch.equal(logits(model), before)
    assert structure_of(model) == dense_structure(WHISPER, model.config)


def test_attention_that_cannot_be_reduced(recognizer: Recognizer) -> None:
    model = recognizer.model
    message = "only self-attention over a whole window, with its projections factored, can be reduced"
    with pytest.raises(SottoError, match=f"^model.encoder.layers.1.self_attn: {message}$"):
        reduce_attention(model, ENCODER, LAYER, SELF)
    bring_into_form(model, DECODER, "factored")
    for attention in DECODER.attentions:
        with pytest.raises(SottoError, match=message):
            reduce_attention(model, DECODER, LAYER, attention)


def test_factors_that_do_not_fit(recognizer: Recognizer) -> None:
    model = recognizer.model
    with pytest.raises(ValueError, match="do not fit fc1"):
        factor(model, ENCODER, 0, "fc1", torch.ones(2, 24), torch.ones(16, 2), torch.ones(16))
    with pytest.raises(ValueError, match="do not fit fc1"):
        factor(model, ENCODER, 0, "fc1", torch.ones(2, 16), torch.ones(24, 3), torch.ones(24))
    for rank in (0, 17):
        with pytest.raises(SottoError, match=f"layers.0.fc1: rank {rank} is not between 1 and 16, its dimension"):
            factor(model, ENCODER, 0, "fc1", torch.ones(rank, 16), torch.ones(24, rank), torch.ones(24))
    assert structure_of(model) == dense_structure(WHISPER, model.config)


def test_a_structure_is_applied_to_a_base_of_its_size(recognizer: Recognizer) -> None:
    shaped = reduced_encoder(recognizer)
    keep_heads(shaped, DECODER, 0, DECODER.attentions[1], (1,))
    narrow_heads(shaped, DECODER, 0, DECODER.attentions[1], 3)
    narrow_heads(shaped, ENCODER, LAYER, SELF, 2)
    narrow_ffn(shaped, DECODER, 2, FFN, (5, 6, 7))
    structure = structure_of(shaped)
    config = copy.deepcopy(shaped.config)
    config.sotto = None
    with torch.device("meta"):
        base = WhisperForConditionalGeneration(config)
    apply_structure(base, structure)
    assert structure_of(base) == structure
    assert_record_matches_shapes(base)
    assert {name: value.shape for name, value in base.state_dict().items()} == {
        name: value.shape for name, value in shaped.state_dict().items()
    }
    with torch.device("meta"):
        longer = WhisperForConditionalGeneration(type(config)(**config.to_dict() | {"encoder_layers": 4}))
    with pytest.raises(SottoError, match="encoder has 3 layers, but encoder_layers in config.json is 4"):
        apply_structure(longer, structure)


def assert_record_matches_shapes(model: Any) -> None:
    structure = structure_of(model)
    check(structure, model.config)
    for stack in WHISPER.stacks:
        dimensions = stack.dimensions(model.config)
        modules = model.get_submodule(stack.layers)
        assert len(modules) == len(structure.stacks[stack.name].layers)
        for module, layer in zip(modules, structure.stacks[stack.name].layers, strict=True):
            shapes = {}
            for attention in stack.attentions:
                heads = len(layer.heads.get(attention.name, range(dimensions.heads)))
                width = layer.head_dims.get(attention.name, dimensions.head_dim)
                found = module.get_submodule(attention.name)
                assert (found.num_heads, found.head_dim, found.scaling) == (heads, width, HEAD_DIM**-0.5)
                assert isinstance(module.get_submodule(attention.name), ReducedAttention) == (
                    attention.name in layer.reduced
                )
                shapes |= dict.fromkeys(attention.projections[:3], (dimensions.width, heads * width))
                shapes |= {attention.projections[3]: (heads * width, dimensions.width)}
            inner = layer.ffn_widths.get("ffn", dimensions.ffn)
            shapes |= {"fc1": (dimensions.width, inner), "fc2": (inner, dimensions.width)}
            assert set(shapes) == set(stack.linears())
            for name, shape in shapes.items():
                linear = module.get_submodule(name)
                assert (linear.in_features, linear.out_features) == tuple(reversed(linear.weight.shape)) == shape
                rank = linear.rank if isinstance(linear, FactoredLinear) else None
                assert rank == layer.ranks.get(name)


def choose(rng: random.Random, count: int) -> list[int]:
    return sorted(rng.sample(range(count), rng.randint(1, count)))


def operate(model: Any, operation: str, rng: random.Random) -> bool:
    """Do one change somewhere, chosen by `rng`; whether the model must compute the same as before."""
    stack = rng.choice(WHISPER.stacks)
    index = rng.randrange(stack.dimensions(model.config).layers)
    attention = rng.choice(stack.attentions)
    layer = structure_of(model).layer(stack.name, index)
    if operation == "layers":
        keep_layers(model, stack, choose(rng, stack.dimensions(model.config).layers))
    elif operation == "heads":
        module = model.get_submodule(layer_path(stack, index, attention.name))
        keep_heads(model, stack, index, attention, choose(rng, module.num_heads))
    elif operation == "channels":
        now = model.get_submodule(layer_path(stack, index, attention.name)).head_dim
        narrow_heads(model, stack, index, attention, rng.randint(1, now))
    elif operation == "neurons":
        narrow_ffn(model, stack, index, FFN, choose(rng, get_linear(model, stack, index, "fc1").out_features))
    elif operation == "factor":
        for linear in rng.choice((stack.attentions[0].projections, tuple(stack.linears()))):
            shape = get_linear(model, stack, index, linear).weight.shape
            factor_at_random(model, stack, index, linear, rng.randint(1, min(shape)), rng.randrange(1000))
    elif operation == "merge" and layer.ranks:
        merge(model, stack, index, rng.choice(sorted(layer.ranks)))
        return True
    elif operation == "reduce":
        can = stack is ENCODER and all(name in layer.ranks for name in SELF.projections[:3])
        if can:
            reduce_attention(model, stack, index, attention)
        else:
            with pytest.raises(SottoError):
                reduce_attention(model, stack, index, attention)
        return True
    elif operation == "expand":
        expand_attention(model, stack, index, attention)
        return True
    return operation == "merge"


OPERATIONS = st.sampled_from(
    ["layers", "heads", "channels", "neurons", "factor", "factor", "reduce", "merge", "expand"]
)


@settings(max_examples=20, phases=[Phase.reuse, Phase.generate])
@given(st.lists(st.tuples(OPERATIONS, st.integers(0, 10**6)), min_size=1, max_size=8))
def test_any_sequence_of_operations_keeps_record_and_shapes_together(
    template: Recognizer, logits: Any, tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    model = copy.deepcopy(template.model)
    for operation, seed in operations:
        before = logits(model)
        same = operate(model, operation, random.Random(seed))
        assert_record_matches_shapes(model)
        after = logits(model)
        assert after.isfinite().all()
        if same:
            torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    folder = tmp_path_factory.mktemp("operations") / "checkpoint"
    loaded = load(Recognizer(model, template.processor).save(folder))
    torch.testing.assert_close(logits(loaded.model), after, atol=1e-5, rtol=0)
    assert loaded.structure == structure_of(model)
    assert loaded.model.generation_config.alignment_heads == model.generation_config.alignment_heads
    assert_record_matches_shapes(loaded.model)
