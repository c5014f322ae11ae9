import os
import signal
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sotto
from recognizers import ARCHITECTURES, recognizer
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.methods import (
    FineTuning,
    HoldZeros,
    MagnitudePruning,
    QuantizationAware,
    SparseGroupLasso,
    StepContext,
    StructuredMagnitude,
    methods,
)
from sotto.methods.hold_zeros import plain_weights
from sotto.methods.magnitude import zero_least_groups
from sotto.methods.sparse_group_lasso import SparseGroupLassoObjective
from sotto.objectives import Setting, objectives
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import drop_module, factor, layers_of, structure_of
from sotto.training import Training
from tones import PITCHES, square_wave, write_folder

SHORT: dict[str, Any] = {"batch_size": 2, "evaluate_every": 1, "workers": 0, "learning_rate": 1e-3}


def apply(found: Recognizer, config: Any, folder: Path, **context: Any) -> list[str]:
    return methods.handler(config)(found, config, StepContext(folder, **context))


def zero_share(model: Any, stack: str = "") -> float:
    weights = [weight for path, weight in plain_weights(model).items() if stack in path]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_matrix_loses_the_share_or_all_together(scope: Any, tmp_path: Path) -> None:
    found = recognizer("whisper")
    with torch.no_grad():
        found.model.model.encoder.layers[0].fc1.weight.mul_(100)
    apply(found, MagnitudePruning(0.4, scope, remove=False), tmp_path)
    zeros = {path: float((weight == 0).float().mean()) for path, weight in plain_weights(found.model).items()}
    if scope == "layer":
        assert all(share == pytest.approx(0.4, abs=0.001) for share in zeros.values())
    else:
        assert zeros["model.encoder.layers.0.fc1"] == pytest.approx(0.0, abs=0.02)
        assert max(zeros.values()) > 0.45


