import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sotto.demo
from sotto.augmentation import Augmentation, Splicing
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig
from sotto.data.hub import HubListing
from sotto.errors import SottoError
from sotto.examples import ClipExamples, SplicedExamples
from sotto.new_models import new_models
from sotto.new_models.parakeet import NewParakeet
from sotto.new_models.whisper import NewWhisper
from sotto.objectives import EncoderCtc
from sotto.training import Training
from sotto.training_recipe import (
    TrainingData,
    TrainingRecipe,
    build_data,
    hold_out,
    read_training_recipe,
    run_training,
    train_by_recipe,
)
from tones import PITCHES, RATE, open_folder, tiny_whisper, write_folder

NEW = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "window_seconds": 1}
RECIPE: dict[str, Any] = {
    "data": {"train": {"path": "clips"}, "hold_out": 2},
    "training": {"steps": 2, "batch_size": 2, "workers": 0, "evaluate_every": 2},
    "language": "en",
    "normalizer": "english",
    "new": {"whisper": {**NEW, "vocabulary": 300, "maximum_tokens": 32}},
    "objectives": [{"ctc": {"weight": 0.2}}],
}


def write(folder: Path, **changes: Any) -> Path:
    """RECIPE as a file, with top-level keys changed, or left out where None."""
    values = {key: value for key, value in (RECIPE | changes).items() if value is not None}
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def data(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (RECIPE["data"] | changes).items() if value is not None}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "clips", ["one", "two", "three", "four"] * 2, [0.1, 0.15, 0.2, 0.25] * 2)


def test_a_recipe_is_read_whole(tmp_path: Path) -> None:
    recipe = read_training_recipe(write(tmp_path))
    assert recipe == TrainingRecipe(
        data=TrainingData(train=DataConfig(path="clips"), hold_out=2),
        training=Training(steps=2, batch_size=2, workers=0, evaluate_every=2),
        language="en",
        new=NewWhisper(16, 1, 1, 2, vocabulary=300, window_seconds=1.0, maximum_tokens=32),
        normalizer="english",
        objectives=(EncoderCtc(0.2),),
    )


