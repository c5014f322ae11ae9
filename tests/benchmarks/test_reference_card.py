import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import reference_card
from sotto.checkpoint import Recognizer, load
from tones import PITCHES, tiny_whisper, write_folder


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, and the recipe of a reference model that has a second part to come."""
    reference = tmp_path / "reference"
    monkeypatch.setattr(reference_card, "REFERENCE", reference)
    (reference / "tones").mkdir(parents=True)
    recipe = {"data": {"train": [{"path": "corpus/an4/train"}, {"path": "corpus/msc_malayalam/train"}]}}
    for part in (1, 2):
        (reference / "tones" / f"train-{part}.yaml").write_text(yaml.safe_dump(recipe))
    Recognizer(*tiny_whisper()).save(tmp_path / "run" / "model")
    log = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 1.0}, {"step": 10, "eval_wer": 0.5, "eval_cer": 0.25}]
    (tmp_path / "run" / "log.json").write_text(json.dumps(log))
    write_folder(tmp_path / "corpus" / "test", list(PITCHES)[:2], [0.5, 0.6])
    return tmp_path


def test_the_model_lies_beside_its_recipe_with_a_card_of_what_was_measured(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tones", str(trained / "run"), "--language", "en", "--normalizer", "basic"]
    monkeypatch.setattr("sys.argv", ["reference_card.py", *words, "--on", str(trained / "corpus" / "test")])
    reference_card.main()
    folder = trained / "reference" / "tones"
    assert load(folder).model.config.d_model == 32
    card = (folder / "README.md").read_text()
    assert card.strip() in capsys.readouterr().out
    assert "license: cc-by-sa-4.0" in card  # msc_malayalam's
    assert "CMU AN4" in card
    assert "LJSpeech" not in card
    assert "[train-1.yaml](train-1.yaml)" in card
    assert "Still to come: train-2.yaml." in card
    assert "| 1 | 10 | 2.00 | 50.0 % | 25.0 % |" in card
    assert "$ sotto evaluate benchmarks/reference/tones corpus/test --language en --normalizer basic" in card
    assert "WER" in card.split("$ sotto evaluate")[1]


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    log = [{"step": step, "eval_wer": 1 / step, "eval_cer": 0.0} for step in range(1, 31)]
    (tmp_path / "log.json").write_text(json.dumps(log))
    rows = reference_card.curve([tmp_path])
    assert len(rows) <= reference_card.ROWS + 1
    assert rows[-1].startswith("| 1 | 30 |")


def recipe(folder: Path, part: int, plan: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{part}.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../conformer-english", "conformer-english"),
        ("../../../runs/conformer-english-2/model", "conformer-english"),
        ("whisper-english-small-1", "whisper-english-small"),
    ],
)
def test_a_model_has_the_name_of_its_run(path: str, name: str) -> None:
    assert reference_card.model_name(path) == name


def test_the_card_names_what_the_models_before_it_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_card, "REFERENCE", tmp_path)
    taught = {"frame_distillation": {"teacher": "../teacher", "states": 2.0}}
    recipe(tmp_path / "first", 1, {"data": {"train": {"path": "c/an4/train"}}, "objectives": ["ctc"]})
    recipe(tmp_path / "teacher", 1, {"data": {"train": {"path": "c/ljspeech/train"}}, "base": "../runs/first-1/model"})
    own = [
        recipe(
            tmp_path / "pupil",
            1,
            {"data": {"train": [{"path": "runs/synthetic-malayalam"}]}, "objectives": [{"ctc": None}, taught]},
        ),
        recipe(tmp_path / "pupil", 2, {"data": {"train": {"path": "c/msc_malayalam/train"}}, "base": "pupil-1/model"}),
    ]
    assert reference_card.origin(own) == "from nothing, with teacher as the encoder's teacher"
    assert [path.parent.name for path in reference_card.forebears(own)] == ["teacher", "first"]
    assert [line.split()[1] for line in reference_card.sources(own)] == ["Swathanthra", "read"]
    assert [line.split()[1] for line in reference_card.sources(reference_card.forebears(own))] == ["LJSpeech", "CMU"]


def test_a_model_without_teacher_says_so(tmp_path: Path) -> None:
    own = recipe(tmp_path, 1, {"data": {"train": {"path": "an4/train"}}, "weights_from": "../../runs/big-2/model"})
    assert reference_card.origin([own]) == "from the layers of big, without a teacher"