@pytest.mark.parametrize(
    ("scope", "first", "second"),
    [("layer", [0.0, 2.0], [0.0, 40.0]), ("global", [0.0, 2.0], [20.0, 40.0])],
)
def test_groups_of_the_least_norm_by_hand(scope: Any, first: list[float], second: list[float]) -> None:
    """Of all four columns half would go, but the largest of a set stays."""
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[20.0, 40.0]])]
    zero_least_groups([([(weight, 1)], 2) for weight in weights], 0.5, scope)
    assert [weight[0].tolist() for weight in weights] == [first, second]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_shot_zeroes_the_share_asked_for(architecture: str, scope: Any, tmp_path: Path) -> None:
    found = recognizer(architecture)
    notes = apply(found, MagnitudePruning(0.4, scope, remove=False), tmp_path)
    assert notes == ["40.0% pruned at once"]
    assert zero_share(found.model) == pytest.approx(0.4, abs=0.01)
    assert zero_share(load(found.save(tmp_path / "model")).model) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_heads_and_neurons_go(architecture: str, tmp_path: Path) -> None:
    found = recognizer(architecture)
    heads = 0.0 if architecture == "wav2vec2_conformer_rotary" else 0.5
    apply(found, StructuredMagnitude(heads=heads, neurons=0.5), tmp_path)
    for layer in structure_of(found.model).stacks["encoder"].layers:
        assert all(len(heads) == (1 if architecture == "whisper" else 2) for heads in layer.heads.values())
        assert bool(layer.heads) == (architecture != "wav2vec2_conformer_rotary")  # which cannot lose heads
        full = 128 if architecture == "whisper" else 24
        assert layer.ffn_widths
        assert all(width == full // 2 for width in layer.ffn_widths.values())
    inputs = found.family.with_transcript(found.family.inputs([square_wave(300, 0.9)]))
    with torch.no_grad():
        assert found.family.logits(inputs).isfinite().all()


def test_heads_that_cannot_go_are_left_as_they_are(tmp_path: Path) -> None:
    found = recognizer("wav2vec2_conformer_rotary")
    with pytest.raises(SottoError, match="attention with rotary positions keeps its heads; leave out heads"):
        apply(found, StructuredMagnitude(heads=0.5), tmp_path)
    assert zero_share(found.model) == 0.0


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_comes_before_low_rank(scope: Any, tmp_path: Path) -> None:
    found = recognizer("whisper")
    stack = found.architecture.stack("encoder")
    factor(found.model, stack, 0, "fc1", torch.ones(2, 32), torch.ones(128, 2), torch.zeros(128))
    with pytest.raises(SottoError, match="fc1 is factored; sparsity comes before low rank, or without it"):
        apply(found, MagnitudePruning(0.4, scope), tmp_path)


def test_one_stack_can_be_left_alone(tmp_path: Path) -> None:
    found = recognizer("whisper")
    apply(found, MagnitudePruning(0.5, stacks=("decoder",)), tmp_path)
    assert zero_share(found.model, ".encoder.") == 0.0
    assert zero_share(found.model, ".decoder.") > 0.4


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_has_no_linears_cannot_be_pruned(scope: Any, tmp_path: Path) -> None:
    found = recognizer("whisper")
    for stack, layer in layers_of(found.model):
        for module in stack.modules if stack.name == "encoder" else ():
            drop_module(found.model, stack, layer, module)
    with pytest.raises(SottoError, match="magnitude_pruning: there are no linears left in the layers of encoder"):
        apply(found, MagnitudePruning(0.5, scope, stacks=("encoder",)), tmp_path)
    lasso = SparseGroupLasso(encoder_element=1.0)
    with pytest.raises(SottoError, match="sparse_group_lasso: there are no linears left in the layers of encoder"):
        objectives.handler(lasso)(lasso, Setting(found.family))
    with pytest.raises(SottoError, match="stacks must name encoder, decoder or both"):
        apply(found, MagnitudePruning(0.5, stacks=()), tmp_path)


def test_zeros_are_held_while_the_rest_is_trained() -> None:
    found = recognizer("whisper")
    with torch.no_grad():
        for weight in plain_weights(found.model).values():
            weight[0] = 0.0
    held = objectives.handler(HoldZeros())(HoldZeros(), Setting(found.family))
    with torch.no_grad():
        for weight in plain_weights(found.model).values():
            weight.add_(1.0)
    held.after_step(found.model, 1, 0.1)
    for weight in plain_weights(found.model).values():
        assert (weight[0] == 0).all()
        assert (weight[1:] != 0).any()
    assert held.state_dict()  # a resumed run holds the same pattern


@pytest.mark.parametrize("first", ["hold_zeros", "quantization_aware"])
def test_zeros_are_held_while_weights_are_rounded(first: str) -> None:
    found = recognizer("whisper")
    weight = found.model.model.encoder.layers[0].fc1.weight
    with torch.no_grad():
        weight[0] = 0.0
    settings = sorted([HoldZeros(), QuantizationAware()], key=lambda each: objectives.name_of(each) != first)
    terms = [objectives.handler(each)(each, Setting(found.family)) for each in settings]
    with ExitStack() as attached:
        for term in terms:
            attached.enter_context(term.attached(found.model))
        with torch.no_grad():
            weight.add_(1.0)
        for term in terms:
            term.after_step(found.model, 1, 0.1)
    after = found.model.model.encoder.layers[0].fc1.weight
    assert (after[0] == 0).all()
    assert (after[1:] != 0).any()


def test_held_weights_have_no_gradients_while_they_are_held() -> None:
    found = recognizer("whisper")
    weight = found.model.model.encoder.layers[0].fc1.weight
    with torch.no_grad():
        weight[0] = 0.0
    held = objectives.handler(HoldZeros())(HoldZeros(), Setting(found.family))
    for within in (True, False):
        weight.grad = None
        with held.attached(found.model) if within else nullcontext():
            weight.sum().backward()
        assert weight.grad is not None
        assert weight.grad[0].abs().sum() == (0 if within else 32)
        assert (weight.grad[1:] == 1).all()


def test_rounds_of_pruning_and_recovery_in_a_recipe(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    recognizer("whisper").save(tmp_path / "base")
    recovery = {"training": {**SHORT, "steps": 5}}
    step = {"share": 0.5, "rounds": 2, "recovery": recovery, "remove": False}
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [{"magnitude_pruning": step}],
    }
    numbers = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    notes = numbers.models[-1].notes
    assert [note.split(",")[0] for note in notes] == ["round 1: 29.3% pruned", "round 2: 50.0% pruned"]
    pruned, base = (load(tmp_path / name).model for name in ("run/model", "base"))
    assert zero_share(pruned) == pytest.approx(0.5, abs=0.01)
    assert (pruned.model.decoder.embed_tokens.weight - base.model.decoder.embed_tokens.weight).abs().max() > 0
    work = tmp_path / "run" / "steps" / "1-magnitude_pruning" / "work"
    assert sorted(path.name for path in work.iterdir()) == ["round-1", "round-2"]
    assert (work / "round-1" / "checkpoint-2").is_dir()
    assert (work / "round-2" / "checkpoint-3").is_dir()


def test_fine_tuning_is_a_step_with_terms_of_its_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    recognizer("whisper").save(tmp_path / "base")
    terms = [{"sparse_group_lasso": {"encoder_element": 20.0, "form": "proximal"}}]
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [{"fine_tuning": {"training": {**SHORT, "steps": 3}, "objectives": [*terms, "hold_zeros"]}}],
    }
    numbers = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    assert numbers.models[-1].notes[0].startswith("trained for 3 steps; validation WER")
    echoed = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["steps"][0]["fine_tuning"]["objectives"]
    assert echoed[0]["sparse_group_lasso"]["encoder_element"] == 20.0
    assert echoed[0]["sparse_group_lasso"]["attention"] == "column"  # a default
    assert echoed[1] == {"hold_zeros": {}}
    assert zero_share(load(tmp_path / "run" / "model").model, ".encoder.") > 0.1


