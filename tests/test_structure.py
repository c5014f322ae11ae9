import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

from sotto.architectures import Stack, architecture_of, get_architecture
from sotto.architectures.whisper import WHISPER
from sotto.auto_classes import SottoWhisperConfig, SottoWhisperForConditionalGeneration
from sotto.checkpoint import load
from sotto.errors import SottoError
from sotto.structure import (
    LayerStructure,
    StackStructure,
    Structure,
    check,
    dense_structure,
    from_json,
    to_json,
)

HEADS = 4
WIDTH = 16
FFN = 24
SIZES = {
    "d_model": WIDTH,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
}
FACTORED = {"self_attn.q_proj": 4, "self_attn.k_proj": 5, "self_attn.v_proj": 6}

Change = Callable[[dict[str, Any]], None]


def subsets(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, count - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def layers(draw: st.DrawFn, stack: Stack, base_layer: int) -> LayerStructure:
    ranks = {name: FFN if "fc" in name else WIDTH for name in stack.linears()}
    ranks = {name: draw(st.integers(1, min(most, WIDTH))) for name, most in ranks.items() if draw(st.booleans())}
    reducible = stack.name == "encoder" and all(name in ranks for name in FACTORED)
    attentions = [attention.name for attention in stack.attentions]
    return LayerStructure(
        base_layer,
        {name: draw(subsets(HEADS)) for name in attentions if draw(st.booleans())},
        {"ffn": draw(st.integers(1, FFN))} if draw(st.booleans()) else {},
        ranks,
        ("self_attn",) if reducible and draw(st.booleans()) else (),
        head_dims={name: draw(st.integers(1, WIDTH // HEADS)) for name in attentions if draw(st.booleans())},
    )


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    stacks = {}
    for stack in WHISPER.stacks:
        base_layers = draw(st.integers(1, 5))
        kept = draw(subsets(base_layers))
        stacks[stack.name] = StackStructure(base_layers, tuple(draw(layers(stack, layer)) for layer in kept))
    return Structure("whisper", stacks)


def config_for(structure: Structure) -> WhisperConfig:
    counts = {f"{name}_layers": len(stack.layers) for name, stack in structure.stacks.items()}
    return WhisperConfig(**SIZES, **counts)


@given(structures())
def test_every_valid_record_survives_json_and_fits_its_config(structure: Structure) -> None:
    written = json.dumps(to_json(structure))
    read = from_json(json.loads(written))
    assert read == structure
    assert json.dumps(to_json(read)) == written
    check(read, config_for(structure))


@given(structures(), st.data())
def test_a_record_fits_no_config_of_other_layer_counts(structure: Structure, data: st.DataObject) -> None:
    config = config_for(structure)
    name = data.draw(st.sampled_from(["encoder", "decoder"]))
    there = len(structure.stacks[name].layers)
    other = data.draw(st.integers(1, 6).filter(lambda count: count != there))
    setattr(config, f"{name}_layers", other)
    with pytest.raises(SottoError, match=f"{name} has {there} layers, but {name}_layers in config.json is {other}"):
        check(structure, config)


def test_a_base_says_nothing_of_its_layers() -> None:
    config = WhisperConfig(**SIZES, encoder_layers=2, decoder_layers=1)
    assert to_json(dense_structure(WHISPER, config)) == {
        "version": 1,
        "architecture": "whisper",
        "stacks": {
            "encoder": {"base_layers": 2, "layers": [{"base_layer": 0}, {"base_layer": 1}]},
            "decoder": {"base_layers": 1, "layers": [{"base_layer": 0}]},
        },
    }


def test_copies_change_one_layer_and_leave_the_record_alone() -> None:
    structure = dense_structure(WHISPER, WhisperConfig(**SIZES, encoder_layers=2, decoder_layers=2))
    narrow = LayerStructure(1, ffn_widths={"ffn": 3})
    changed = structure.with_layer("decoder", 1, narrow)
    assert changed.layer("decoder", 1) == narrow
    assert changed.layer("decoder", 0) == structure.layer("decoder", 0)
    assert changed.stacks["encoder"] == structure.stacks["encoder"]
    shorter = structure.with_layers("encoder", [structure.layer("encoder", 1)])
    assert [layer.base_layer for layer in shorter.stacks["encoder"].layers] == [1]
    assert shorter.stacks["encoder"].base_layers == 2
    assert structure.layer("decoder", 1) == LayerStructure(1)


def base_record() -> dict[str, Any]:
    """A valid record of a model of three encoder and three decoder layers."""
    layers = [{"base_layer": 0}, {"base_layer": 2}, {"base_layer": 3}]
    stacks = {name: {"base_layers": 4, "layers": copy.deepcopy(layers)} for name in ("encoder", "decoder")}
    return {"version": 1, "architecture": "whisper", "stacks": stacks}


def at(stack: str, index: int, **values: Any) -> Change:
    return lambda record: record["stacks"][stack]["layers"][index].update(values)


def top(**values: Any) -> Change:
    return lambda record: record.update(values)


def in_stack(stack: str, **values: Any) -> Change:
    return lambda record: record["stacks"][stack].update(values)


def without(*path: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "later version": (
        top(version=2),
        "the structure record is of version 2 and this Sotto reads up to 1; upgrade sotto",
    ),
    "no version": (without("version"), "the structure record in config.json has no version"),
    "version 0": (top(version=0), "the structure record in config.json has no version"),
    "version in words": (top(version="1"), "the structure record in config.json has no version"),
    "no architecture": (without("architecture"), "structure record: missing key 'architecture'"),
    "other architecture": (top(architecture="wisper"), "unknown architecture 'wisper'; did you mean 'whisper'?"),
    "unknown key": (top(stackz={}), "structure record: unknown key 'stackz'; did you mean 'stacks'?"),
    "unknown key of a layer": (
        at("encoder", 1, rank={}),
        "structure record.stacks.encoder.layers[1]: unknown key 'rank'; did you mean 'ranks'?",
    ),
    "unknown stack": (
        lambda record: record["stacks"].update(encodr=record["stacks"]["encoder"]),
        "structure record: unknown stack 'encodr'; did you mean 'encoder'?",
    ),
    "missing stack": (without("stacks", "decoder"), "structure record: stack 'decoder' is missing"),
    "fewer layers": (
        lambda record: record["stacks"]["encoder"]["layers"].pop(),
        "structure record: encoder has 2 layers, but encoder_layers in config.json is 3",
    ),
    "base layers out of range": (in_stack("encoder", base_layers=3), "encoder: base layers [0, 2, 3] are not an"),
    "base layers repeated": (at("decoder", 1, base_layer=0), "decoder: base layers [0, 0, 3] are not an ascending"),
    "rank above the dimension": (
        at("encoder", 0, ranks={"self_attn.q_proj": 17}),
        "encoder layer 0: rank of self_attn.q_proj is 17; the base allows 1 to 16",
    ),
    "rank above the smaller dimension": (
        at("decoder", 2, ranks={"fc2": 24}),
        "decoder layer 2: rank of fc2 is 24; the base allows 1 to 16",
    ),
    "rank 0": (at("decoder", 2, ranks={"fc1": 0}), "rank of fc1 is 0; the base allows 1 to 16"),
    "rank of half": (at("decoder", 2, ranks={"fc1": 1.5}), "layers[2].ranks.fc1: expected int, found 1.5"),
    "rank of no linear": (
        at("encoder", 0, ranks={"self_attn.qproj": 1}),
        "encoder layer 0: linear 'self_attn.qproj' does not exist; did you mean 'self_attn.q_proj'?",
    ),
    "cross-attention in the encoder": (
        at("encoder", 0, heads={"encoder_attn": [0]}),
        "encoder layer 0: attention 'encoder_attn' does not exist",
    ),
    "heads out of range": (
        at("encoder", 0, heads={"self_attn": [1, 4]}),
        "encoder layer 0: heads of self_attn [1, 4] are not an ascending choice out of the base's 4",
    ),
    "negative head": (at("encoder", 0, heads={"self_attn": [-1, 0]}), "heads of self_attn [-1, 0] are not"),
    "heads not ascending": (at("decoder", 1, heads={"encoder_attn": [2, 1]}), "heads of encoder_attn [2, 1] are not"),
    "head twice": (at("decoder", 1, heads={"self_attn": [1, 1]}), "heads of self_attn [1, 1] are not"),
    "no heads": (at("decoder", 1, heads={"self_attn": []}), "heads of self_attn [] are not"),
    "wider heads": (
        at("decoder", 1, head_dims={"encoder_attn": 5}),
        "decoder layer 1: head dimension of encoder_attn is 5; the base allows 1 to 4",
    ),
    "heads without channels": (
        at("encoder", 0, head_dims={"self_attn": 0}),
        "encoder layer 0: head dimension of self_attn is 0; the base allows 1 to 4",
    ),
    "narrower heads of no attention": (
        at("encoder", 0, head_dims={"self_atn": 2}),
        "encoder layer 0: attention 'self_atn' does not exist; did you mean 'self_attn'?",
    ),
    "wider network": (
        at("decoder", 0, ffn_widths={"ffn": 25}),
        "decoder layer 0: width of ffn is 25; the base allows 1 to 24",
    ),
    "no neurons": (at("decoder", 0, ffn_widths={"ffn": 0}), "width of ffn is 0; the base allows 1 to 24"),
    "network that is not there": (
        at("decoder", 0, ffn_widths={"fnn": 2}),
        "decoder layer 0: feed-forward network 'fnn' does not exist; did you mean 'ffn'?",
    ),
    "reduced without factors": (
        at("encoder", 0, reduced=["self_attn"]),
        "encoder layer 0: self_attn is reduced, but its projections are not all factored",
    ),
    "reduced with two of three": (
        at("encoder", 0, reduced=["self_attn"], ranks={"self_attn.q_proj": 1, "self_attn.k_proj": 1}),
        "encoder layer 0: self_attn is reduced, but its projections are not all factored",
    ),
    "reduced in the decoder": (
        at("decoder", 0, reduced=["self_attn"], ranks=FACTORED),
        "decoder layer 0: attention 'self_attn' does not exist",
    ),
}


@pytest.fixture
def nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was about to be built")

    monkeypatch.setattr(WhisperForConditionalGeneration, "__init__", reached)


def write_record(saved: Path, folder: Path, record: Any) -> Path:
    """A checkpoint as `saved`, but of Sotto's type and with `record` in its config."""
    shutil.copytree(saved, folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "sotto_whisper", "sotto": record}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.usefixtures("nothing_is_allocated")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_allocated(case: str, saved: Path, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    record = base_record()
    change(record)
    folder = write_record(saved, tmp_path / "checkpoint", record)
    config = SottoWhisperConfig(**SIZES, encoder_layers=3, decoder_layers=3, sotto=record)
    with pytest.raises(SottoError) as built:
        SottoWhisperForConditionalGeneration(config)
    with pytest.raises(SottoError) as opened:
        AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    with pytest.raises(SottoError) as loaded:
        load(folder)
    assert message in str(built.value)
    assert str(opened.value) == str(built.value)
    assert str(loaded.value) == f"{folder}: {built.value}"
    assert "\n" not in str(built.value)


@pytest.mark.usefixtures("nothing_is_allocated")
def test_a_valid_record_gets_as_far_as_the_model(saved: Path, tmp_path: Path) -> None:
    folder = write_record(saved, tmp_path / "checkpoint", base_record())
    with pytest.raises(AssertionError, match="about to be built"):
        AutoModelForSpeechSeq2Seq.from_pretrained(folder)


@pytest.mark.parametrize("record", ["abc", [1], {"stacks": {}}])
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(SottoError, match="has no version; it was not written by Sotto"):
        from_json(record)


def test_families_by_name_and_by_config() -> None:
    assert get_architecture("whisper") is WHISPER
    assert architecture_of(WhisperConfig()) is WHISPER
    assert architecture_of(SottoWhisperConfig()) is WHISPER
    with pytest.raises(SottoError, match="a checkpoint of type 'unknown' is not supported; Sotto knows whisper"):
        architecture_of(type("Other", (), {"model_type": "unknown"})())
    with pytest.raises(SottoError, match="whisper has no stack 'encodr'; did you mean 'encoder'"):
        WHISPER.stack("encodr")


def test_the_table_names_what_the_model_has(template: Any) -> None:
    for stack in WHISPER.stacks:
        dimensions = stack.dimensions(template.model.config)
        assert (dimensions.layers, dimensions.width, dimensions.heads, dimensions.ffn) == (3, WIDTH, HEADS, FFN)
        assert dimensions.head_dim == 4
        modules = template.model.get_submodule(stack.layers)
        assert len(modules) == 3
        for attention in stack.attentions:
            assert type(modules[0].get_submodule(attention.name)) is attention.module_type
        for name in stack.linears():
            linear = modules[0].get_submodule(name)
            assert (linear.in_features, linear.out_features) == stack.linear_shape(name, dimensions)
