"""Contracts that hold for every Conformer: its table, surgery, and checkpoints."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ParakeetEncoderConfig, Wav2Vec2ConformerConfig

from conformers import CONFORMERS, FFN, HEADS, LAYERS, WIDTH, factor_at_random, make, parakeet, scores
from sotto.architectures import architecture_of, get_architecture
from sotto.auto_classes import SottoParakeetCTCConfig, SottoWav2Vec2ConformerConfig
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.layers import FactoredLinear
from sotto.structure import LayerStructure, check, dense_structure, from_json, to_json
from sotto.surgery import (
    factor,
    get_linear,
    keep_heads,
    keep_layers,
    merge,
    narrow_ffn,
    reduce_attention,
    structure_of,
)

RELATIVE = CONFORMERS[:2]
HEAD_DIM = WIDTH // HEADS

every_conformer = pytest.mark.parametrize("architecture", CONFORMERS)
relative_ones = pytest.mark.parametrize("architecture", RELATIVE)


def stack_of(recognizer: Recognizer) -> Any:
    (stack,) = recognizer.architecture.stacks
    return stack


@every_conformer
def test_the_table_names_what_the_model_has(architecture: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    assert recognizer.architecture.name == architecture
    assert [type(module).__name__ for module in stack.modules] == [
        "FeedForward",
        "Attention",
        "Convolution",
        "FeedForward",
    ]
    dimensions = stack.dimensions(recognizer.model.config)
    assert (dimensions.layers, dimensions.width, dimensions.heads, dimensions.ffn) == (LAYERS, WIDTH, HEADS, FFN)
    layers = recognizer.model.get_submodule(stack.layers)
    assert len(layers) == LAYERS
    named = [name for name, module in layers[0].named_modules() if isinstance(module, nn.Linear)]
    assert sorted(named) == sorted(stack.linears())  # none is left out
    for name in stack.linears():
        linear = layers[0].get_submodule(name)
        assert (linear.in_features, linear.out_features) == stack.linear_shape(name, dimensions)
        assert stack.has_bias(name, recognizer.model.config) == (linear.bias is not None)
    (attention,) = stack.attentions
    module = layers[0].get_submodule(attention.name)
    assert type(module) is attention.module_type
    assert all(getattr(module, name).shape == (HEADS, HEAD_DIM) for name in attention.head_biases)
    (convolution,) = stack.convolutions
    inside = layers[0].get_submodule(convolution.name)
    assert getattr(inside, convolution.pointwise_in).out_channels == 2 * WIDTH
    assert getattr(inside, convolution.depthwise).groups == WIDTH
    assert isinstance(getattr(inside, convolution.norm), nn.BatchNorm1d)
    assert getattr(inside, convolution.pointwise_out).in_channels == WIDTH


@every_conformer
def test_linears_are_named_in_the_order_of_computation(architecture: str) -> None:
    recognizer = make(architecture)
    heard: list[str] = []
    stack = stack_of(recognizer)
    for name in stack.linears():
        linear = get_linear(recognizer.model, stack, 0, name)
        linear.register_forward_hook(lambda *_, name=name: heard.append(name))
    scores(recognizer)
    attention = stack.attentions[0]
    among = [name for name in heard if name in attention.inward]
    assert sorted(among) == sorted(attention.inward)
    assert [name for name in heard if name not in attention.inward] == [
        name for name in stack.linears() if name not in attention.inward
    ]
    assert heard.index(among[-1]) < heard.index(attention.linears[-1])
    assert heard[:2] == list(stack.feed_forwards[0].linears)


@pytest.mark.parametrize("config", [ParakeetEncoderConfig(), Wav2Vec2ConformerConfig(position_embeddings_type=None)])
def test_other_kinds_are_refused(config: Any) -> None:
    with pytest.raises(SottoError, match="is not supported; Sotto knows"):
        architecture_of(config)


def test_settings_that_are_not_supported_are_named() -> None:
    message = "'wav2vec2-conformer' with position_embeddings_type None, add_adapter False is not supported; Sotto knows"
    with pytest.raises(SottoError, match=message):
        architecture_of(Wav2Vec2ConformerConfig(position_embeddings_type=None))
    with pytest.raises(SottoError, match="add_adapter True is not supported"):
        architecture_of(Wav2Vec2ConformerConfig(add_adapter=True))


@pytest.mark.parametrize("config", [SottoParakeetCTCConfig, SottoWav2Vec2ConformerConfig])
def test_sottos_configs_are_of_the_same_family(config: Any) -> None:
    assert architecture_of(config()).name in RELATIVE


@pytest.mark.parametrize("kind", ["plain", "factored"])
@relative_ones
def test_dropped_heads_are_as_silenced_ones(architecture: str, kind: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    (attention,) = stack.attentions
    if kind == "factored":
        for seed, name in enumerate(attention.linears):
            factor_at_random(recognizer, 1, name, 5, seed)
    before = scores(recognizer)
    silenced = copy.deepcopy(recognizer)
    gone = [head * HEAD_DIM + channel for head in (0, 2) for channel in range(HEAD_DIM)]
    silence_inputs(get_linear(silenced.model, stack, 1, attention.linears[-1]), gone)

    keep_heads(recognizer.model, stack, 1, attention, (1, 3))

    expected = scores(silenced)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(scores(recognizer), expected, atol=1e-5, rtol=0)
    assert structure_of(recognizer.model).layer("encoder", 1).heads == {"self_attn": (1, 3)}
    keep_heads(recognizer.model, stack, 1, attention, (1,))
    assert structure_of(recognizer.model).layer("encoder", 1).heads == {"self_attn": (3,)}
    assert scores(recognizer).isfinite().all()


def test_rotary_attention_keeps_its_heads() -> None:
    recognizer = make("wav2vec2_conformer_rotary")
    stack = stack_of(recognizer)
    with pytest.raises(SottoError, match="layers.0.self_attn: attention with rotary positions cannot lose heads"):
        keep_heads(recognizer.model, stack, 0, stack.attentions[0], (0,))


@every_conformer
@pytest.mark.parametrize("which", [0, 1])
def test_dropped_neurons_are_as_silenced_ones(architecture: str, which: int) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    ffn = stack.feed_forwards[which]
    before = scores(recognizer)
    silenced = copy.deepcopy(recognizer)
    kept = [0, 3, 4, 11, 23]
    silence_inputs(get_linear(silenced.model, stack, 0, ffn.down), sorted(set(range(FFN)) - set(kept)))

    narrow_ffn(recognizer.model, stack, 0, ffn, kept)

    expected = scores(silenced)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(scores(recognizer), expected, atol=1e-5, rtol=0)


@every_conformer
def test_dropped_layers_are_as_skipped_ones(architecture: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    before = scores(recognizer)
    skipped = copy.deepcopy(recognizer)
    skipped.model.get_submodule(stack.layers)[0].forward = lambda hidden_states, *_, **__: hidden_states

    keep_layers(recognizer.model, stack, [1])

    expected = scores(skipped)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(scores(recognizer), expected, atol=1e-5, rtol=0)
    assert stack.dimensions(recognizer.model.config).layers == 1
    assert [layer.base_layer for layer in structure_of(recognizer.model).stacks["encoder"].layers] == [1]


@every_conformer
def test_factors_of_full_rank_compute_the_same_and_gradients_reach_them(architecture: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    before = scores(recognizer)
    for index in range(LAYERS):
        for name in stack.linears():
            old = get_linear(recognizer.model, stack, index, name)
            left, values, right = torch.linalg.svd(old.weight.detach(), full_matrices=False)
            bias = torch.zeros(old.out_features) if old.bias is None else old.bias.detach()
            factor(recognizer.model, stack, index, name, values[:, None] * right, left, bias)
    torch.testing.assert_close(scores(recognizer), before, atol=1e-4, rtol=1e-4)
    family = recognizer.family
    family.logits(family.inputs([torch.randn(16000).numpy()])).log_softmax(-1)[:, 1].sum().backward()
    unheard = ("k_proj.second.bias", "linear_k.second.bias", "linear_pos.second.bias")  # softmax does not see them
    factors = [module for module in recognizer.model.modules() if isinstance(module, FactoredLinear)]
    assert len(factors) == LAYERS * len(list(stack.linears()))
    for name, parameter in recognizer.model.named_parameters():
        if ".first." in name or (".second." in name and not name.endswith(unheard)):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@every_conformer
def test_merged_factors_compute_the_same_and_are_as_the_base(architecture: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    names = set(recognizer.model.state_dict())
    for seed, name in enumerate(stack.linears()):
        factor_at_random(recognizer, 0, name, 5, seed)
    factored = scores(recognizer)
    for name in stack.linears():
        merge(recognizer.model, stack, 0, name)
    torch.testing.assert_close(scores(recognizer), factored, atol=1e-4, rtol=1e-4)
    assert set(recognizer.model.state_dict()) == names
    assert structure_of(recognizer.model) == dense_structure(recognizer.architecture, recognizer.model.config)


def test_a_bias_that_is_heard_is_not_merged_away() -> None:
    recognizer = parakeet(attention_bias=False)
    stack = stack_of(recognizer)
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        assert get_linear(recognizer.model, stack, 0, name).bias is None
        factor_at_random(recognizer, 0, name, 4)
    before = scores(recognizer)
    merge(recognizer.model, stack, 0, "self_attn.k_proj")
    assert get_linear(recognizer.model, stack, 0, "self_attn.k_proj").bias is None
    torch.testing.assert_close(scores(recognizer), before, atol=1e-4, rtol=1e-4)
    with pytest.raises(SottoError, match=r"self_attn.v_proj: the base has no bias for that of the factors; keep them"):
        merge(recognizer.model, stack, 0, "self_attn.v_proj")


@every_conformer
def test_attention_with_positions_is_not_reduced(architecture: str) -> None:
    recognizer = make(architecture)
    stack = stack_of(recognizer)
    for name in stack.attentions[0].linears:
        factor_at_random(recognizer, 0, name, 4)
    with pytest.raises(SottoError, match="can be reduced"):
        reduce_attention(recognizer.model, stack, 0, stack.attentions[0])


@relative_ones
def test_a_record_survives_json_and_one_that_does_not_fit_is_refused(architecture: str) -> None:
    config = make(architecture).model.config
    table = get_architecture(architecture)
    linear = table.stacks[0].attentions[0].inward[-1]
    layer = LayerStructure(1, heads={"self_attn": (0, 2)}, ranks={linear: WIDTH})
    record = dense_structure(table, config).with_layer("encoder", 1, layer)
    assert from_json(to_json(record)) == record
    check(record, config)
    wrong = {
        f"rank of {linear} is 17; the base allows 1 to 16": LayerStructure(1, ranks={linear: WIDTH + 1}),
        "linear 'fc1' does not exist": LayerStructure(1, ranks={"fc1": 4}),
        "heads of self_attn": LayerStructure(1, heads={"self_attn": (0, HEADS)}),
        "attention 'self_attn' does not exist": LayerStructure(1, reduced=("self_attn",)),
        "feed-forward network 'ffn' does not exist": LayerStructure(1, ffn_widths={"ffn": 2}),
    }
    for message, bad in wrong.items():
        with pytest.raises(SottoError, match=message):
            check(record.with_layer("encoder", 1, bad), config)
    other = make(next(name for name in RELATIVE if name != architecture)).model.config
    with pytest.raises(SottoError, match=f"is of a {architecture}, but config.json is that of a "):
        check(record, other)


def silence_inputs(linear: Any, channels: list[int]) -> None:
    first = linear.first if isinstance(linear, FactoredLinear) else linear
    with torch.no_grad():
        first.weight[:, channels] = 0
