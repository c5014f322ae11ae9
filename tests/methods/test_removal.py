from typing import Any

import pytest
import torch

from conformers import make
from recognizers import ARCHITECTURES, scores
from sotto.architectures import architecture_of
from sotto.checkpoint import Recognizer, load
from sotto.methods.removal import Removed, remove_idle
from sotto.surgery import get_linear, head_dim_of, layers_of, narrow_heads, structure_of
from tones import tiny_whisper


def recognizer(architecture: str) -> Recognizer:
    whisper = architecture == "whisper"
    found = Recognizer(*tiny_whisper(attention_heads=4)) if whisper else make(architecture)
    found.model.eval()
    with torch.no_grad():  # biases that are not zero, which what is silent still gives
        for name, parameter in found.model.named_parameters():
            if name.endswith("bias") and ".layers." in name and "norm" not in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return found


def linear(model: Any, stack: Any, name: str) -> Any:
    return get_linear(model, stack, 0, name)


@torch.no_grad()
def empty(model: Any, stack: Any) -> None:
    """Neuron 1 of each network hears nothing, neuron 3 says nothing; nor does head 0, and head 1 hears nothing."""
    for ffn in stack.feed_forwards:
        linear(model, stack, ffn.up).weight[1] = 0.0
        linear(model, stack, ffn.down).weight[:, 3] = 0.0
    for attention in stack.attentions:
        head_dim = head_dim_of(model, stack, 0, attention)
        linear(model, stack, attention.projections[3]).weight[:, :head_dim] = 0.0
        linear(model, stack, attention.projections[2]).weight[head_dim : 2 * head_dim] = 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_stay_what_they_were(architecture: str, tmp_path: Any) -> None:
    found = recognizer(architecture)
    stacks = architecture_of(found.model.config).stacks
    for stack in stacks:
        empty(found.model, stack)
    before = scores(found)
    removed = remove_idle(found.model)
    torch.testing.assert_close(scores(found), before, rtol=1e-5, atol=1e-5)
    networks = sum(len(stack.feed_forwards) for stack in stacks)
    heads = {"whisper": 6, "parakeet": 2, "wav2vec2_conformer": 2, "wav2vec2_conformer_rotary": 0}[architecture]
    alignment_heads = 2 if architecture == "whisper" else 0
    assert removed == Removed(heads, 2 * networks, alignment_heads)
    layer = structure_of(found.model).layer("encoder", 0)
    assert all(width == stacks[0].dimensions(found.model.config).ffn - 2 for width in layer.ffn_widths.values())
    assert remove_idle(found.model) == Removed()  # nothing is left to do
    torch.testing.assert_close(scores(load(found.save(tmp_path / "model"))), before, rtol=1e-4, atol=1e-4)


def test_narrower_heads_go_as_wide_ones_do() -> None:
    found = recognizer("whisper")
    for stack, index in list(layers_of(found.model)):
        for channels, attention in enumerate(stack.attentions, start=5):
            narrow_heads(found.model, stack, index, attention, channels)
        empty(found.model, stack)
    before = scores(found)
    assert remove_idle(found.model).heads == 6
    torch.testing.assert_close(scores(found), before, rtol=1e-5, atol=1e-5)


def test_the_last_head_and_neuron_stay() -> None:
    found = recognizer("whisper")
    stack = architecture_of(found.model.config).stacks[0]
    with torch.no_grad():
        for name in stack.linears():
            linear(found.model, stack, name).weight.zero_()
    before = scores(found)
    assert remove_idle(found.model) == Removed(heads=3, neurons=127)
    torch.testing.assert_close(scores(found), before, rtol=1e-5, atol=1e-5)


def test_nothing_is_taken_from_a_model_without_zeros() -> None:
    found = recognizer("whisper")
    before = scores(found)
    assert remove_idle(found.model) == Removed()
    assert torch.equal(scores(found), before)
    assert getattr(found.model.config, "sotto", None) is None
