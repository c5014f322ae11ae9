"""Modules with fewer channels, and modules that a layer lacks: as if they were silenced, and saved and loaded so."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conformers import CONFORMERS, WIDTH, make
from recognizers import ARCHITECTURES, recognizer, scores
from sotto.architectures import Stack
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.metrics.cost import count_parameters
from sotto.structure import LayerStructure, check, from_json, to_json
from sotto.surgery import (
    drop_module,
    get_linear,
    keep_channels,
    keep_heads,
    keep_layers,
    layers_of,
    linears_of,
    narrow_ffn,
    structure_of,
)
from tones import tiny_whisper

LAYER = 0


def outward(stack: Stack, module: Any) -> str:
    """The part of a module that everything it says goes through."""
    return module.linears[-1] if module.linears else f"{module.name}.{module.pointwise_out}"


@torch.no_grad()
def silence(found: Recognizer, stack: Stack, module: Any, channels: list[int] | None = None) -> None:
    """Have a module say nothing, or not hear its own `channels`."""
    last: Any = found.model.get_submodule(f"{stack.layers}.{LAYER}.{outward(stack, module)}")
    if channels is not None:
        last.weight[:, channels] = 0.0
        return
    last.weight.zero_()
    if last.bias is not None:
        last.bias.zero_()


def every_module() -> list[Any]:
    return [
        pytest.param(architecture, stack.name, module.name, id=f"{architecture}-{stack.name}-{module.name}")
        for architecture in ARCHITECTURES
        for stack in recognizer(architecture).architecture.stacks
        for module in stack.modules
    ]


def module_named(stack: Stack, name: str) -> Any:
    return next(module for module in stack.modules if module.name == name)


@pytest.mark.parametrize(("architecture", "stack_name", "name"), every_module())
def test_an_absent_module_is_as_a_silenced_one(architecture: str, stack_name: str, name: str, tmp_path: Path) -> None:
    found = recognizer(architecture)
    stack = found.architecture.stack(stack_name)
    module = module_named(stack, name)
    before, parameters = scores(found), count_parameters(found.model).total
    silenced = found.copy()
    silence(silenced, stack, module)

    drop_module(found.model, stack, LAYER, module)

    expected = scores(silenced)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(scores(found), expected, atol=1e-5, rtol=0)
    assert structure_of(found.model).layer(stack.name, LAYER) == LayerStructure(LAYER, absent=(name,))
    assert count_parameters(found.model).total < parameters - WIDTH  # the norm before it is gone too
    linears = [linear for place, index, linear in linears_of(found.model) if (place.name, index) == (stack.name, LAYER)]
    assert not set(linears) & set(module.linears)
    loaded = load(found.save(tmp_path / "model"))
    torch.testing.assert_close(scores(loaded), expected, atol=1e-5, rtol=0)
    assert loaded.structure == structure_of(found.model)
    scores_with_gradients(found).square().mean().backward()
    left = found.model.get_submodule(f"{stack.layers}.{LAYER}")
    assert all(parameter.grad is not None for parameter in left.parameters())


def scores_with_gradients(found: Recognizer) -> torch.Tensor:
    inputs = found.family.inputs([np.sin(np.arange(16_000, dtype=np.float32))])
    if found.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11]])
    logits: torch.Tensor = found.model(**inputs).logits
    return logits


@pytest.mark.parametrize("architecture", CONFORMERS)
def test_dropped_channels_are_as_silenced_ones(architecture: str, tmp_path: Path) -> None:
    found = make(architecture)
    (stack,) = found.architecture.stacks
    (convolution,) = stack.convolutions
    layer = found.model.get_submodule(f"{stack.layers}.{LAYER}.{convolution.name}")
    with torch.no_grad():  # statistics that differ from channel to channel
        norm = layer.get_submodule(convolution.norm)
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    before = scores(found)
    silenced = copy.deepcopy(found)
    kept = [0, 2, 3, 7, WIDTH - 1]
    silence(silenced, stack, convolution, sorted(set(range(WIDTH)) - set(kept)))

    keep_channels(found.model, stack, LAYER, convolution, kept)

    expected = scores(silenced)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(scores(found), expected, atol=1e-5, rtol=0)
    assert structure_of(found.model).layer("encoder", LAYER).channels == {convolution.name: 5}
    assert layer.get_submodule(convolution.pointwise_in).weight.shape == (10, WIDTH, 1)
    assert layer.get_submodule(convolution.depthwise).groups == 5
    torch.testing.assert_close(scores(load(found.save(tmp_path / "model"))), expected, atol=1e-5, rtol=0)
    keep_channels(found.model, stack, LAYER, convolution, [1, 4])
    assert structure_of(found.model).layer("encoder", LAYER).channels == {convolution.name: 2}
    with pytest.raises(SottoError, match=r"channels of .*: \[2\] is not an ascending choice out of 2"):
        keep_channels(found.model, stack, LAYER, convolution, [2])


def two_layers() -> tuple[Recognizer, Stack, Any]:
    """A Whisper with two layers a stack, its decoder, and what it hears."""
    found = Recognizer(*tiny_whisper(encoder_layers=2, decoder_layers=2, maximum_tokens=16))
    found.model.eval()
    inputs = found.family.inputs([np.sin(np.arange(16_000, dtype=np.float32))])
    return found, found.architecture.stack("decoder"), inputs


@pytest.mark.parametrize("absent", ["self_attn", "encoder_attn", "ffn"])
def test_whisper_generates_without_a_module_of_its_decoder(absent: str) -> None:
    """The cache tells the number of tokens by the first layer: with and without a cache, the same is said."""
    found, stack, inputs = two_layers()
    drop_module(found.model, stack, 0, module_named(stack, absent))

    def said(**settings: Any) -> list[int]:
        tokens: list[int] = found.model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, **settings)[0].tolist()
        return tokens

    assert said(use_cache=True) == said(use_cache=False)
    assert len(said(num_beams=3)) == len(said())


def test_tokens_are_timed_by_the_heads_that_are_left() -> None:
    found, stack, inputs = two_layers()
    found.model.generation_config.alignment_heads = [[0, 0], [1, 0], [1, 1]]
    settings: dict[str, Any] = {"return_timestamps": True, "return_token_timestamps": True, "max_new_tokens": 6}
    drop_module(found.model, stack, 0, module_named(stack, "encoder_attn"))
    assert found.model.generation_config.alignment_heads == [[1, 0], [1, 1]]
    times = found.model.generate(**inputs, **settings)["token_timestamps"]
    assert times.isfinite().all()
    assert times.shape[1] > 3


def test_a_module_that_was_narrowed_leaves_no_trace_when_it_goes() -> None:
    found = recognizer("parakeet")
    (stack,) = found.architecture.stacks
    (attention,), ffn, (convolution,) = stack.attentions, stack.feed_forwards[0], stack.convolutions
    keep_heads(found.model, stack, LAYER, attention, [0, 1])
    narrow_ffn(found.model, stack, LAYER, ffn, [0, 1, 2])
    keep_channels(found.model, stack, LAYER, convolution, [0, 1, 2])
    for module in (attention, ffn, convolution):
        drop_module(found.model, stack, LAYER, module)
        drop_module(found.model, stack, LAYER, module)  # again, which changes nothing
    names = (attention.name, ffn.name, convolution.name)
    assert structure_of(found.model).layer("encoder", LAYER) == LayerStructure(LAYER, absent=names)
    keep_layers(found.model, stack, [LAYER])
    assert [present.feed_forwards for present, _ in layers_of(found.model)] == [stack.feed_forwards[1:]]


def test_a_record_says_nothing_of_the_shape_of_what_is_absent() -> None:
    found = recognizer("parakeet")
    (stack,) = found.architecture.stacks
    drop_module(found.model, stack, 0, stack.convolutions[0])
    good = to_json(structure_of(found.model))
    for change, message in [
        ({"channels": {"conv": 3}}, "encoder layer 0: conv is absent, and has a shape"),
        ({"absent": ["conv", "conv"]}, r"encoder layer 0: \['conv', 'conv'\] names a module twice"),
        ({"absent": ["convolution"]}, "module 'convolution' does not exist; known: feed_forward1"),
        ({"absent": [], "channels": {"conv": 0}}, "channels of conv is 0; the base allows 1 to"),
    ]:
        bad = copy.deepcopy(good)
        bad["stacks"]["encoder"]["layers"][0] |= change
        with pytest.raises(SottoError, match=message):
            check(from_json(bad), found.model.config)


@settings(max_examples=10)
@given(st.sampled_from(ARCHITECTURES), st.randoms(use_true_random=False))
def test_any_choice_of_modules_may_be_absent(architecture: str, rng: Any) -> None:
    found = recognizer(architecture)
    silenced = found.copy()
    for stack in found.architecture.stacks:
        for module in stack.modules:
            if rng.random() < 0.5:
                silence(silenced, stack, module)
                drop_module(found.model, stack, LAYER, module)
    torch.testing.assert_close(scores(found), scores(silenced), atol=1e-5, rtol=0)
    copied = copy.deepcopy(found.model)
    assert sum(isinstance(module, nn.Linear) for module in copied.modules()) == sum(
        isinstance(module, nn.Linear) for module in found.model.modules()
    )
    for place in linears_of(found.model):
        assert get_linear(found.model, *place) is not None
