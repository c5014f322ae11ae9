"""Layerwise distillation: matching and errors by hand, what counts, and teachers that cannot be."""

from typing import Any

import pytest
import torch

from conformers import make
from mixed_shapes import mixed
from recognizers import recognizer
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.examples import Batch, Example
from sotto.methods import LayerwiseDistillation
from sotto.methods.layer_matching import identical, ordered
from sotto.methods.layerwise_distillation import (
    LayerwiseDistillationObjective,
    Outputs,
    keeping_outputs,
    relative_error,
)
from sotto.objectives import Setting, objectives
from sotto.surgery import keep_layers, narrow_ffn
from tones import PITCHES, square_wave, tiny_whisper

BOTH = ["whisper", "parakeet", "wav2vec2_conformer"]


def test_layers_of_a_common_base_belong_together() -> None:
    assert identical([0, 1, 2, 3], [0, 1, 2, 3]) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert identical([0, 1, 2, 3], [1, 3]) == [(1, 0), (3, 1)]
    assert identical([0, 2], [1, 2]) == [(1, 1)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([[1.0, 9.0, 9.0], [9.0, 1.0, 9.0], [9.0, 9.0, 1.0]], [(0, 0), (1, 1), (2, 2)]),
        ([[1.0, 9.0, 9.0], [0.5, 1.0, 9.0], [9.0, 1.0, 2.0]], [(1, 0), (2, 1)]),  # nothing is left for the first
        ([[9.0, 9.0, 1.0], [9.0, 9.0, 1.0]], [(0, 0), (1, 2)]),  # the nearest to the first is taken, and so is above
    ],
)
def test_ordered_matches_by_hand(errors: list[list[float]], expected: list[tuple[int, int]]) -> None:
    assert ordered(torch.tensor(errors)) == expected


def test_errors_are_relative_to_the_spread_of_the_teacher_by_hand() -> None:
    wanted = torch.tensor([[1.0, 10.0], [3.0, 10.0]])  # variance (1 + 0) / 2 around its mean
    own = torch.tensor([[1.0, 11.0], [3.0, 9.0]])
    assert relative_error(own, wanted).item() == pytest.approx(0.5 / 0.5)
    assert relative_error(100 * own, 100 * wanted).item() == pytest.approx(1.0)


def built(found: Recognizer, teacher: Recognizer | None = None, **values: Any) -> LayerwiseDistillationObjective:
    config = LayerwiseDistillation(None if teacher is None else "teacher", **values)
    objective = objectives.handler(config)(config, Setting(found.family, lambda _: teacher))  # type: ignore[arg-type,return-value]
    assert isinstance(objective, LayerwiseDistillationObjective)
    return objective


AUDIO = [square_wave(300, 0.9), square_wave(700, 0.5)]


def batch_for(found: Recognizer) -> Batch:
    text = next(iter(PITCHES))
    return found.family.collator("en")([Example(samples, text, "en", None) for samples in AUDIO])


def term(found: Recognizer, objective: LayerwiseDistillationObjective) -> torch.Tensor:
    batch = batch_for(found)
    with objective.attached(found.model):
        outputs, _ = found.family.loss(batch, 0.0)
        return objective(found.model, batch, outputs, (batch["labels"] != -100).sum())


