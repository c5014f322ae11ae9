import pytest
import torch
from torch import nn

from sotto.depthwise import depthwise_in_fp32


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 2, 1))


def types(model: nn.Module, hidden: torch.Tensor) -> list[torch.dtype]:
    found: list[torch.dtype] = []
    hooks = [layer.register_forward_hook(lambda layer, inputs, out: found.append(out.dtype)) for layer in model]
    model(hidden)
    for hook in hooks:
        hook.remove()
    return found


def test_only_depthwise_convolutions_leave_autocast_and_only_within_the_context(model: nn.Sequential) -> None:
    hidden = torch.randn(2, 4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        before = types(model, hidden)
        with depthwise_in_fp32(model):
            within = types(model, hidden)
        after = types(model, hidden)
    assert before == after == [torch.bfloat16, torch.bfloat16]
    assert within == [torch.float32, torch.bfloat16]


def test_outputs_and_gradients_are_those_of_fp32(model: nn.Sequential) -> None:
    hidden, depthwise = torch.randn(2, 4, 9), model[0]
    depthwise(hidden).square().sum().backward()
    expected = depthwise.weight.grad.clone()
    depthwise.weight.grad = None
    with depthwise_in_fp32(model), torch.autocast("cpu", torch.bfloat16):
        depthwise(hidden.bfloat16().float()).square().sum().backward()
    torch.testing.assert_close(depthwise.weight.grad, expected, rtol=0.02, atol=0.02)


def test_without_autocast_nothing_changes(model: nn.Sequential) -> None:
    hidden = torch.randn(2, 4, 9)
    expected = model(hidden)
    with depthwise_in_fp32(model):
        torch.testing.assert_close(model(hidden), expected, rtol=0, atol=0)
        halved = model.bfloat16()
        assert types(halved, hidden.bfloat16()) == [torch.bfloat16, torch.bfloat16]
