from typing import Any

import pytest
import torch

from recognizers import recognizer
from sotto.architectures import architecture_of
from sotto.errors import SottoError
from sotto.layers import FactoredLinear
from sotto.methods.group_math import scale_groups, squared_norms
from sotto.methods.groups import Groups, groups_of
from sotto.surgery import factor, get_linear, keep_heads, narrow_ffn, narrow_heads
from tones import square_wave


def all_groups(model: Any, **kinds: Any) -> list[Groups]:
    stacks = architecture_of(model.config).stacks
    return [groups for stack in stacks for groups in groups_of(model, stack, **kinds)]


@pytest.mark.parametrize("architecture", ["whisper", "parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary"])
@pytest.mark.parametrize("attention", ["column", "row", "head"])
@pytest.mark.parametrize("feed_forward", ["column", "row", "neuron"])
def test_every_linear_of_the_layers_is_in_one_group_set(architecture: str, attention: str, feed_forward: str) -> None:
    model = recognizer(architecture).model
    found = all_groups(model, attention=attention, feed_forward=feed_forward)
    named = [name for groups in found for name, _ in groups.linears]
    expected = [
        f"{stack.layers}.{layer}.{linear}"
        for stack in architecture_of(model.config).stacks
        for layer in range(len(model.get_submodule(stack.layers)))
        for linear in stack.linears()
    ]
    assert sorted(named) == sorted(expected)
    for groups in found:
        for weight, axis in groups.members(model):
            assert weight.shape[axis] % groups.count == 0


def test_whispers_groups_by_hand() -> None:
    model = recognizer("whisper").model  # width 32, two heads, feed-forward 128
    heads, neurons = all_groups(model, attention="head", feed_forward="neuron")[:2]
    path = "model.encoder.layers.0"
    assert heads == Groups(
        "encoder",
        0,
        "head",
        tuple((f"{path}.self_attn.{name}_proj", axis) for name, axis in (("q", 0), ("k", 0), ("v", 0), ("out", 1))),
        2,
    )
    assert neurons == Groups("encoder", 0, "neuron", ((f"{path}.fc1", 0), (f"{path}.fc2", 1)), 128)
    columns = all_groups(model, attention="column", feed_forward="row")
    assert [(groups.linears, groups.count) for groups in columns[:1]] == [(((f"{path}.self_attn.q_proj", 1),), 32)]
    assert columns[4].linears == ((f"{path}.fc1", 0),)
    assert columns[4].count == 128
    assert [groups.stack for groups in columns] == 6 * ["encoder"] + 10 * ["decoder"]


@pytest.mark.parametrize("architecture", ["whisper", "parakeet", "wav2vec2_conformer"])
def test_an_empty_head_and_an_empty_neuron_can_be_removed_for_free(architecture: str) -> None:
    """What the groups hold is what surgery takes away, but for biases, which are zero here."""
    found = recognizer(architecture)
    model = found.model.eval()
    stack = architecture_of(model.config).stacks[0]
    sets = {groups.kind: groups for groups in groups_of(model, stack, "head", "neuron") if groups.layer == 0}
    with torch.no_grad():
        for groups in sets.values():
            for name, axis in groups.linears:
                module = model.get_submodule(name)
                if module.bias is not None and axis == 0:
                    module.bias.zero_()
            alive = torch.ones(groups.count)
            alive[1] = 0.0
            scale_groups(groups.members(model), alive)
            assert squared_norms(groups.members(model), groups.count)[1] == 0
    inputs = found.family.with_transcript(found.family.inputs([square_wave(300, 0.9)]))
    with torch.no_grad():
        before = found.family.logits(inputs)
        attention = stack.attentions[0]
        keep_heads(model, stack, 0, attention, [head for head in range(sets["head"].count) if head != 1])
        ffn = next(ffn for ffn in stack.feed_forwards if sets["neuron"].linears[0][0].endswith(ffn.up))
        narrow_ffn(model, stack, 0, ffn, [neuron for neuron in range(sets["neuron"].count) if neuron != 1])
        torch.testing.assert_close(found.family.logits(inputs), before, rtol=1e-5, atol=1e-5)


def test_narrower_heads_are_groups_of_fewer_channels() -> None:
    model = recognizer("whisper").model
    stack = architecture_of(model.config).stacks[0]
    narrow_heads(model, stack, 0, stack.attentions[0], 5)
    heads, _ = groups_of(model, stack, "head", "neuron")
    assert heads.count == 2
    assert [weight.shape[axis] for weight, axis in heads.members(model)] == [10] * 4


def test_factored_linears_are_refused() -> None:
    model = recognizer("whisper").model
    stack = architecture_of(model.config).stacks[0]
    linear = get_linear(model, stack, 0, "fc1")
    assert not isinstance(linear, FactoredLinear)
    factor(model, stack, 0, "fc1", torch.eye(32)[:4], linear.weight.detach()[:, :4], linear.bias.detach())
    with pytest.raises(SottoError, match=r"model.encoder.layers.0.fc1 is factored; sparsity comes before low rank"):
        list(groups_of(model, stack, "column", "neuron"))
