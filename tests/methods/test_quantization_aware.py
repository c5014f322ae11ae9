from pathlib import Path
from typing import Any

import pytest
import torch

from recognizers import ARCHITECTURES, recognizer, scores
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.methods import Quantization, QuantizationAware, StepContext, methods
from sotto.methods.layer_differences import first_weights
from sotto.methods.quantization_aware import QuantizationAwareObjective, Rounded
from sotto.objectives import Setting, objectives
from sotto.quantization_math import fake_quantized
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import factor, parts_of
from stopped_runs import checkpoint_times, stopped_in_training
from tones import PITCHES, write_folder

SHORT: dict[str, Any] = {"batch_size": 2, "workers": 0, "learning_rate": 1e-3, "log_every": 1}


def built(found: Recognizer, **settings: Any) -> QuantizationAwareObjective:
    config = QuantizationAware(**settings)
    objective = objectives.handler(config)(config, Setting(found.family))
    assert isinstance(objective, QuantizationAwareObjective)
    return objective


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scales", ["tensor", "channel", "block"])
def test_a_model_in_training_computes_as_it_will_when_quantized(architecture: str, scales: Any) -> None:
    found, rounded = recognizer(architecture), recognizer(architecture)
    before = scores(found)
    config = Quantization(bits=4, scales=scales, dynamic=False)
    methods.handler(config)(rounded, config, StepContext(Path()))
    objective = built(found, bits=4, scales=scales)
    with objective.attached(found.model):
        torch.testing.assert_close(scores(found), scores(rounded), rtol=1e-4, atol=1e-4)
        assert 0 < objective.logged(found.model)["rounding_error"] < 0.3
    assert torch.equal(scores(found), before)
    assert not any(isinstance(module, Rounded) for module in found.model.modules())


def test_the_table_of_tokens_and_the_head_stay_one(tmp_path: Path) -> None:
    found, rounded = recognizer("whisper"), recognizer("whisper")
    config = Quantization(dynamic=False, embedding_bits=4)
    methods.handler(config)(rounded, config, StepContext(Path()))
    with built(found, embedding_bits=4).attached(found.model):
        torch.testing.assert_close(scores(found), scores(rounded), rtol=1e-4, atol=1e-4)
        found.model(**batch(found)).logits.square().sum().backward()
    model = found.model
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert model.proj_out.weight.grad.norm() > 0
    found.save(tmp_path / "model")


def test_the_error_of_a_table_that_is_the_head_too_counts_once() -> None:
    found = recognizer("whisper")
    objective = built(found, embedding_bits=4)
    weights = {path: found.model.get_submodule(path).weight.detach() for path in objective.rounded}
    weights.pop("proj_out")
    rounded = {path: fake_quantized(weight, objective.rounded[path], "channel") for path, weight in weights.items()}
    changed = sum((rounded[path] - weight).square().sum() for path, weight in weights.items())
    expected = (changed / sum(weight.square().sum() for weight in weights.values())).sqrt().item()
    with objective.attached(found.model):
        assert objective.logged(found.model)["rounding_error"] == pytest.approx(expected, rel=1e-5)


def batch(found: Recognizer) -> Any:
    inputs = found.family.inputs([torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy()])
    return {**inputs, "decoder_input_ids": torch.tensor([[1, 5, 9]])}


def test_gradients_are_those_of_the_weights_as_they_are() -> None:
    found = recognizer("whisper")
    linear = found.model.model.encoder.layers[0].fc1
    x, weight = torch.randn(3, linear.in_features), linear.weight
    with built(found, bits=4).attached(found.model):
        linear(x).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand_as(weight))


def test_both_factors_of_a_linear_are_rounded() -> None:
    found = recognizer("whisper")
    stack = found.architecture.stacks[0]
    factor(found.model, stack, 0, "fc1", torch.randn(4, 32), torch.randn(128, 4), torch.zeros(128))
    before = {path: part.weight.clone() for path, part in parts_of(found.model, stack, 0, "fc1").items()}
    with built(found, bits=4).attached(found.model):
        for path, weight in before.items():
            found_weight: Any = found.model.get_submodule(path).weight
            torch.testing.assert_close(found_weight, fake_quantized(weight, 4, "channel"))
    assert len(before) == 2


def test_weights_are_compared_as_they_are_trained() -> None:
    found = recognizer("whisper")
    stack = found.architecture.stacks[0]
    factor(found.model, stack, 0, "fc1", torch.randn(4, 32), torch.randn(128, 4), torch.zeros(128))
    before = first_weights(found.model, stack)
    with built(found, bits=4).attached(found.model):
        for index, layer in first_weights(found.model, stack).items():
            assert torch.equal(layer["ffn"], before[index]["ffn"])


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
def test_training_for_quantization_and_quantization_in_one_recipe(architecture: str, tmp_path: Path) -> None:
    """What was measured in training is what is then stored; and an interrupted training goes on where it was."""
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    recognizer(architecture).save(tmp_path / "base")
    places = {"bits": 4, "scales": "block"} | ({"embedding_bits": 8} if architecture == "whisper" else {})

    training = {**SHORT, "steps": 4, "evaluate_every": 2, "keep": "last", "schedule": "constant"}
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [
            {"fine_tuning": {"training": training, "objectives": [{"quantization_aware": places}]}},
            {"quantization": places},
        ],
    }
    parsed = parse_recipe(recipe, "recipe.yaml")
    carry_out(parsed, tmp_path, tmp_path / "run", print)
    trained = load(tmp_path / "run" / "steps" / "1-fine_tuning" / "model")
    rounded = load(tmp_path / "run" / "model")
    with built(trained, **places).attached(trained.model):
        torch.testing.assert_close(scores(trained), scores(rounded), rtol=1e-3, atol=1e-3)
    assert not torch.equal(scores(trained), scores(load(tmp_path / "base")))
    stopped_in_training(tmp_path / "run", tmp_path / "parts", 4)
    before = checkpoint_times(tmp_path / "parts")
    carry_out(parsed, tmp_path, tmp_path / "parts", print)
    assert set() < before < checkpoint_times(tmp_path / "parts")  # it did not begin anew
    resumed = load(tmp_path / "parts" / "steps" / "1-fine_tuning" / "model")
    for name, weight in trained.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, msg=name)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SottoError, match="there are no linears in the layers of decoder"):
        built(recognizer("parakeet"), stacks=("decoder",))
    with pytest.raises(SottoError, match="has no table of tokens to quantize"):
        built(recognizer("parakeet"), embedding_bits=8)
    found = recognizer("whisper")
    once, twice = built(found), built(found)
    with (
        once.attached(found.model),
        pytest.raises(SottoError, match="would be rounded twice; name it in one objective"),
    ):
        twice.attached(found.model).__enter__()
    methods.handler(Quantization())(found, Quantization(), StepContext(Path()))
    with pytest.raises(SottoError, match="the model is quantized already"):
        built(found)