def test_the_shipped_recipe_is_a_recipe() -> None:
    recipe = read_training_recipe(Path(sotto.demo.__file__).parent / "train.yaml")
    assert recipe.new is not None
    assert recipe.new.window_seconds == 6
    assert recipe.data.splicing is not None
    assert recipe.objectives == (EncoderCtc(0.3),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"langauge": "en"}, "train.yaml: unknown key 'langauge'; did you mean 'language'?"),
        ({"training": {"stepps": 2}}, "train.yaml.training: unknown key 'stepps'; did you mean 'steps'?"),
        (
            {"data": data(splicing={"maxmum": 3})},
            "train.yaml.data.splicing: unknown key 'maxmum'; did you mean 'maximum'?",
        ),
        (
            {"data": data(augmentation={"gain": 3})},
            "train.yaml.data.augmentation: unknown key 'gain'; did you mean 'gain_db'?",
        ),
        ({"objectives": [{"ctcc": {}}]}, "train.yaml: objectives[0]: unknown objective 'ctcc'; did you mean 'ctc'?"),
        (
            {"objectives": ["ctc", {"ctc": {"wieght": 1.0}}]},
            "train.yaml: objectives[1].ctc: unknown key 'wieght'; did you mean 'weight'?",
        ),
        ({"language": None}, "train.yaml: missing key 'language'"),
        ({"training": {"batch_size": 2}}, "train.yaml.training: missing key 'steps'"),
        ({"data": {"hold_out": 2}}, "train.yaml.data: missing key 'train'"),
        ({"new": {"whisper": {"d_model": 16}}}, "train.yaml: new.whisper: missing key 'encoder_layers'"),
        ({"new": {"wisper": NEW}}, "train.yaml: new: unknown new model 'wisper'; did you mean 'whisper'?"),
        (
            {"base": "some/whisper"},
            "train.yaml: give either base (a checkpoint) or new (the dimensions of a new model)",
        ),
        ({"new": None}, "train.yaml: give either base (a checkpoint) or new (the dimensions of a new model)"),
        (
            {"data": data(validation={"path": "clips"})},
            "train.yaml.data: give either validation (a folder) or hold_out (a number of training clips)",
        ),
        (
            {"data": data(hold_out=None)},
            "train.yaml.data: give either validation (a folder) or hold_out (a number of training clips)",
        ),
        ({"data": data(hold_out=-1)}, "train.yaml.data: hold_out and validation_strings must not be negative"),
        ({"data": data(timestamp_share=1.5)}, "train.yaml.data: timestamp_share must be between 0 and 1, found 1.5"),
        ({"training": {"steps": "ten"}}, "train.yaml.training.steps: expected int, found 'ten'"),
        ({"training": {"steps": 0}}, "train.yaml.training: steps must be at least 1, found 0"),
        (
            {"new": {"whisper": {**NEW, "attention_heads": 3}}},
            "train.yaml: new.whisper: d_model 16 is not a multiple of attention_heads 3",
        ),
        (
            {"new": {"whisper": {**NEW, "window_seconds": 1.5}}},
            "train.yaml: new.whisper: window_seconds must be a whole number of seconds",
        ),
        ({"new": {"whisper": {**NEW, "vocabulary": 255}}}, "train.yaml: new.whisper: vocabulary must be at least 256"),
        ({"objectives": {"ctc": {}}}, "train.yaml: objectives: expected a list, found {'ctc': {}}"),
        (
            {"objectives": [{"guided_distillation": {"teacher": "base", "rounded_over": 2}}]},
            "train.yaml: guided_distillation goes on for 2 steps, and training for 2; let it end before training",
        ),
        ({"objectives": [{"ctc": {"weight": 0}}]}, "train.yaml: objectives[0].ctc: weight must be positive, found 0"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(SottoError, match=f"^{re.escape(message)}") as caught:
        read_training_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: {steps: 2\nlanguage: en\n", r"train.yaml: is not YAML: .* line 2"),
        (b"language: \xff\xfe", r"train.yaml: is not YAML: "),
        (b"- one\n- two\n", r"train.yaml: a recipe is keys and values, found list"),
        (b"", r"train.yaml: a recipe is keys and values, found NoneType"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    with pytest.raises(SottoError, match=message) as caught:
        read_training_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match=r"absent.yaml: cannot be read \(No such file or directory\); check the path"):
        read_training_recipe(tmp_path / "absent.yaml")


def names(source: ClipSource) -> list[str]:
    return [reference.name for reference in source.references]


def test_held_out_clips_are_drawn_with_the_seed_and_not_trained_on(clips: Path) -> None:
    source = open_folder(clips)
    rest, kept = hold_out(source, 3, seed=1)
    assert len(kept.references) == 3
    assert sorted(names(rest) + names(kept)) == names(source)
    assert names(rest) == sorted(names(rest))
    assert [names(part) for part in hold_out(source, 3, seed=1)] == [names(rest), names(kept)]
    assert any(names(hold_out(source, 3, seed=seed)[1]) != names(kept) for seed in range(2, 6))


@pytest.mark.parametrize("count", [8, 9])
def test_holding_out_every_clip_is_refused(clips: Path, count: int) -> None:
    with pytest.raises(SottoError, match=f"hold_out {count} would leave none of the 8 training clips"):
        hold_out(open_folder(clips), count, seed=0)


def test_holding_out_of_a_hub_dataset_is_refused() -> None:
    listing = object.__new__(HubListing)
    source = ClipSource(DataConfig(path="owner/name"), listing, sampling_rate=RATE)
    with pytest.raises(SottoError, match="owner/name: hold_out needs clips in a folder; give validation"):
        hold_out(source, 2, seed=0)


def build(root: Path, **values: Any) -> tuple[Any, Any]:
    config = TrainingData(**({"train": DataConfig(path="clips"), "hold_out": 2} | values))
    return build_data(config, root, 1.0, seed=3)


def test_clips_without_splicing(tmp_path: Path, clips: Path) -> None:
    varied = Augmentation(gain_db=6)
    training, validation = build(tmp_path, augmentation=varied)
    assert isinstance(validation, ClipExamples)
    assert (len(training), len(validation)) == (6, 2)
    assert training.parts[0].augmentation == varied
    assert validation.augmentation == Augmentation()
    held = {reference.name for reference in validation.references}
    assert held.isdisjoint(reference.name for reference in training.parts[0].references)


def test_several_folders_are_learnt_from_together(tmp_path: Path, clips: Path) -> None:
    write_folder(tmp_path / "more", ["two", "one"], [0.3, 0.35])
    write_folder(tmp_path / "validation", ["three"], [0.2])
    folders = (DataConfig(path="clips"), DataConfig(path="more"))
    values: dict[str, Any] = {"train": folders, "hold_out": 0, "validation": DataConfig(path="validation")}
    training, validation = build(tmp_path, **values)
    assert (len(training), len(validation)) == (10, 1)
    assert [training[index].text for index in (0, 7, 8, 9)] == ["one", "four", "two", "one"]
    assert training.lengths == [0.1, 0.15, 0.2, 0.25] * 2 + [0.3, 0.35]
    training.set_epoch(3)
    assert [part.epoch for part in training.parts] == [3, 3]
    spliced, one_by_one = build(tmp_path, splicing=Splicing(strings=5), validation_strings=0, **values)
    assert len(spliced.splicer.by_speaker["a"]) == 10
    assert isinstance(one_by_one, ClipExamples)
    with pytest.raises(SottoError, match="hold_out takes clips out of one folder"):
        TrainingData(train=folders, hold_out=1)


def test_transcripts_are_learnt_as_the_normalizer_gives_them(tmp_path: Path, clips: Path) -> None:
    metadata = clips / "metadata.csv"
    metadata.write_text(metadata.read_text().replace(",one,", ',"One, IT\u2019S",'))
    training, _ = build(tmp_path, transcripts="plain")
    texts = {training[index].text for index in range(6)}
    assert texts <= {"one it's", "two", "three", "four"}
    assert "one it's" in texts
    spliced, _ = build(tmp_path, transcripts="plain", splicing=Splicing(strings=5))
    assert {clip.text for clip in spliced.splicer.by_speaker["a"]} == texts
    with pytest.raises(SottoError, match="unknown normalizer 'plane'"):
        TrainingData(train=DataConfig(path="clips"), hold_out=1, transcripts="plane")


def test_spliced_strings_of_separate_recordings(tmp_path: Path, clips: Path) -> None:
    splicing = Splicing(1, 3, cut_probability=0.5, strings=40)
    varied = Augmentation(speed=(0.9, 1.1), gain_db=3, noise_snr_db=(20, 30), noise_probability=0.25)
    values: dict[str, Any] = {"splicing": splicing, "augmentation": varied, "validation_strings": 7}
    training, validation = build(tmp_path, timestamp_share=0.5, **values)
    assert isinstance(training, SplicedExamples)
    assert isinstance(validation, SplicedExamples)
    assert (len(training), len(validation)) == (40, 7)
    assert training.splicer.config == splicing
    assert validation.splicer.config == replace(splicing, strings=7, cut_probability=0.0)
    assert validation.augmentation == replace(varied, speed=(1.0,))
    assert all(validation[index].span is None for index in range(7))
    recordings = [
        {clip.name for spoken in part.splicer.by_speaker.values() for clip in spoken} for part in (training, validation)
    ]
    assert [len(part) for part in recordings] == [6, 2]
    assert recordings[0].isdisjoint(recordings[1])


def test_recordings_without_a_transcript_are_not_spliced(tmp_path: Path, clips: Path) -> None:
    rows = list(csv.reader((clips / "metadata.csv").open()))
    without_text = clips / "metadata.jsonl"
    lines = [f'{{"file_name": "{row[0]}", "speaker": "a"{text}}}' for row, text in zip(rows[1:], texts(), strict=True)]
    without_text.write_text("\n".join(lines))
    (clips / "metadata.csv").unlink()
    training, validation = build(tmp_path, splicing=Splicing(strings=5), hold_out=1)
    spliced = [clip for part in (training, validation) for clip in part.splicer.by_speaker["a"]]
    assert all(clip.text for clip in spliced)
    assert len(spliced) == 7


def texts() -> list[str]:
    """The last of eight clips has no transcript."""
    return [', "text": "one"'] * 7 + [""]


def test_no_transcripts_is_an_error(tmp_path: Path, clips: Path) -> None:
    (clips / "metadata.csv").unlink()
    with pytest.raises(SottoError, match=r"no transcripts in clips; add a metadata.csv with columns file_name,text"):
        build(tmp_path)


def test_validation_without_transcripts_is_an_error(tmp_path: Path, clips: Path) -> None:
    other = write_folder(tmp_path / "validation", ["one"], [0.5])
    (other / "metadata.csv").unlink()
    with pytest.raises(SottoError, match=r"no transcripts in validation; add a metadata.csv"):
        build(tmp_path, hold_out=0, validation=DataConfig(path="validation"))


def test_a_folder_named_twice_is_heard_twice_and_varied_each_time(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "other").mkdir()
    write_folder(tmp_path / "other" / "clips", ["one"], [0.9])
    twice = (DataConfig(path="clips"), DataConfig(path="clips"))
    train, _ = build(
        tmp_path,
        train=twice,
        hold_out=0,
        validation=DataConfig(path="other/clips"),
        augmentation=Augmentation(gain_db=12),
    )
    half = len(train) // 2
    assert [train[index].text for index in range(half)] == [train[half + index].text for index in range(half)]
    assert not any(np.array_equal(train[index].audio, train[half + index].audio) for index in range(half))


def test_a_clip_in_both_roles_is_an_error(tmp_path: Path, clips: Path) -> None:
    shutil.copytree(clips, tmp_path / "validation")
    with pytest.raises(SottoError, match="data: train and validation share a clip"):
        build(tmp_path, hold_out=0, validation=DataConfig(path="validation"))


def test_a_new_model_is_trained_as_the_recipe_says(tmp_path: Path, clips: Path) -> None:
    spliced = data(splicing={"maximum": 2, "strings": 6, "lead_seconds": [0.0, 0.1]}, validation_strings=3)
    recipe = read_training_recipe(write(tmp_path, data=spliced))
    model, processor, log = run_training(recipe, tmp_path, tmp_path / "run", no_base, {})
    assert model.config.d_model == 16
    assert model.config.max_source_positions == 50
    assert len(processor.tokenizer.encode(" three", add_special_tokens=False)) == 1  # learnt from the transcripts
    assert [entry["step"] for entry in log if "eval_wer" in entry] == [2]
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2").is_dir()
    again, _, _ = run_training(recipe, tmp_path, tmp_path / "another", no_base, {})
    for name, parameter in model.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name].numpy(), parameter.numpy(), atol=1e-6, err_msg=name)


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / "run"
    train_by_recipe(read_training_recipe(write(tmp_path)), tmp_path, folder)
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["training"]["steps"] == 2
    assert resolved["objectives"] == [{"ctc": {"weight": 0.2, "units": "tokens", "flat_start": 0}}]
    assert train_by_recipe(read_training_recipe(write(tmp_path)), tmp_path, folder) >= 0  # a second start
    other = read_training_recipe(write(tmp_path, training={"steps": 3, "batch_size": 2, "workers": 0}))
    with pytest.raises(SottoError, match="holds a run of another recipe"):
        train_by_recipe(other, tmp_path, folder)


