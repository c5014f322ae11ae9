import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8Tensor, Int8WeightOnlyConfig
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, TorchAoConfig, pipeline

import sotto
from digits import MODEL, some_clips
from mixed_shapes import mixed
from recognizers import ARCHITECTURES, recognizer, scores
from sotto import quantized_layers, torchao_products
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.measurement import evaluate, measure_cost
from sotto.methods import FineTuning, Quantization, StepContext, methods
from sotto.metrics.cost import bytes_on_disk, count_parameters, encoder_flops, ideal_bytes
from sotto.quantization_math import rounded
from sotto.quantized_layers import QuantizedEmbedding, QuantizedLinear, TiedHead, floating_products
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import (
    factor,
    gather_inputs,
    get_any_linear,
    get_linear,
    linears_of,
    parts_of,
    reduce_attention,
    structure_of,
)
from sotto.text import get_normalizer
from sotto.training import Training

CONFIGS = {
    "8 bits": Quantization(),
    "8 bits, weights alone": Quantization(dynamic=False, scales="tensor"),
    "8 bits, by torchao": Quantization(library="torchao"),
    "8 bits, weights alone, by torchao": Quantization(library="torchao", dynamic=False, scales="tensor"),
    "4 bits": Quantization(bits=4),
    "4 bits in blocks": Quantization(bits=4, scales="block"),
}


def apply(found: Recognizer, config: Quantization) -> list[str]:
    return methods.handler(config)(found, config, StepContext(Path()))


def quantized(module: nn.Module) -> list[QuantizedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantizedLinear)]


