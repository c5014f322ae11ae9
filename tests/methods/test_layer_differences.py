import math

import pytest
import torch
from torch import nn

from sotto.architectures.whisper import WHISPER
from sotto.methods.layer_differences import Compared, FirstWeights, HiddenStates
from tones import tiny_whisper

LOG3 = math.log(3.0)


def hidden(temperature: float = 1.0) -> HiddenStates:
    model, _ = tiny_whisper()
    return HiddenStates(model, model, WHISPER.stack("decoder"), ("ffn",), temperature)


def test_states_by_hand() -> None:
    own = {0: {"ffn": torch.tensor([[0.0, 0.0], [5.0, 5.0]])}}
    wanted = {0: {"ffn": torch.tensor([[0.0, LOG3], [1.0, 1.0]])}}
    assert hidden()(own, wanted).apart(0, 0).item() == pytest.approx(0.25**2)  # of (1/2, 1/2) and (1/4, 3/4), and 0
    warm = {0: {"ffn": 2 * wanted[0]["ffn"]}}
    assert hidden(2.0)(own, warm).apart(0, 0).item() == pytest.approx(4 * 0.25**2)


def test_weights_by_hand() -> None:
    model, _ = tiny_whisper()
    weights = FirstWeights(model, model, WHISPER.stack("decoder"), 1.0)
    own, wanted = (
        {0: {"ffn": torch.zeros(2, 2)}},
        {0: {"ffn": torch.tensor([[0.0, LOG3], [1.0, 1.0]])}, 1: {"ffn": torch.ones(2, 2)}},
    )
    found = weights(own, wanted)
    assert found.apart(0, 0).item() == pytest.approx((0.5 + 0.0) / 2)  # the mean of two outputs
    assert found.apart(0, 1).item() == 0.0


def test_a_layer_that_lacks_a_module_does_not_fit() -> None:
    states = {"ffn": torch.zeros(2, 3), "self_attn": torch.zeros(2, 3)}
    found = hidden()({0: states, 1: {}}, {0: {"ffn": torch.zeros(2, 3)}, 1: states, 2: {}})
    assert [found.fit(0, other) for other in range(2)] == [False, True]
    assert (sorted(found.own), sorted(found.wanted)) == ([0], [0, 1])  # nothing to compare in the others


def test_gradients_are_held_back_from_the_student_where_only_adapters_learn() -> None:
    student, _ = tiny_whisper()
    teacher, _ = tiny_whisper(d_model=48, attention_heads=4)
    comparison = HiddenStates(student, teacher, WHISPER.stack("decoder"), ("ffn",), 1.0)
    own = torch.randn(3, 128, requires_grad=True)
    found: Compared = comparison({0: {"ffn": own}}, {0: {"ffn": torch.randn(3, 192)}})
    found.apart(0, 0, is_learnt=False).backward()
    assert own.grad is None
    adapter = comparison.get_submodule("adapters.linears.ffn_192_128")
    assert isinstance(adapter, nn.Linear)
    assert adapter.weight.grad is not None
    assert adapter.weight.grad.abs().sum() > 0
