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
    ("path", "name", "part"),
    [
        ("../conformer-english", "conformer-english", None),
        ("../../../runs/conformer-english-2/model", "conformer-english", 2),
        ("whisper-english-small-1/model", "whisper-english-small", 1),
    ],
)
def test_a_model_is_known_by_its_run(path: str, name: str, part: int | None) -> None:
    assert reference_card.named(path) == (name, part)


def heard(corpus: str) -> dict[str, Any]:
    return {"data": {"train": {"path": f"c/{corpus}/train/"}}}


def test_the_card_names_what_the_models_before_it_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_card, "REFERENCE", tmp_path)
    taught = {"layerwise_distillation": {"teacher": "../teacher"}}
    recipe(tmp_path / "first", 1, heard("an4") | {"objectives": ["ctc", {"ctc": None}]})
    recipe(tmp_path / "first", 2, heard("common_voice_en") | {"base": "../runs/first-1/model"})
    recipe(tmp_path / "teacher", 1, heard("ljspeech") | {"weights_from": "../runs/first-1/model"})
    synthetic = {"data": {"train": [{"path": "runs/synthetic-malayalam"}]}}
    own = [
        recipe(tmp_path / "pupil", 1, synthetic | {"new": {}, "objectives": [taught]}),
        recipe(tmp_path / "pupil", 2, heard("msc_malayalam") | {"base": "../runs/pupil-1/model"}),
    ]
    recipe(tmp_path / "pupil", 3, heard("speechocean762") | {"base": "../runs/pupil-2/model"})
    before = reference_card.forebears(own)
    assert [(path.parent.name, path.stem) for path in before] == [("teacher", "train-1"), ("first", "train-1")]
    assert [line.split()[1] for line in reference_card.sources(own)] == ["Swathanthra", "read"]
    assert [line.split()[1] for line in reference_card.sources(before)] == ["LJSpeech", "CMU"]
    assert reference_card.origin(own) == "from nothing, with teacher as its teacher"


def test_a_model_without_teacher_says_so(tmp_path: Path) -> None:
    own = recipe(tmp_path, 1, heard("an4") | {"weights_from": "../../runs/big-2/model"})
    assert reference_card.origin([own]) == "from the layers of big, without a teacher"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (heard("gigaspeech"), "nothing is known of c/gigaspeech/train; add its source and licence"),
        (heard("an4") | {"base": "openai/whisper-small"}, "openai/whisper-small is no reference model"),
    ],
)
def test_what_is_not_known_of_a_models_data_is_an_error(plan: dict[str, Any], message: str, tmp_path: Path) -> None:
    own = [recipe(tmp_path, 1, plan)]
    with pytest.raises(SystemExit, match=message):
        reference_card.sources(own + reference_card.forebears(own))


def test_a_log_without_validation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps([{"step": 1, "loss": 2.0}]))
    with pytest.raises(SystemExit, match=r"no validation in .*log.json"):
        reference_card.curve([tmp_path])