def test_clips_and_checkpoints_of_the_same_name_are_told_apart(tmp_path: Path, clips: Path) -> None:
    folder, base = tmp_path / "run", tmp_path / "base"
    Recognizer(*tiny_whisper()).save(base)
    recipe = read_training_recipe(write(tmp_path, new=None, base="base"))
    train_by_recipe(recipe, tmp_path, folder)
    Recognizer(*tiny_whisper(seed=5)).save(base)
    with pytest.raises(SottoError, match="holds a run of another base or teacher, or of other data"):
        train_by_recipe(recipe, tmp_path, folder)


def no_base(name: str) -> Any:
    raise AssertionError(f"a base was opened: {name}")


def test_a_new_model_takes_over_what_fits_from_a_checkpoint(tmp_path: Path, clips: Path) -> None:
    sizes = {"d_model": 16, "window_seconds": 1.0, "maximum_tokens": 32}
    other, processor = tiny_whisper(seed=3, vocabulary=258, **sizes)  # another vocabulary
    with torch.no_grad():
        other.model.decoder.layers[0].fc1.bias.fill_(0.5)
    Recognizer(other, processor).save(tmp_path / "other")
    still = {"steps": 1, "learning_rate": 1e-9, "batch_size": 2, "workers": 0, "evaluate_every": 1}
    train_by_recipe(
        read_training_recipe(write(tmp_path, weights_from="other", training=still)), tmp_path, tmp_path / "run"
    )
    trained = load(tmp_path / "run" / "model").model.state_dict()
    for name, tensor in other.state_dict().items():
        taken = trained[name].shape == tensor.shape and torch.allclose(trained[name], tensor, atol=1e-5)
        assert taken == (name not in ("model.decoder.embed_tokens.weight", "proj_out.weight")), name


