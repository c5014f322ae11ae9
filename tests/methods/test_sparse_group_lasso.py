import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conformers import make
from recognizers import ARCHITECTURES, recognizer
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.methods import QuantizationAware, SparseGroupLasso
from sotto.methods.sparse_group_lasso import SparseGroupLassoObjective
from sotto.objectives import Setting, objectives
from sotto.surgery import layer_path, linears_of
from sotto.training_recipe import read_training_recipe, train_by_recipe
from tones import PITCHES, tiny_whisper, write_folder

BATCH = {"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}  # three tokens


def built(recognizer: Recognizer, **values: Any) -> SparseGroupLassoObjective:
    config = SparseGroupLasso(**values)
    objective = objectives.handler(config)(config, Setting(recognizer.family))
    assert isinstance(objective, SparseGroupLassoObjective)
    return objective


def whisper(**changes: Any) -> Recognizer:
    return Recognizer(*tiny_whisper(**changes))


def fill(model: Any, value: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
                parameter.fill_(value)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kinds", [("column", "column"), ("row", "row"), ("head", "neuron")])
def test_one_lambda_means_the_same_at_every_size(width: int, kinds: tuple[str, str]) -> None:
    """Where all weights are equal, each term is lambda times the size of one weight, whatever the groups."""
    recognizer = whisper(d_model=width)
    fill(recognizer.model, -0.25)
    lambdas = {"encoder_element": 0.5, "decoder_element": 1.0, "encoder_group": 2.0, "decoder_group": 4.0}
    objective = built(recognizer, **lambdas, attention=kinds[0], feed_forward=kinds[1])
    terms = {name: term.item() for name, term in objective.terms(recognizer.model).items()}
    assert terms == pytest.approx({name: 0.25 * value for name, value in lambdas.items()})
    squared = built(recognizer, encoder_group=2.0, group_norm="l2_squared")
    assert squared.terms(recognizer.model)["encoder_group"].item() == pytest.approx(2.0 * 0.0625)


def test_the_term_counts_once_over_all_processes() -> None:
    recognizer = whisper()
    objective = built(recognizer, encoder_element=1.0, decoder_group=1.0)
    whole = objective(recognizer.model, BATCH, None, torch.tensor(3))
    assert whole.item() == pytest.approx(sum(term.item() for term in objective.terms(recognizer.model).values()))
    assert objective(recognizer.model, BATCH, None, torch.tensor(12)).item() == pytest.approx(whole.item() / 4)


def test_only_linears_of_the_layers_named_are_penalized() -> None:
    """No embeddings, norms, biases, convolutions or output head, and no stack that has no lambda."""
    recognizer = whisper()
    objective = built(recognizer, encoder_element=1.0, encoder_group=1.0)
    objective(recognizer.model, BATCH, None, torch.tensor(3)).backward()
    touched = {name for name, parameter in recognizer.model.named_parameters() if parameter.grad is not None}
    linears = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
    assert touched == {f"model.encoder.layers.0.{linear}.weight" for linear in linears}


@pytest.mark.parametrize("architecture", ["parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary"])
def test_conformers_are_penalized_in_the_same_way(architecture: str) -> None:
    recognizer = make(architecture)
    objective = built(recognizer, encoder_element=1.0, encoder_group=1.0, attention="head", feed_forward="neuron")
    objective(recognizer.model, BATCH, None, torch.tensor(3)).backward()
    touched = {name for name, parameter in recognizer.model.named_parameters() if parameter.grad is not None}
    assert touched
    assert not [name for name in touched if "conv" in name or "norm" in name or "bias" in name]
    with pytest.raises(SottoError, match="the model has no decoder; leave out decoder_element and decoder_group"):
        built(recognizer, decoder_group=1.0)


def test_shrinkage_gives_exact_zeros_and_the_loss_has_no_part_in_it() -> None:
    recognizer = whisper()
    model = recognizer.model
    objective = built(recognizer, encoder_element=1.0, form="proximal")
    assert objective(model, BATCH, None, torch.tensor(3)).item() == 0.0
    weight = model.model.encoder.layers[0].fc1.weight
    before, decoder = weight.detach().clone(), model.model.decoder.layers[0].fc1.weight.detach().clone()
    objective.after_step(model, 1, learning_rate=0.01)
    torch.testing.assert_close(weight.detach(), before.sign() * (before.abs() - 0.01).clamp(min=0))
    assert (weight == 0).any()
    assert torch.equal(model.model.decoder.layers[0].fc1.weight, decoder)


def test_weights_shrink_while_they_are_rounded() -> None:
    recognizer = whisper()
    model = recognizer.model
    before = model.model.encoder.layers[0].fc1.weight.detach().clone()
    rounded = objectives.handler(QuantizationAware())(QuantizationAware(), Setting(recognizer.family))
    objective = built(recognizer, encoder_element=1.0, form="proximal")
    with rounded.attached(model):
        objective.after_step(model, 1, learning_rate=0.01)
    after = model.model.encoder.layers[0].fc1.weight.detach()
    torch.testing.assert_close(after, before.sign() * (before.abs() - 0.01).clamp(min=0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linears_of_the_layers_are_penalized_and_nothing_else(architecture: str) -> None:
    found = recognizer(architecture)
    objective = built(found, **{f"{stack.name}_element": 1.0 for stack in found.architecture.stacks})
    sum(objective.terms(found.model).values()).backward()  # type: ignore[union-attr]
    penalized = {name for name, weight in found.model.named_parameters() if weight.grad is not None}
    layers = [f"{layer_path(*place)}.weight" for place in linears_of(found.model)]
    assert penalized == set(layers)


def test_groups_that_are_shorter_than_the_shrinkage_go_as_a_whole() -> None:
    recognizer = whisper()
    model = recognizer.model
    fill(model, 0.1)
    layer = model.model.encoder.layers[0]
    with torch.no_grad():
        layer.fc1.weight[5] = 0.01
        layer.fc2.weight[:, 5] = 0.01  # a neuron of 64 weights, of length 0.08, which sqrt(64) * 0.02 is more than
    objective = built(recognizer, encoder_group=1.0, feed_forward="neuron", form="proximal")
    objective.after_step(model, 1, learning_rate=0.02)
    empty = (layer.fc1.weight == 0).all(1) & (layer.fc2.weight == 0).all(0)
    assert empty.nonzero().flatten().tolist() == [5]
    logged = objective.logged(model)
    assert logged["encoder.0_empty_groups"] == pytest.approx(64 / (2 * 32 * 128 + 4 * 32 * 32))
    assert logged["encoder.0_zero"] == pytest.approx(logged["encoder.0_empty_groups"])
    assert objective.parts(model)["encoder_group"] > 0  # also where it is no part of the loss


def test_near_zeros_are_told_from_zeros() -> None:
    recognizer = whisper()
    fill(recognizer.model, 1.0)
    with torch.no_grad():
        recognizer.model.model.encoder.layers[0].fc1.weight[:2] = torch.tensor([[0.0], [1e-5]])
    logged = built(recognizer, encoder_element=1.0).logged(recognizer.model)
    all_weights = 2 * 32 * 128 + 4 * 32 * 32
    assert logged["encoder.0_zero"] == pytest.approx(32 / all_weights)
    assert logged["encoder.0_near_zero"] == pytest.approx(64 / all_weights)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give at least one of encoder_element, decoder_element, encoder_group, decoder_group"),
        ({"encoder_element": 1.0, "group_norm": "l2_squared"}, "group_norm is of the group terms; give encoder_group"),
        ({"encoder_group": -1.0}, "encoder_group must not be negative, found -1.0"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        SparseGroupLasso(**values)


def recipe(folder: Path, settings: Mapping[str, Any]) -> Path:
    write_folder(folder / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    whisper().save(folder / "base")
    values = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "hold_out": 1},
        "training": {"steps": 6, "batch_size": 3, "evaluate_every": 3, "log_every": 1, "workers": 0},
        "language": "en",
        "objectives": [{"sparse_group_lasso": dict(settings)}],
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    return folder / "train.yaml"


def trained(folder: Path, settings: Mapping[str, Any]) -> tuple[Any, list[dict[str, float]]]:
    train_by_recipe(read_training_recipe(recipe(folder, settings)), folder, folder / "run")
    log = yaml.safe_load((folder / "run" / "log.json").read_text())
    return load(folder / "run" / "model").model, [entry for entry in log if "loss" in entry]


def test_fine_tuning_with_shrinkage_leaves_zeros_in_the_saved_model(tmp_path: Path) -> None:
    model, log = trained(tmp_path, {"encoder_element": 5.0, "form": "proximal"})
    weight = model.model.encoder.layers[0].fc1.weight
    assert 0.05 < (weight == 0).float().mean() < 1
    assert (model.model.decoder.layers[0].fc1.weight == 0).sum() == 0
    assert log[-1]["encoder.0_zero"] > log[0]["encoder.0_zero"] > 0


def test_the_terms_stand_in_the_log_beside_the_cross_entropy(tmp_path: Path) -> None:
    _, log = trained(tmp_path, {"encoder_element": 1.0, "decoder_group": 2.0})
    for entry in log:
        for term in ("encoder_element", "decoder_group", "sparse_group_lasso"):
            assert entry[f"{term}_ratio"] == pytest.approx(entry[term] / entry["cross_entropy"], rel=0.05)
        terms = entry["encoder_element"] + entry["decoder_group"]
        assert entry["sparse_group_lasso"] == pytest.approx(terms, rel=0.05)  # before and after the step
        assert math.isfinite(entry["cross_entropy"])
        assert entry["encoder.0_zero"] == 0.0
    assert log[-1]["encoder_element"] < log[0]["encoder_element"]