def with_rounded_weights(architecture: str, config: Quantization) -> torch.Tensor:
    """The scores of a plain model whose linears have the weights that the quantized ones stand for."""
    rounded, plain = recognizer(architecture), recognizer(architecture)
    apply(rounded, config)
    with torch.no_grad():
        for place in linears_of(plain.model):
            get_linear(plain.model, *place).weight.copy_(get_any_linear(rounded.model, *place).weight)
    return scores(plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_with_the_rounded_weights_and_is_read_back(architecture: str, name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    found = recognizer(architecture)
    before = count_parameters(found.model)
    apply(found, config)
    expected = with_rounded_weights(architecture, config)
    own = scores(found)
    with floating_products(found.model):
        torch.testing.assert_close(scores(found), expected, rtol=1e-4, atol=1e-4)
    if config.stored.dynamic:
        assert (own - expected).norm() > 1e-4 * expected.norm()  # inputs were rounded
    assert (own - expected).norm() <= 0.1 * expected.norm()
    assert len(quantized(found.model)) == len(list(linears_of(found.model)))
    for dtype in ("float32", "float16", "bfloat16"):
        loaded = load(found.save(tmp_path / dtype, dtype))
        assert loaded.structure == found.structure
        for place in linears_of(found.model):
            now, then = (get_any_linear(each.model, *place) for each in (loaded, found))
            assert torch.equal(now.codes, then.codes)
            assert torch.equal(now.scale, then.scale)  # no scale is rounded by half precision
    torch.testing.assert_close(scores(load(tmp_path / "float32")), own, rtol=1e-5, atol=1e-5)
    after = count_parameters(found.model)
    assert (after.total, after.encoder) == (before.total, before.encoder)  # they take fewer bits, and are as many
    frames = found.family.window_frames
    assert encoder_flops(found.model, frames) == encoder_flops(recognizer(architecture).model, frames)


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
@pytest.mark.parametrize("library", ["torch", "torchao"])
def test_transformers_opens_it(architecture: str, library: Any, tmp_path: Path) -> None:
    found = recognizer(architecture)
    apply(found, Quantization(embedding_bits=8 if architecture == "whisper" else None, library=library))
    folder = found.save(tmp_path / "model")
    auto = AutoModelForSpeechSeq2Seq if architecture == "whisper" else AutoModelForCTC
    model = auto.from_pretrained(folder).eval()
    assert quantized(model)
    reopened = Recognizer(model, found.processor)
    torch.testing.assert_close(scores(reopened), scores(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_table_of_tokens_is_the_head_too_and_stored_once(bits: Any, tmp_path: Path) -> None:
    found, plain = recognizer("whisper"), recognizer("whisper")
    apply(found, Quantization(dynamic=False, embedding_bits=bits))
    table = found.model.model.decoder.embed_tokens
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(found.model.proj_out, TiedHead)
    with torch.no_grad():
        for place in linears_of(plain.model):
            get_linear(plain.model, *place).weight.copy_(get_any_linear(found.model, *place).weight)
        plain.model.model.decoder.embed_tokens.weight.copy_(table.weight)
    torch.testing.assert_close(scores(found), scores(plain), rtol=1e-4, atol=1e-4)
    loaded = load(found.save(tmp_path / "model"))
    torch.testing.assert_close(scores(loaded), scores(found), rtol=1e-5, atol=1e-5)
    assert loaded.copy().model.proj_out.embedding[0] is not loaded.model.model.decoder.embed_tokens
    copied = loaded.copy().model
    assert copied.proj_out.embedding[0] is copied.model.decoder.embed_tokens
    assert count_parameters(found.model).total == count_parameters(plain.model).total


def test_bytes_on_disk_are_those_of_the_codes_scales_and_what_floats(tmp_path: Path) -> None:
    plain = load(MODEL)
    for config in (Quantization(embedding_bits=8), Quantization(bits=4, scales="block", embedding_bits=4)):
        found = plain.copy()
        notes = apply(found, config)
        size = bytes_on_disk(found.save(tmp_path / "model", "float16"))
        assert ideal_bytes(found.model, 2) < size < 1.06 * ideal_bytes(found.model, 2)  # names in the header
        assert size < 0.62 * bytes_on_disk(plain.save(tmp_path / "plain", "float16"))
        assert f"are {ideal_bytes(found.model, 2) / 1e6:.2f} MB when ideally packed" in notes[-1]


def test_the_bundled_recogniser_hears_as_before_in_8_bits(tmp_path: Path) -> None:
    source = DataConfig(str(some_clips("test", tmp_path / "clips", 12)))
    wer = []
    for config in (None, Quantization(embedding_bits=8), Quantization(bits=4, scales="block", embedding_bits=8)):
        found = load(MODEL)
        if config is not None:
            apply(found, config)
        clips = open_data(source, sampling_rate=found.sampling_rate)
        wer.append(evaluate(found, clips, Decoding(language="en"), get_normalizer("basic")).wer)
    assert wer == pytest.approx([wer[0]] * 3, abs=0.02)
    assert wer[0] < 0.05


def test_the_pipeline_transcribes_with_timestamps(tmp_path: Path) -> None:
    found = load(MODEL)
    apply(found, Quantization(embedding_bits=8))
    folder = found.save(tmp_path / "model")
    clips = open_data(DataConfig(str(some_clips("test", tmp_path / "clips", 1))), sampling_rate=16000)
    (clip,) = clips
    heard, expected = (
        pipeline("automatic-speech-recognition", model=str(model))(
            {"raw": clip.audio, "sampling_rate": 16000}, return_timestamps=True
        )
        for model in (folder, MODEL)
    )
    assert heard["text"] == expected["text"] != ""
    assert heard["chunks"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_factored_and_gathered_linears_are_quantized_too(architecture: str, tmp_path: Path) -> None:
    found = recognizer(architecture)
    stack = found.architecture.stacks[0]
    up = stack.feed_forwards[0].up
    inputs, outputs = (
        get_linear(found.model, stack, 0, up).in_features,
        get_linear(found.model, stack, 0, up).out_features,
    )
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(shape, generator=generator) for shape in ((5, inputs), (outputs, 5), (outputs,)))
    factor(found.model, stack, 0, up, *parts)
    value = stack.attentions[0].projections[2]
    gather_inputs(found.model, stack, 0, value, range(3, inputs - 2))
    before = scores(found)
    apply(found, Quantization())
    assert structure_of(found.model).layer(stack.name, 0).ranks == {up: 5}
    torch.testing.assert_close(scores(found), before, rtol=0, atol=0.15 * float(before.abs().max()))
    loaded = load(found.save(tmp_path / "model"))
    assert loaded.structure == found.structure
    torch.testing.assert_close(scores(loaded), scores(found), rtol=1e-5, atol=1e-5)


def test_reduced_attention_is_quantized_too(tmp_path: Path) -> None:
    found = recognizer("whisper")
    stack = found.architecture.stacks[0]
    generator = torch.Generator().manual_seed(0)
    for name in ("q_proj", "k_proj", "v_proj"):
        first, second = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
        factor(found.model, stack, 0, f"self_attn.{name}", first / 6, second / 2, torch.zeros(32))
    reduce_attention(found.model, stack, 0, stack.attentions[0])
    before = scores(found)
    apply(found, Quantization())
    torch.testing.assert_close(scores(found), before, rtol=0, atol=0.1 * float(before.abs().max()))
    loaded = load(found.save(tmp_path / "model"))
    assert loaded.structure == found.structure
    torch.testing.assert_close(scores(loaded), scores(found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_other_methods_made_smaller_is_quantized_and_read_back(
    architecture: str, name: str, tmp_path: Path
) -> None:
    found = mixed(recognizer(architecture))
    with_rounded = found.copy()
    apply(found, CONFIGS[name])
    assert len(quantized(found.model)) == len(rounded_parts(with_rounded, CONFIGS[name]))
    with floating_products(found.model):
        torch.testing.assert_close(scores(found), scores(with_rounded), rtol=1e-4, atol=1e-4)
    loaded = load(found.save(tmp_path / "model"))
    assert loaded.structure == found.structure
    torch.testing.assert_close(scores(loaded), scores(found), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def rounded_parts(found: Recognizer, config: Quantization) -> list[nn.Module]:
    """The linears in the layers of a floating model, whose weights are put where quantization puts them."""
    parts = [part for place in linears_of(found.model) for part in parts_of(found.model, *place).values()]
    for part in parts:
        assert isinstance(part, nn.Linear)
        part.weight.copy_(rounded(part.weight, config.bits, config.scales))
    return parts


def test_only_the_layers_named_are_quantized() -> None:
    found = load(MODEL)
    apply(found, Quantization(stacks=("decoder",), layers={"decoder": (1,)}))
    assert not quantized(found.model.model.encoder)
    assert not quantized(found.model.model.decoder.layers[0])
    assert len(quantized(found.model.model.decoder.layers[1])) == 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("library", ["torch", "torchao"])
def test_gradients_reach_what_was_before(architecture: str, library: Any) -> None:
    """Products in whole numbers have no gradient: where one is asked for, the weights are made floating."""
    found = recognizer(architecture)
    apply(found, Quantization(library=library))
    inputs = found.family.inputs([0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy()])
    found.family.logits(found.family.with_transcript(inputs)).square().sum().backward()
    norms = [p for name, p in found.model.named_parameters() if "norm" in name and p.grad is not None]
    assert norms
    assert all(parameter.grad.isfinite().all() for parameter in norms)
    assert all(parameter.grad.abs().sum() > 0 for parameter in norms[:4])  # those of the first layer


@pytest.mark.parametrize("dynamic", [True, False])
def test_torchao_takes_the_products_where_it_is_asked_to(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = load(MODEL), load(MODEL)
    apply(found, Quantization(library="torchao", dynamic=dynamic, embedding_bits=8))
    apply(plain, Quantization(dynamic=dynamic, embedding_bits=8))
    taken, product = [], quantized_layers.torchao_product

    def counted(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dynamic: bool) -> torch.Tensor:
        taken.append(dynamic)
        return product(x, codes, scale, dynamic)

    monkeypatch.setattr(quantized_layers, "torchao_product", counted)
    assert (scores(found) - scores(plain)).norm() <= (0.02 if dynamic else 1e-5) * scores(plain).norm()
    assert taken == [dynamic] * (len(quantized(found.model)) + 1)  # and the output head


def test_what_torchao_multiplies_is_copied_exported_and_told_of(tmp_path: Path) -> None:
    found = load(MODEL)
    notes = apply(found, Quantization(library="torchao", embedding_bits=8))
    assert "products by torchao: pip install 'sotto[torchao]' where it is opened" in notes
    assert torch.equal(scores(replace(found, model=copy.deepcopy(found.model))), scores(found))
    folder = found.save(tmp_path / "model", "float16")
    record = sotto.export(folder, tmp_path / "onnx", to="onnx", audio=some_clips("test", tmp_path / "clips", 2))
    assert record.agreement.scores < 1e-4  # the runtime has the weights that the codes stand for, in floats
    half = load(folder, dtype=torch.float16)
    with floating_products(half.model), floating_products(found.model):
        assert (scores(half).float() - scores(found)).norm() < 0.01 * scores(found).norm()


def test_what_needs_torchao_is_refused_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(MODEL)
    apply(found, Quantization(library="torchao"))
    folder = found.save(tmp_path / "model")
    message = r"products by torchao need torchao 0.18 or later; pip install 'sotto\[torchao\]'"
    monkeypatch.setattr(torchao_products, "version", lambda name: "0.17.1")
    torchao_products.check_torchao.cache_clear()
    with pytest.raises(SottoError, match=message):
        Quantization(library="torchao")
    with pytest.raises(SottoError, match=f"{folder}: .*{message}"):
        load(folder)


@pytest.mark.parametrize("config", [Int8DynamicActivationInt8WeightConfig(), Int8WeightOnlyConfig()])
def test_transformers_makes_torchaos_tensors_of_a_whisper_that_sotto_made_smaller(config: Any, tmp_path: Path) -> None:
    """Without a step of Sotto's. A Conformer it refuses (5.23): it asks for a table of tokens, which is not there."""
    found = mixed(recognizer("whisper"))
    folder, torchao = found.save(tmp_path / "model", "float32"), tmp_path / "torchao"
    auto = AutoModelForSpeechSeq2Seq
    model = auto.from_pretrained(folder, quantization_config=TorchAoConfig(config), dtype=torch.float32).eval()
    model.save_pretrained(torchao)
    reopened = auto.from_pretrained(torchao).eval()
    parts = [part for place in linears_of(found.model) for part in parts_of(reopened, *place).values()]
    assert any(isinstance(part.weight, Int8Tensor) for part in parts)
    assert structure_of(reopened) == found.structure
    own, again = (scores(Recognizer(each, found.processor)) for each in (model, reopened))
    torch.testing.assert_close(again, own, rtol=1e-5, atol=1e-5)
    assert 0 < (own - scores(found)).norm() <= 0.1 * scores(found).norm()
    with pytest.raises(SottoError, match="quantized by torchao; name the floating checkpoint that it was made of"):
        load(torchao)


def test_inspection_shows_the_bits() -> None:
    found = load(MODEL)
    apply(found, Quantization(stacks=("encoder",)))
    layers = measure_cost(found, "quantized").layers
    assert {(layer.stack, layer.bits) for layer in layers} == {("encoder", 8), ("decoder", None)}
    plain = measure_cost(load(MODEL), "plain").layers
    assert sum(layer.parameters for layer in layers) == sum(layer.parameters for layer in plain)


@pytest.mark.parametrize(
    "settings", [{"bits": 4, "scales": "block", "embedding_bits": 8}, {"library": "torchao", "embedding_bits": 8}]
)
def test_a_recipe_quantizes_after_another_method(settings: dict[str, Any], tmp_path: Path) -> None:
    steps = [{"magnitude_pruning": {"share": 0.3}}, {"quantization": settings}]
    recipe = {"base": str(MODEL), "steps": steps}
    numbers = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    sizes = [model.bytes_on_disk for model in numbers.models]
    assert sizes[2] < (0.4 if "bits" in settings else 0.62) * sizes[0]
    again = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    assert again.models[2].bytes_on_disk == sizes[2]


def test_other_methods_come_before_it(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match=r"encoder.layers.0.* is quantized; let quantization be the last step"):
        sotto.compress(MODEL, Quantization(), sotto.StructuredMagnitude(heads=0.5))
    mixed = load(MODEL)
    apply(mixed, Quantization(stacks=("decoder",)))
    with pytest.raises(SottoError, match="the model is quantized already; start from the one that it was made of"):
        apply(mixed, Quantization())
    assert not quantized(mixed.model.model.encoder)  # nothing was changed before it was refused
    training = Training(steps=1)
    clips, more = (some_clips(role, tmp_path / role, 2) for role in ("test", "calibration"))
    with pytest.raises(SottoError, match="its weights cannot be trained; let quantization be the last step"):
        sotto.compress(mixed, FineTuning(training), train=clips, validation=more, language="en")
    with pytest.raises(SottoError, match="the model is quantized already; start from the one that it was made of"):
        sotto.compress(MODEL, Quantization(), Quantization())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4, "dynamic": True}, "dynamic: products in whole numbers need 8 bits and one scale an output"),
        (
            {"scales": "block", "dynamic": True},
            "dynamic: products in whole numbers need 8 bits and one scale an output",
        ),
        ({"bits": 4, "library": "torchao"}, "library: products by torchao need 8 bits and one scale an output"),
        ({"scales": "block", "library": "torchao"}, "library: products by torchao need 8 bits and one scale an output"),
        ({"embedding_bits": 4, "library": "torchao"}, "embedding_bits: products by torchao need 8 bits for the table"),
        ({"stacks": ()}, "stacks must name encoder, decoder or both"),
        ({"stacks": ("encoder",), "layers": {"decoder": (0,)}}, "layers: 'decoder' is not among stacks, encoder"),
    ],
)
def test_settings_that_do_not_go_together(settings: Any, message: str) -> None:
    with pytest.raises(SottoError, match=message):
        Quantization(**settings)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("whisper", Quantization(layers={"encoder": (7,)}), "layers: the encoder has no layer 7"),
        ("parakeet", Quantization(stacks=("decoder",)), "there are no linears in the layers of decoder"),
        (
            "parakeet",
            Quantization(embedding_bits=8),
            "a parakeet with an output head of its own has no table of tokens",
        ),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_is_changed(
    architecture: str, config: Quantization, message: str
) -> None:
    found = recognizer(architecture)
    with pytest.raises(SottoError, match=message):
        apply(found, config)
    assert not quantized(found.model)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"fc3": {"bits": 8}}, "encoder layer 0: linear 'fc3' does not exist; did you mean"),
        ({"fc1": {"bits": 3}}, "bits is 3; it can be 4 or 8"),
        ({"fc1": {"bits": 4, "dynamic": True}}, "products in whole numbers need 8 bits"),
        ({"fc1": {"bits": 4, "library": "torchao"}}, "products by torchao need 8 bits"),
        ({"fc1": {"bits": 8, "library": "tensorrt"}}, "library: 'tensorrt' is not one of torch, torchao"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: Any, message: str, tmp_path: Path) -> None:
    found = recognizer("whisper")
    apply(found, Quantization())
    folder = found.save(tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values["sotto"]["stacks"]["encoder"]["layers"][0]["quantized"] = record
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(SottoError, match=message):
        load(folder)