@pytest.mark.parametrize("architecture", BOTH)
def test_a_model_has_nothing_to_learn_from_itself(architecture: str) -> None:
    found = recognizer(architecture)
    assert term(found, built(found)).item() == pytest.approx(0.0, abs=1e-6)
    assert not found.model._forward_hooks
    assert all(not module._forward_hooks for module in found.model.modules())


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("matching", ["identity", "ordered"])
def test_gradients_reach_what_was_changed_and_not_the_teacher(architecture: str, matching: Any) -> None:
    found = Recognizer(*tiny_whisper(start="scaled")) if architecture == "whisper" else recognizer(architecture)
    found.model.eval()
    objective = built(found, matching=matching)
    stack = found.architecture.stacks[0]
    narrow_ffn(found.model, stack, 0, stack.feed_forwards[0], range(3))
    loss = term(found, objective)
    loss.backward()
    assert loss.item() > 1e-4
    up = found.model.get_submodule(f"{stack.layers}.0.{stack.feed_forwards[0].up}")
    assert up.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in objective.teacher.model.parameters())
    assert list(objective.parameters()) == []
    for part, other in [("layers", "logits"), ("logits", "layers")]:
        alone = built(found, Recognizer(objective.teacher.model, found.processor), **{part: 0.0})
        assert 0 < term(found, alone).item() < loss.item() * 1.001, other


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
def test_the_weights_and_means_of_its_terms_by_hand(architecture: str) -> None:
    """Two layers or more, one stack or two, and a batch that is half of the tokens of a step."""
    found = Recognizer(*tiny_whisper(encoder_layers=3)) if architecture == "whisper" else make("parakeet")
    teacher = found.copy()
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    objective = built(found, teacher, layers=7.0, logits=0.5, temperature=2.0)
    batch = batch_for(found)
    states = [states_of(each, batch) for each in (found, teacher)]
    outputs, wanted = (each.family.loss(batch, 0.0)[0] for each in (found, teacher))
    counted = found.family.counted_positions(batch, outputs)
    errors = []
    for stack in found.architecture.stacks:
        own, taught = ([each[counted[stack.name]] for each in side[stack.name]] for side in states)
        errors.append(sum(map(relative_error, own, taught)) / len(own))
    decided = counted[found.architecture.stacks[-1].name]
    soft, of_teacher = ((each.logits[decided] / 2).log_softmax(-1) for each in (outputs, wanted))
    divergence = 4 * (of_teacher.exp() * (of_teacher - soft)).sum()
    tokens = 2 * (batch["labels"] != -100).sum()
    expected = 7.0 * (sum(errors) / len(errors)) / 2 + 0.5 * divergence / tokens
    with objective.attached(found.model):
        again, _ = found.family.loss(batch, 0.0)
        found_term = objective(found.model, batch, again, tokens).item()
    assert found_term == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def states_of(found: Recognizer, batch: Batch) -> dict[str, list[torch.Tensor]]:
    """What the layers of every stack give."""
    kept: Outputs = {}
    with keeping_outputs(found.model, found.architecture.stacks, kept):
        found.family.loss(batch, 0.0)
    return {stack: [layers[index] for index in sorted(layers)] for stack, layers in kept.items()}


@pytest.mark.parametrize("architecture", BOTH)
def test_a_model_that_another_method_changed_learns_from_what_it_was(architecture: str) -> None:
    dense = Recognizer(*tiny_whisper(start="scaled")) if architecture == "whisper" else recognizer(architecture)
    changed = mixed(dense.copy())
    loss = term(changed, built(changed, dense))
    loss.backward()
    assert loss.item() > 1e-4
    for name in ("first", "second"):  # of a factored linear
        parts = [each.weight for path, each in changed.model.named_modules() if path.endswith(f".{name}")]
        assert parts
        assert all(weight.grad.isfinite().all() for weight in parts)
        assert any(weight.grad.abs().sum() > 0 for weight in parts)


def test_layers_are_matched_with_the_nearest_in_order() -> None:
    objective = built(make("parakeet"), matching="ordered")
    (stack,) = objective.stacks
    generator = torch.Generator().manual_seed(0)
    wanted = {layer: torch.randn(5, 16, generator=generator) for layer in range(3)}
    own = {0: wanted[1] + 0.1, 1: wanted[2] + 0.1}
    assert objective.matches(stack, own, wanted) == [(1, 0), (2, 1)]


def test_what_is_padding_does_not_count() -> None:
    found = make("wav2vec2_conformer")
    teacher = found.copy()
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    objective = built(found, teacher, layers=0.0, logits=1.0, temperature=1.0)
    expected = 0.0
    for samples in AUDIO:
        inputs = found.family.inputs([samples])
        with torch.no_grad():
            wanted, own = (each.family.logits(inputs).log_softmax(-1) for each in (teacher, found))
        expected += (wanted.exp() * (wanted - own)).sum().item()
    found_term = term(found, objective).item() * int((batch_for(found)["labels"] != -100).sum())
    assert found_term == pytest.approx(expected, rel=0.05)  # a clip beside a longer one differs at its end


