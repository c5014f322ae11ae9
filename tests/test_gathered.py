from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sotto
from recognizers import ARCHITECTURES, recognizer, scores
from sotto.architectures import Stack, architecture_of
from sotto.checkpoint import load
from sotto.errors import SottoError
from sotto.layers import GatheredLinear
from sotto.methods import AdaptivePruning, StepContext, apply_adaptive_pruning
from sotto.methods.gathering import ROUNDS, GatherTimes, is_faster, rows_of
from sotto.methods.removal import gather_unheard
from sotto.surgery import gather_inputs, get_linear, linears_of, restore_inputs, structure_of
from tones import PITCHES, square_wave, write_folder


def always(stack: Stack, linear: str, inputs: int, kept: int, outputs: int) -> bool:
    return True


@torch.no_grad()
def empty_columns(model: Any) -> int:
    """Every other channel of the residual stream goes unheard by every linear of it; how many linears that are."""
    count = 0
    for stack, index, name in linears_of(model):
        if name in stack.linears_of_residual():
            get_linear(model, stack, index, name).weight[:, ::2] = 0.0
            count += 1
    return count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_unheard_is_dropped_and_outputs_stay(architecture: str, tmp_path: Path) -> None:
    found = recognizer(architecture)
    emptied = empty_columns(found.model)
    before, weights = scores(found), sum(parameter.numel() for parameter in found.model.parameters())
    assert gather_unheard(found.model, always) == emptied
    torch.testing.assert_close(scores(found), before, rtol=1e-5, atol=1e-5)
    assert sum(parameter.numel() for parameter in found.model.parameters()) < weights
    loaded = load(found.save(tmp_path / "model"))
    torch.testing.assert_close(scores(loaded), before, rtol=1e-5, atol=1e-5)
    assert structure_of(loaded.model) == structure_of(found.model)
    for place in linears_of(loaded.model):
        restore_inputs(loaded.model, *place)
    torch.testing.assert_close(scores(loaded), before, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, GatheredLinear) for module in loaded.model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_flow_through_gathered_linears(architecture: str) -> None:
    found = recognizer(architecture)
    empty_columns(found.model)
    gather_unheard(found.model, always)
    inputs = found.family.inputs([square_wave(300, 0.9)])
    if architecture == "whisper":
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11]])
    found.model(**inputs).logits.square().sum().backward()
    gathered = [module for module in found.model.modules() if isinstance(module, GatheredLinear)]
    assert all(module.weight.grad is not None and module.weight.grad.abs().sum() > 0 for module in gathered)


def test_linears_stay_whole_where_it_does_not_pay() -> None:
    found = recognizer("whisper")
    empty_columns(found.model)
    assert (
        gather_unheard(found.model, lambda stack, name, inputs, kept, outputs: outputs > inputs) == 2
    )  # fc1 of both stacks
    assert gather_unheard(recognizer("whisper").model, always) == 0  # nothing is unheard


def test_only_plain_linears_of_the_residual_stream_are_gathered() -> None:
    model = recognizer("whisper").model
    stack = architecture_of(model.config).stacks[0]
    with pytest.raises(ValueError, match="not a plain linear of the residual stream"):
        gather_inputs(model, stack, 0, "fc2", [0])
    gather_inputs(model, stack, 0, "fc1", [0, 3])
    with pytest.raises(ValueError, match="not a plain linear"):
        gather_inputs(model, stack, 0, "fc1", [0])
    with pytest.raises(SottoError, match="inputs of model.encoder.layers.0.self_attn.q_proj: .* is not an ascending"):
        gather_inputs(model, stack, 0, "self_attn.q_proj", [3, 3])


def test_low_rank_after_a_gather_hears_all_channels_again(tmp_path: Path) -> None:
    found = recognizer("whisper")
    empty_columns(found.model)
    gather_unheard(found.model, always)
    clips = write_folder(tmp_path / "clips", list(PITCHES), [0.6, 0.7, 0.8, 0.9])
    smaller = sotto.compress(found, sotto.LowRank(attention=0.9, mlp=0.9, rank_multiple=1), calibration=clips)
    assert structure_of(smaller.model).layer("encoder", 0).inputs == {}
    assert structure_of(smaller.model).layer("decoder", 0).inputs != {}
    loaded = load(smaller.save(tmp_path / "model"))
    torch.testing.assert_close(scores(loaded), scores(smaller), rtol=1e-4, atol=1e-4)


def test_times_are_measured_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    times = GatherTimes(found)
    assert times.window == 125  # 10 s of frames of 80 ms
    measured: list[Any] = []
    monkeypatch.setattr("sotto.methods.gathering.is_faster", lambda *each: bool(measured.append(each)) or True)
    stack = found.architecture.stacks[0]
    assert times.pays(stack, "self_attn.q_proj", 16, 8, 24)
    assert times.pays(stack, "self_attn.v_proj", 16, 8, 24)
    assert len(measured) == ROUNDS
    assert times.pays(stack, "self_attn.relative_k_proj", 16, 8, 24)
    assert len(measured) == 2 * ROUNDS


def test_a_linear_has_to_be_faster_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    rounds = iter([True, False])
    monkeypatch.setattr("sotto.methods.gathering.is_faster", lambda *_: next(rounds))
    assert not GatherTimes(found).pays(found.architecture.stacks[0], "self_attn.q_proj", 16, 8, 24)


@pytest.mark.parametrize(
    ("architecture", "stack", "linear", "rows"),
    [
        ("whisper", 0, "fc1", 50),
        ("whisper", 1, "fc1", 1),
        ("whisper", 1, "self_attn.k_proj", 1),
        ("whisper", 1, "encoder_attn.q_proj", 1),
        ("whisper", 1, "encoder_attn.k_proj", 50),
        ("whisper", 1, "encoder_attn.v_proj", 50),
        ("parakeet", 0, "self_attn.relative_k_proj", 99),
        ("wav2vec2_conformer", 0, "self_attn.linear_pos", 99),
    ],
)
def test_rows_are_those_that_a_linear_sees(architecture: str, stack: int, linear: str, rows: int) -> None:
    assert rows_of(architecture_of(recognizer(architecture).model.config).stacks[stack], linear, 50) == rows


def test_the_faster_one_is_told() -> None:
    large, small = nn.Linear(1024, 1024), nn.Linear(16, 16)
    wide, narrow = torch.randn(256, 1024), torch.randn(1, 16)
    device = torch.device("cpu")
    assert is_faster(lambda: small(narrow), lambda: large(wide), device)
    assert not is_faster(lambda: large(wide), lambda: small(narrow), device)


def test_pruning_columns_gathers_where_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotto.methods.gathering.is_faster", lambda *each: True)
    masked, found = recognizer("whisper"), recognizer("whisper")
    settings: dict[str, Any] = {"element": 0.2, "group": 0.0}
    apply_adaptive_pruning(masked, AdaptivePruning(**settings, remove=False, gather=False), StepContext(tmp_path))
    notes = apply_adaptive_pruning(found, AdaptivePruning(**settings), StepContext(tmp_path))
    assert notes[-1] == "11 linears hear a part of their inputs only"
    torch.testing.assert_close(scores(found), scores(masked), rtol=1e-5, atol=1e-5)