def test_a_new_model_has_the_vocabulary_of_a_checkpoint(tmp_path: Path, clips: Path) -> None:
    other, processor = tiny_whisper(vocabulary=258)
    Recognizer(other, processor).save(tmp_path / "other")
    once = {"steps": 1, "batch_size": 2, "workers": 0, "evaluate_every": 1}
    train_by_recipe(
        read_training_recipe(write(tmp_path, vocabulary_from="other", training=once)), tmp_path, tmp_path / "run"
    )
    trained = load(tmp_path / "run" / "model")
    assert trained.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert trained.model.config.vocab_size == other.config.vocab_size
    with pytest.raises(SottoError, match="vocabulary_from is for a new model; a base brings its own"):
        read_training_recipe(write(tmp_path, new=None, base="some/whisper", vocabulary_from="other"))
    Recognizer(*tiny_whisper(window_seconds=2.0, languages=("hi",))).save(tmp_path / "other")
    with pytest.raises(
        SottoError, match="its tokens are not those of a Whisper of 1 s that knows en; take one with the"
    ):
        run_training(
            read_training_recipe(write(tmp_path, vocabulary_from="other", training=once)),
            tmp_path,
            tmp_path / "again",
            lambda name: load(tmp_path / name),
            {},
        )


def test_a_new_conformer_takes_the_vocabulary_of_a_conformer() -> None:
    config = NewParakeet(hidden_size=16, layers=1, attention_heads=2, subsampling_channels=8, vocabulary=40)
    build = new_models.handler(config)
    _, processor = build(config, list(PITCHES), 0, None)
    model, other = build(config, ["nothing of these"], 0, processor.tokenizer)
    assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert model.config.vocab_size == len(processor.tokenizer)
    with pytest.raises(SottoError, match="its tokens are not those of a Parakeet; take the vocabulary of one"):
        build(config, list(PITCHES), 0, tiny_whisper()[1].tokenizer)


