"""Recipes: strict, and the same after a trip through YAML."""

from pathlib import Path

import pytest
import yaml

from sotto.configuration import read_yaml
from sotto.errors import SottoError
from sotto.exports import Export
from sotto.methods import LowRank
from sotto.recipe import parse_recipe, recipe_as_yaml

VALUES = {
    "base": "model",
    "language": "en",
    "data": {"calibration": {"path": "clips", "samples": 5}, "test": {"path": "test"}},
    "steps": [{"low_rank": {"attention": 0.99, "mlp": 0.999}}, "low_rank"],
}


def test_a_recipe_becomes_dataclasses() -> None:
    recipe = parse_recipe(VALUES, "r.yaml")
    assert recipe.steps == (LowRank(attention=0.99, mlp=0.999), LowRank())
    assert recipe.data.calibration is not None
    assert recipe.data.calibration.samples == 5


def test_the_resolved_recipe_reads_back_as_the_same() -> None:
    recipe = parse_recipe(VALUES | {"export": ["onnx", {"lite-whisper": {"precision": "float16"}}]}, "r.yaml")
    assert recipe.export == (Export("onnx"), Export("lite-whisper", "float16"))
    assert parse_recipe(yaml.safe_load(recipe_as_yaml(recipe)), "again") == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanugage": "en"}, "did you mean 'language'"),
        ({"steps": [{"low_rnak": {}}]}, "did you mean 'low_rank'"),
        ({"steps": [{"low_rank": {"atention": 0.9}}]}, "did you mean 'attention'"),
        ({"steps": [{"low_rank": {"preset": "fast"}}]}, "quality, balanced, efficiency"),
        ({"steps": [{"low_rank": {"attention": 1.5}}]}, "between 0 and 1, found 1.5"),
        ({"steps": [{"low_rank": {"parameters": 0.5, "flops": 0.5}}]}, "one budget"),
        ({"steps": []}, "at least one step"),
        ({"steps": "low_rank"}, "expected a list"),
        ({"accept": {"wer_increase": 1.0}}, "accept needs data.validation"),
        ({"data": {"tset": {"path": "x"}}}, "did you mean 'test'"),
        ({"data": {"test": {}}}, "missing key 'path'"),
        ({"dtype": "float8"}, "float32, float16, bfloat16"),
        ({"seed": "one"}, "seed: expected int"),
        ({"export": "onnx"}, "export: expected a list, found 'onnx'"),
        ({"export": ["onyx"]}, "unknown target 'onyx'; did you mean 'onnx'"),
        ({"export": [{"onnx": {"precision": "int4"}}]}, "onnx is written in float32, float16, int8; found .*'int4'"),
        ({"export": [{"onnx": {"precison": "int8"}}]}, "did you mean 'precision'"),
        ({"export": [{"onnx": {}, "transformers": {}}]}, "expected one target with its settings"),
        ({"export": [{"onnx": "int8"}]}, "expected settings of onnx, such as precision, found 'int8'"),
        ({"export": [{"onnx": []}]}, r"expected settings of onnx, such as precision, found \[\]"),
        ({"export": [{"onnx": {"to": "openvino"}}]}, "expected settings of onnx, such as precision, found {'to': 'op"),
    ],
)
def test_a_mistake_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        parse_recipe(VALUES | change, "r.yaml")


def test_a_missing_base_is_named() -> None:
    with pytest.raises(SottoError, match="missing key 'base'"):
        parse_recipe({key: value for key, value in VALUES.items() if key != "base"}, "r.yaml")


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("base: [")
    with pytest.raises(SottoError, match="is not YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- base")
    with pytest.raises(SottoError, match="keys and values"):
        read_yaml(tmp_path / "list.yaml")
