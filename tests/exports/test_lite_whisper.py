"""LiteASR's layout, read back by a reader of its own: from the names and the equation, without Sotto's layers."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mixed_shapes import factor_at_random
from recognizers import scores
from sotto.checkpoint import Recognizer
from sotto.exports import export, open_export
from sotto.surgery import expand_attention, layers_of, reduce_attention
from tones import tiny_whisper, write_folder


class LiteLinear(nn.Module):
    """y = x W1 W2 + b, as LiteASR publishes it."""

    def __init__(self, weight1: torch.Tensor, weight2: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight1, self.weight2, self.bias = weight1, weight2, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight1 @ self.weight2 + self.bias


def read_by_itself(folder: Path) -> WhisperForConditionalGeneration:
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "lite-whisper"
    assert values["sotto"] is None  # no reader can lean on Sotto's own record
    weights = load_file(folder / "model.safetensors")
    model = WhisperForConditionalGeneration(WhisperConfig(**{k: v for k, v in values.items() if k != "model_type"}))
    for index, ranks in enumerate(values["low_rank_config"]):
        layer = model.model.encoder.layers[index]
        for name, rank in ranks.items():
            owner = layer if name.startswith("fc") else layer.self_attn
            place = f"model.encoder.layers.{index}.{'' if owner is layer else 'self_attn.'}{name}"
            parts = [weights.pop(f"{place}.{part}") for part in ("weight1", "weight2", "bias")]
            assert parts[0].shape[1] == parts[1].shape[0] == rank
            setattr(owner, name, LiteLinear(*parts))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])
    model.tie_weights()
    return model.eval()


def low_rank() -> Recognizer:
    """All six linears of the first layer, and two of the second."""
    found = Recognizer(*tiny_whisper(encoder_layers=2))
    found.model.eval()
    for stack, index in list(layers_of(found.model)):
        if stack.name == "encoder":
            for linear in list(stack.linears())[: 6 if index == 0 else 2]:
                factor_at_random(found, stack, index, linear)
            if index == 0:
                reduce_attention(found.model, stack, index, stack.attentions[0])
    return found


def test_an_independent_reader_computes_the_same(tmp_path: Path) -> None:
    found = low_rank()
    clips = write_folder(tmp_path / "clips", ["one", "two"], [0.6, 0.9])
    record = export(found, tmp_path / "lite", to="lite-whisper", audio=clips)
    assert record.agreement.scores < 1e-5
    own = read_by_itself(tmp_path / "lite")
    torch.testing.assert_close(scores(Recognizer(own, found.processor)), scores(found), atol=1e-5, rtol=1e-4)
    again = open_export(tmp_path / "lite")
    for stack, index in list(layers_of(found.model)):
        if stack.name == "encoder":
            expand_attention(found.model, stack, index, stack.attentions[0])  # which the layout does not tell
    assert again.structure == found.structure


def test_opening_it_says_nothing_of_an_unknown_kind_of_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    clips = write_folder(tmp_path / "clips", ["one", "two"], [0.6, 0.9])
    export(low_rank(), tmp_path / "lite", to="lite-whisper", audio=clips)
    open_export(tmp_path / "lite")
    assert "lite-whisper" not in caplog.text


def test_half_precision_is_stored_as_such(tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", ["one", "two"], [0.6, 0.9])
    export(low_rank(), tmp_path / "lite", to="lite-whisper", precision="float16", audio=clips)
    weights = load_file(tmp_path / "lite" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((tmp_path / "lite" / "config.json").read_text())["dtype"] == "float16"