def test_padding_does_not_count_in_the_error_of_layers() -> None:
    found = make("parakeet")
    objective = built(found, found.copy(), logits=0.0)
    taught: Any = {"encoder": {0: torch.randn(2, 6, 16), 1: torch.randn(2, 6, 16)}}
    (stack,) = found.architecture.stacks
    counted = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    own = {layer: states + 0.1 for layer, states in taught["encoder"].items()}
    objective.outputs = {"encoder": own}
    with objective.attached(found.model):
        before = objective.error(stack, taught, counted)
        own[0][1, 3:] = 99.0
        torch.testing.assert_close(objective.error(stack, taught, counted), before)
        own[0][1, 2] = 99.0
        assert objective.error(stack, taught, counted) > 2 * before


def test_layers_that_are_left_out_in_training_are_not_those_of_an_earlier_pass() -> None:
    found = make("parakeet")
    objective = built(found)
    batch = batch_for(found)
    longer = found.family.inputs([square_wave(300, 2.0)])
    with objective.attached(found.model):
        with torch.no_grad():
            found.model(**longer)  # as validation does
        encoder = found.model.get_encoder()
        encoder.layerdrop = 1.0
        found.model.train()
        outputs, _ = found.family.loss(batch, 0.0)
        assert objective.outputs == {}
        assert objective(found.model, batch, outputs, torch.tensor(4)).isfinite()


def test_a_narrower_student_learns_through_a_projection() -> None:
    wide, narrow = (Recognizer(*tiny_whisper(d_model=width)) for width in (32, 16))
    objective = built(narrow, wide)
    assert {name for name, _ in objective.named_parameters()} == {
        f"projections.{stack}.{part}" for stack in ("encoder", "decoder") for part in ("weight", "bias")
    }
    term(narrow, objective).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_layers_that_are_gone_are_not_matched() -> None:
    found = Recognizer(*tiny_whisper(encoder_layers=3))
    objective = built(found)
    encoder = found.architecture.stack("encoder")
    keep_layers(found.model, encoder, [0, 2])
    assert term(found, objective).isfinite()
    assert objective.same["encoder"] == [(0, 0), (2, 1)]
    seen = {layer: torch.zeros(1) for layer in range(2)}
    assert objective.matches(encoder, seen, {layer: torch.zeros(1) for layer in range(3)}) == [(0, 0), (2, 1)]
    del seen[0]  # left out by the family's own layerdrop
    assert objective.matches(encoder, seen, seen) == [(2, 1)]


def test_teachers_that_cannot_be() -> None:
    whisper, parakeet = recognizer("whisper"), recognizer("parakeet")
    with pytest.raises(SottoError, match="the teacher 'teacher' is of another family than the student"):
        built(whisper, parakeet)
    other = Recognizer(*tiny_whisper(vocabulary=257))
    with pytest.raises(SottoError, match="the teacher 'teacher' has another vocabulary than the student"):
        built(whisper, other)
    deep = Recognizer(*tiny_whisper(encoder_layers=3))
    with pytest.raises(
        SottoError, match=r"not come from the same model .* 'teacher': 1 layers once, and 3; use matching"
    ):
        built(Recognizer(*tiny_whisper()), deep)
    first, last = (Recognizer(*tiny_whisper(encoder_layers=2)) for _ in range(2))
    keep_layers(first.model, first.architecture.stack("encoder"), [0])
    keep_layers(last.model, last.architecture.stack("encoder"), [1])
    with pytest.raises(SottoError, match="no layer of the encoder is one of 'teacher'; use matching: ordered"):
        built(last, first)
    assert built(last, first, matching="ordered") is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 0.0, "matching": "ordered"}, "matching says which layers teach which; give layers a weight"),
        ({"layers": 0.0, "logits": 0.0}, "layers and logits must not be negative, and one of them positive"),
        ({"layers": -1.0}, "layers and logits must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        LayerwiseDistillation(**values)