def test_a_step_learns_from_a_list_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "first", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "second", ["one", "two"], [0.55, 0.65])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    recognizer("whisper").save(tmp_path / "base")
    recipe: dict[str, Any] = {
        "base": "base",
        "data": {
            "train": [{"path": "first"}, {"path": "second"}, {"path": "second"}],
            "validation": {"path": "validation"},
        },
        "language": "en",
        "steps": [{"fine_tuning": {"training": {**SHORT, "steps": 2}, "transcripts_from": "base"}}],
    }
    heard: list[int] = []

    def noted(family: Any, training: Any, *, training_data: Any, **_: Any) -> list[dict[str, float]]:
        heard.append(len(training_data))
        return [{"step": 2, "eval_wer": 0.5}]

    monkeypatch.setattr("sotto.methods.fine_tuning.train", noted)
    monkeypatch.setattr(
        "sotto.methods.fine_tuning.transcribed",
        lambda source, teacher, language, path, *_: source.with_texts(
            {each.name: path.stem for each in source.references}
        ),
    )
    carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    assert heard == [8]
    inputs = yaml.safe_load((tmp_path / "run" / "inputs.json").read_text())
    assert len(inputs["train"].split()) == 3
    recipe["data"]["train"][1]["path"] = "validation"
    with pytest.raises(SottoError, match="train and validation share a clip|validation and train share a clip"):
        carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "other", print)
    recipe["data"]["train"] = []
    with pytest.raises(SottoError, match=r"data.train is an empty list; name a folder, or leave it out"):
        parse_recipe(recipe, "recipe.yaml")


KILLED = """
import os, signal, sys
import transformers

save = transformers.Trainer._save_rng_state

def die(self, folder):
    if "checkpoint-4" in folder:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)

transformers.Trainer._save_rng_state = die
from sotto.cli import main
sys.argv[0] = "sotto"
main()
"""


def test_a_penalised_step_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    recognizer("whisper").save(tmp_path / "base")
    term = {"sparse_group_lasso": {"encoder_element": 20.0, "form": "proximal"}}
    training = {**SHORT, "steps": 6, "evaluate_every": 2, "keep": "last"}
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [{"fine_tuning": {"training": training, "objectives": [term]}}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = ["compress", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *told], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    work = tmp_path / "killed" / "steps" / "1-fine_tuning" / "work"
    assert (work / "checkpoint-2").is_dir()
    taken: list[int] = []
    after = SparseGroupLassoObjective.after_step

    def noted(objective: SparseGroupLassoObjective, model: Any, step: int, learning_rate: float) -> None:
        taken.append(step)
        after(objective, model, step, learning_rate)

    monkeypatch.setattr(SparseGroupLassoObjective, "after_step", noted)
    for name in ("killed", "whole"):
        carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / name, print)
    assert taken == [3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    resumed, whole = (load(tmp_path / name / "model").model.state_dict() for name in ("killed", "whole"))
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, msg=name)
    assert zero_share(load(tmp_path / "whole" / "model").model, ".encoder.") > 0.1


