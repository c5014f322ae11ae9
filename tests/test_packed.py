import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq

from conformers import make
from sotto.architectures import architecture_of
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.layers import PackedLinear, pack, packed_bytes, unpack
from sotto.metrics.cost import bytes_on_disk
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import factor, get_linear, keep_heads, linears_of, narrow_ffn, reduce_attention, structure_of
from tones import square_wave, tiny_whisper

ARCHITECTURES = ["whisper", "parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary"]


def sparse(architecture: str, share: float = 0.6) -> Recognizer:
    """One with that share of zeros in every linear but the first."""
    found = Recognizer(*tiny_whisper()) if architecture == "whisper" else make(architecture)
    found.model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for place in list(linears_of(found.model))[1:]:
            weight: Any = get_linear(found.model, *place).weight
            weight[torch.rand(weight.shape, generator=generator) < share] = 0.0
    return found


def test_bits_by_hand() -> None:
    weight = torch.tensor([[5.0, 0.0, 0.0, 7.0, 0.0], [0.0, 0.0, 0.0, 9.0, 0.0]])
    values, pattern = pack(weight)
    assert values.tolist() == [5.0, 7.0, 9.0]
    assert pattern.tolist() == [0b00001001, 0b00000001]  # the ninth weight is in the second byte
    assert torch.equal(unpack(values, pattern, (2, 5)), weight)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
def test_packing_is_undone(rows: int, columns: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[torch.rand(rows, columns, generator=generator) < share] = 0.0
    values, pattern = pack(weight)
    assert len(pattern) == packed_bytes(weight.numel())
    assert pattern.dtype == torch.uint8
    assert torch.equal(unpack(values, pattern, (rows, columns)), weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_packed_checkpoint_is_smaller_and_computes_the_same(architecture: str, dtype: str, tmp_path: Path) -> None:
    found = sparse(architecture)
    plain, packed = found.save(tmp_path / "plain", dtype), found.save(tmp_path / "packed", dtype, packed=True)
    weights = sum(get_linear(found.model, *place).weight.numel() for place in list(linears_of(found.model))[1:])
    size = 4 if dtype == "float32" else 2
    saved = bytes_on_disk(plain) - bytes_on_disk(packed)
    assert saved == pytest.approx((0.6 * size - 1 / 8) * weights, rel=0.1, abs=5000)  # but for names in the header
    assert saved > 0
    loaded, expected = load(packed), load(plain)
    assert loaded.packed
    assert not expected.packed
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert not any(isinstance(module, PackedLinear) for module in loaded.model.modules())
    assert not any(isinstance(module, PackedLinear) for module in found.model.modules())  # what was saved is untouched
    assert bytes_on_disk(loaded.save(tmp_path / "again")) == bytes_on_disk(packed)  # and stays packed
    assert bytes_on_disk(loaded.save(tmp_path / "dense", packed=False)) == bytes_on_disk(plain)


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
def test_transformers_opens_it_too(architecture: str, tmp_path: Path) -> None:
    found = sparse(architecture)
    folder = found.save(tmp_path / "model", packed=True)
    auto = AutoModelForSpeechSeq2Seq if architecture == "whisper" else AutoModelForCTC
    model = auto.from_pretrained(folder).eval()
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    inputs = found.family.with_transcript(found.family.inputs([square_wave(300, 0.9)]))
    inputs.pop("labels", None)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, found.model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_linears_that_would_grow_stay_plain(tmp_path: Path) -> None:
    found = sparse("whisper", share=0.02)
    folder = found.save(tmp_path / "model", packed=True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "whisper"
    assert not load(folder).packed


def test_packing_goes_with_narrower_layers(tmp_path: Path) -> None:
    found = sparse("whisper")
    stack = architecture_of(found.model.config).stacks[0]
    keep_heads(found.model, stack, 0, stack.attentions[0], [1])
    narrow_ffn(found.model, stack, 0, stack.feed_forwards[0], range(5, 60))
    loaded = load(found.save(tmp_path / "model", packed=True))
    layer = structure_of(loaded.model).layer("encoder", 0)
    assert (layer.heads, layer.ffn_widths, layer.nonzeros) == ({"self_attn": (1,)}, {"ffn": 55}, {})
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_a_packed_output_of_reduced_attention_is_read_back(tmp_path: Path) -> None:
    found = sparse("whisper")
    stack = architecture_of(found.model.config).stacks[0]
    for name in ("q_proj", "k_proj", "v_proj"):
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
        factor(found.model, stack, 0, f"self_attn.{name}", first, second, torch.zeros(32))
    reduce_attention(found.model, stack, 0, stack.attentions[0])
    loaded = load(found.save(tmp_path / "model", packed=True))
    assert loaded.packed
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("dtype", "packs"), [("float32", True), ("float16", False)])
def test_packing_counts_in_the_precision_that_is_saved(dtype: str, packs: bool, tmp_path: Path) -> None:
    """5 % of zeros save 0.2 bytes a weight in float32 and 0.1 in float16, for 0.125 of pattern."""
    assert load(sparse("whisper", share=0.05).save(tmp_path / "model", dtype, packed=True)).packed == packs


def test_a_recipe_keeps_a_packed_base_packed(tmp_path: Path) -> None:
    sparse("whisper").save(tmp_path / "base", packed=True)
    recipe = {"base": "base", "steps": [{"magnitude_pruning": {"share": 0.6}}]}
    carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    assert load(tmp_path / "run" / "model").packed


@pytest.mark.parametrize(
    ("linear", "count", "message"),
    [
        ("fc3", 4, "encoder layer 0: linear 'fc3' does not exist"),
        ("fc1", 4097, "encoder layer 0: fc1: 4097 of 4096 weights are not zero"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(linear: str, count: int, message: str, tmp_path: Path) -> None:
    folder = sparse("whisper").save(tmp_path / "model", packed=True)
    values = json.loads((folder / "config.json").read_text())
    values["sotto"]["stacks"]["encoder"]["layers"][0]["nonzeros"] = {linear: count}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(SottoError, match=message):
        load(folder)


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    Recognizer(*tiny_whisper()).save(tmp_path / "base")
    recipe = {"base": "base", "steps": [{"magnitude_pruning": {"share": 0.5}}], "pack_zeros": True}
    numbers = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    base, pruned = numbers.models
    assert base.bytes_on_disk is not None
    assert pruned.bytes_on_disk is not None
    assert pruned.bytes_on_disk < 0.9 * base.bytes_on_disk
    assert load(tmp_path / "run" / "model").packed
