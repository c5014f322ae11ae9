"""The recipes of the reference models, carried out in short: two steps a part, on made-up clips."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import results_file
from sotto.checkpoint import Recognizer, load
from sotto.new_models import new_models
from sotto.training_recipe import read_training_recipe, train_by_recipe
from tones import PITCHES, write_folder

REFERENCE = Path(results_file.__file__).parent / "reference"
NAMES = sorted(path.name for path in REFERENCE.iterdir() if path.is_dir())
SHORT = {"steps": 2, "batch_size": 2, "evaluate_every": 1, "average_last": 2, "warmup_steps": 0, "workers": 0}


def parts(name: str) -> list[Path]:
    return sorted((REFERENCE / name).glob("train*.yaml"))


def shortened(path: Path, folder: Path, base: Path | None) -> Path:
    """The recipe with its own model and settings, but made-up clips, two steps, and the part before it as its base."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    values["data"]["train"] = {"path": str(folder / "clips")}
    values["data"]["validation"] = {"path": str(folder / "validation")}
    if "splicing" in values["data"]:
        values["data"]["splicing"]["strings"] = 8
    if "base" in values:
        assert base is not None
        values["base"] = str(base)
    for entry in values.get("objectives", []):
        for settings in entry.values():
            if "teacher" in settings:
                settings["teacher"] = str(untrained(made_by(settings["teacher"]), folder))
    for key in ("weights_from", "vocabulary_from"):
        if key in values:
            values[key] = str(untrained(made_by(values[key]), folder))
    values["training"] |= SHORT
    short = folder / path.name
    short.write_text(yaml.safe_dump(values))
    return short


def made_by(model: str) -> str:
    """The reference model of that path: `../NAME`, or `../../../runs/NAME-PART/model`, what a part of it results in."""
    if Path(model).parent == Path(".."):
        name = Path(model).name
        assert (REFERENCE / name / "config.json").is_file()
        return name
    name, _, part = Path(model).parent.name.rpartition("-")
    assert (REFERENCE / name / f"train-{part}.yaml").is_file()
    assert Path(model) == Path("../../../runs") / f"{name}-{part}" / "model"
    return name


def untrained(name: str, folder: Path) -> Path:
    """A model of the same dimensions, which stands in for one that is trained."""
    config = read_training_recipe(REFERENCE / name / "train-1.yaml").new
    return Recognizer(*new_models.handler(config)(config, list(PITCHES), 0)).save(folder / f"untrained-{name}")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_of_a_reference_model_trains_one(name: str, clips: Path) -> None:
    base = None
    for number, path in enumerate(parts(name)):
        run = clips / f"run-{number}"
        train_by_recipe(read_training_recipe(shortened(path, clips, base)), clips, run, dtype="float16")
        base = run / "model"
    assert base is not None
    size = (base / "model.safetensors").stat().st_size
    assert size <= 25_000_000  # what may be committed
    recognizer = load(base)
    assert recognizer.stored_dtype == "float16"
    assert recognizer.model.config.vocab_size == len(recognizer.processor.tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_each_part_goes_on_from_the_one_before(name: str) -> None:
    recipes = [yaml.safe_load(path.read_text()) for path in parts(name)]
    assert "new" in recipes[0]
    assert [recipe.get("base") for recipe in recipes[1:]] == [
        f"../../../runs/{name}-{number}/model" for number in range(1, len(recipes))
    ]