def test_the_rounds_share_the_training_out_and_differ_in_their_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[Training] = []
    monkeypatch.setattr(
        "sotto.methods.magnitude.fine_tune", lambda found, config, *rest: trainings.append(config.training) or 0.5
    )
    recovery = FineTuning(Training(steps=10, warmup_steps=5, evaluate_every=100, seed=7))
    apply(recognizer("whisper"), MagnitudePruning(0.5, rounds=4, recovery=recovery), tmp_path)
    assert [training.steps for training in trainings] == [2, 3, 2, 3]
    assert [training.warmup_steps for training in trainings] == [1, 1, 1, 1]
    assert [training.seed for training in trainings] == [7, 8, 9, 10]
    assert all(training.evaluate_every == training.steps for training in trainings)


def test_steps_from_python_train_each_for_themselves(tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    validation = write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    training = Training(**SHORT, steps=2)
    smaller = sotto.compress(
        recognizer("whisper"),
        FineTuning(training, objectives=(sotto.SparseGroupLasso(encoder_group=1.0),)),
        MagnitudePruning(0.5, remove=False),
        FineTuning(training, objectives=(HoldZeros(),)),
        sotto.AdaptivePruning(search_steps=1),
        train=[clips, clips],
        validation=validation,
        language="en",
    )
    assert zero_share(smaller.model) >= 0.5 - 0.01


def test_an_unfinished_training_within_a_step_is_not_thrown_away(tmp_path: Path) -> None:
    recognizer("whisper").save(tmp_path / "base")
    recipe = parse_recipe({"base": "base", "steps": [{"magnitude_pruning": {"share": 0.5}}]}, "recipe.yaml")
    carry_out(recipe, tmp_path, tmp_path / "run", print)
    (tmp_path / "run" / "steps" / "1-magnitude_pruning" / "numbers.json").unlink()
    (tmp_path / "run" / "steps" / "1-magnitude_pruning" / "work" / "round-1" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(SottoError, match="holds a run of another recipe"):
        carry_out(replace(recipe, title="another"), tmp_path, tmp_path / "run", print)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MagnitudePruning(1.0), "share must be between 0 and 1, found 1.0"),
        (lambda: MagnitudePruning(0.5, rounds=0), "rounds must be at least 1, found 0"),
        (lambda: MagnitudePruning(0.5, rounds=3), "rounds without recovery in between are one round"),
        (
            lambda: MagnitudePruning(0.5, rounds=3, recovery=FineTuning(Training(2))),
            "recovery has 2 steps for 3 rounds; give more",
        ),
        (StructuredMagnitude, "give heads, neurons or both"),
        (lambda: StructuredMagnitude(heads=1.0), "heads must be at least 0 and below 1, found 1.0"),
        (lambda: FineTuning(Training(2), objectives=({"ctx": {}},)), "unknown objective 'ctx'; did you mean 'ctc'?"),
    ],
)
def test_settings_are_checked(build: Any, message: str) -> None:
    with pytest.raises(SottoError, match=message.replace("?", r"\?")):
        build()


def test_training_in_a_recipe_needs_the_language(tmp_path: Path) -> None:
    recognizer("whisper").save(tmp_path / "base")
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "clips"}},
        "steps": [{"fine_tuning": {"training": {"steps": 2}}}],
    }
    with pytest.raises(SottoError, match="fine_tuning trains, and needs the language of the clips; give language"):
        carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)


def test_recovery_needs_data(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match=r"fine-tuning needs data.train, data.validation and language"):
        apply(recognizer("whisper"), FineTuning(Training(1)), tmp_path)
    recipe = {"base": "base", "steps": [{"magnitude_pruning": {"share": 0.5, "recovery": {"training": {"steps": 2}}}}]}
    recognizer("whisper").save(tmp_path / "base")
    with pytest.raises(SottoError, match=r"magnitude_pruning needs data.train; give it a folder of audio"):
        carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
