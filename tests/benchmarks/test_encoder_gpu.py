"""The benchmark of large-v3's encoder, as far as it can be looked at without a GPU."""

import pytest
import torch

import encoder_gpu


def test_every_linear_of_every_layer_has_a_published_rank() -> None:
    found = list(encoder_gpu.ranks())
    assert {(index, linear) for index, linear, _ in found} == {
        (index, linear) for index in range(32) for linear in encoder_gpu.LINEARS
    }
    assert len(found) == 32 * 6
    assert found[0] == (0, "q_proj", 0.03)
    assert found[20 * 6 + 5] == (20, "fc2", 0.01)  # a massive activation: one direction is nearly all of the variance


def test_it_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["encoder_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here: nothing to measure"):
        encoder_gpu.main()