def test_weights_that_hardly_fit_are_refused(tmp_path: Path, clips: Path) -> None:
    recognizer = Recognizer(*tiny_whisper())  # twice as wide
    with pytest.raises(SottoError, match="weights_from: 'other' fits less than half of the new model"):
        run_training(
            read_training_recipe(write(tmp_path, weights_from="other")),
            tmp_path,
            tmp_path / "run",
            lambda name: recognizer,
            {},
        )
    with pytest.raises(SottoError, match="weights_from is for a new model"):
        read_training_recipe(write(tmp_path, new=None, base="some/whisper", weights_from="other"))


def test_a_base_is_opened_and_trained(tmp_path: Path, clips: Path) -> None:
    opened: list[str] = []
    model, processor = tiny_whisper()
    before = model.model.encoder.conv1.weight.detach().clone()

    def load(name: str) -> Any:
        opened.append(name)
        return Recognizer(model, processor)

    recipe = read_training_recipe(write(tmp_path, new=None, base="some/whisper"))
    found, _, _ = run_training(recipe, tmp_path, tmp_path / "run", load, {})
    assert opened == ["some/whisper"]
    assert found is model
    assert (model.model.encoder.conv1.weight - before).abs().max() > 0


def test_a_language_that_the_model_has_not_is_refused(tmp_path: Path, clips: Path) -> None:
    recipe = read_training_recipe(write(tmp_path, language="de"))
    with pytest.raises(SottoError, match="the model has no language 'de'"):
        run_training(recipe, tmp_path, tmp_path / "run", no_base, {})
    assert not (tmp_path / "run").exists()
