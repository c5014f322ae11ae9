"""Training of encoders with a CTC head, by the same loop as Whisper's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import conformers
from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, ClipExamples, Example
from sotto.families import Ctc
from sotto.new_models import NewParakeet, new_models
from sotto.objectives import EncoderCtc, Objective, Setting, objectives
from sotto.speech_trainer import TrainedModel
from sotto.text import get_normalizer
from sotto.training import Training, train
from sotto.training_recipe import read_training_recipe, train_by_recipe
from tones import PITCHES, open_folder, write_folder

SECONDS = [0.5, 0.6, 0.7, 0.8]
NEW: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 1,
    "attention_heads": 2,
    "subsampling_factor": 4,
    "subsampling_channels": 8,
    "vocabulary": 24,
    "dropout": 0.0,
}
Learnt = tuple[Recognizer, list[dict[str, float]]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return open_folder(write_folder(tmp_path_factory.mktemp("tones") / "clips", list(PITCHES), SECONDS))


def examples() -> list[Example]:
    said = [(1.0, "one two"), (1.6, "three four five"), (0.7, "oh")]
    return [Example(conformers.noise(seconds, seed), text, None, None) for seed, (seconds, text) in enumerate(said)]


def family_of(architecture: str) -> Ctc:
    family = conformers.make(architecture).family
    assert isinstance(family, Ctc)
    return family


def batch_of(family: Ctc, chosen: list[Example]) -> Batch:
    return family.collator("en")(chosen)


@pytest.mark.parametrize("architecture", conformers.CONFORMERS)
def test_labels_are_the_tokenizers_own(architecture: str) -> None:
    family = family_of(architecture)
    labels = batch_of(family, examples())["labels"]
    assert labels.shape == (3, 16)
    for row, example in zip(labels, examples(), strict=True):
        kept = row[row != IGNORED].tolist()
        assert family.processor.tokenizer.decode(kept, group_tokens=False) == example.text
        assert family.blank not in kept


@pytest.mark.parametrize("architecture", ["parakeet", "wav2vec2_conformer"])
def test_the_loss_is_that_of_transformers(architecture: str) -> None:
    """On clips of one length: with padding transformers' Wav2Vec2-Conformer hears what it should not."""
    family = family_of(architecture)
    alike = [replace(example, audio=conformers.noise(1.0, seed)) for seed, example in enumerate(examples())]
    batch = batch_of(family, alike)
    family.model.config.ctc_loss_reduction = "sum"
    family.model.config.ctc_zero_infinity = True
    expected = family.model(**batch).loss
    torch.testing.assert_close(family.loss(batch, 0.0)[1], expected)
    tokens = int((batch["labels"] != IGNORED).sum())
    torch.testing.assert_close(TrainedModel(family, [], 0.0)(**batch)["loss"], expected / tokens)


@pytest.mark.parametrize("architecture", conformers.CONFORMERS)
def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_clips(architecture: str) -> None:
    family = family_of(architecture)
    _, together = family.loss(batch_of(family, examples()), 0.0)
    alone = [family.loss(batch_of(family, [example]), 0.0)[1] for example in examples()]
    assert min(alone) > 1
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", conformers.CONFORMERS)
def test_every_weight_learns(architecture: str) -> None:
    if architecture == "parakeet":
        family = conformers.parakeet(layerdrop=0.0).family
    else:
        positions = "rotary" if architecture.endswith("rotary") else "relative"
        family = conformers.wav2vec2_conformer(positions, layerdrop=0.0).family
    assert isinstance(family, Ctc)
    family.model.train()
    family.loss(batch_of(family, examples()), 0.0)[1].backward()
    silent = [name for name, weight in family.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    idle = ("masked_spec_embed", "pos_conv_embed")  # the second is of no use beside relative positions
    assert [name for name in silent if not any(part in name for part in idle)] == []
    assert bool(silent) is family.idle_weights


def test_layers_left_out_at_random_have_idle_weights() -> None:
    family = family_of("parakeet")
    family.model.config.encoder_config.layerdrop = 0.1
    assert family.idle_weights


def test_a_text_of_more_tokens_than_frames_adds_nothing() -> None:
    family = family_of("parakeet")
    crowded = [Example(conformers.noise(0.3), "one two three four five six", None, None)]
    assert family.loss(batch_of(family, crowded), 0.0)[1].item() == 0.0


def test_a_text_that_the_tokenizer_cannot_write_is_refused() -> None:
    family = family_of("wav2vec2_conformer")
    with pytest.raises(
        SottoError, match="the model cannot write most of 'ONE TWO'; its letters or case differ; choose"
    ):
        batch_of(family, [replace(examples()[0], text="ONE TWO")])


def test_label_smoothing_is_refused(source: ClipSource, tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="there is no label smoothing for a CTC model; leave out label_smoothing"):
        learn(family_of("parakeet"), source, tmp_path, steps=2, label_smoothing=0.1)


def learn(
    family: Ctc, source: ClipSource, folder: Path, objectives: Sequence[Objective] = (), **changes: Any
) -> list[dict[str, float]]:
    values: dict[str, Any] = {
        "batch_size": 4,
        "learning_rate": 4e-3,
        "evaluate_every": 20,
        "log_every": 5,
        "workers": 0,
    }
    return train(
        family,
        Training(**(values | changes)),
        training_data=ClipExamples(source, Augmentation(gain_db=6), 30.0, seed=0),
        validation_data=ClipExamples(source, Augmentation(), 30.0, seed=0),
        language="en",
        normalizer=get_normalizer("basic"),
        folder=folder,
        objectives=objectives,
        device="cpu",
    )


def test_a_term_for_whispers_encoder_is_refused() -> None:
    with pytest.raises(SottoError, match="the objective ctc is for the encoder of a Whisper"):
        objectives.handler(EncoderCtc())(EncoderCtc(), Setting(family_of("parakeet")))


@pytest.fixture(scope="module")
def learnt(source: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A new Parakeet after 240 steps on four clips."""
    config = NewParakeet(**NEW)
    recognizer = Recognizer(*new_models.handler(config)(config, PITCHES, 0))
    assert isinstance(recognizer.family, Ctc)
    log = learn(recognizer.family, source, tmp_path_factory.mktemp("run"), steps=240, warmup_steps=10)
    return recognizer, log


def test_four_clips_are_learnt_by_heart(learnt: Learnt) -> None:
    _, log = learnt
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > 3
    assert losses[-1] < 1
    assert min(entry["eval_wer"] for entry in log if "eval_wer" in entry) == 0.0


def test_what_was_learnt_survives_saving(learnt: Learnt, source: ClipSource, tmp_path: Path) -> None:
    loaded = load(learnt[0].save(tmp_path / "model"))
    assert [found.text for found in loaded.family.transcribe(source, Decoding())] == list(PITCHES)


def recipe(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "data": {"train": {"path": "clips"}, "hold_out": 1},
        "training": {"steps": 4, "batch_size": 2, "evaluate_every": 2, "workers": 0, "mask_time": 0.1},
        "language": "en",
        "new": {"parakeet": NEW},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value is not None}))
    return path


def test_a_recipe_trains_a_new_parakeet_and_another_tunes_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), SECONDS)
    train_by_recipe(read_training_recipe(recipe(tmp_path)), tmp_path, tmp_path / "first")
    first = load(tmp_path / "first" / "model")
    assert first.model.config.encoder_config.hidden_size == 32
    tuned = recipe(tmp_path, new=None, base="first/model")
    train_by_recipe(read_training_recipe(tuned), tmp_path, tmp_path / "second")
    second = load(tmp_path / "second" / "model")
    assert not torch.equal(first.model.ctc_head.weight, second.model.ctc_head.weight)
    assert second.processor.tokenizer.get_vocab() == first.processor.tokenizer.get_vocab()
    resolved = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    assert resolved["new"]["parakeet"]["subsampling_factor"] == 4


def test_a_wav2vec2_conformer_is_tuned_by_a_recipe(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), SECONDS)
    before = conformers.make("wav2vec2_conformer")
    before.save(tmp_path / "base")
    settings = {"steps": 4, "batch_size": 2, "evaluate_every": 2, "workers": 0, "mask_time": 0.2, "average_last": 2}
    tuned = recipe(tmp_path, new=None, base="base", training=settings)
    train_by_recipe(read_training_recipe(tuned), tmp_path, tmp_path / "run")
    after = load(tmp_path / "run" / "model")
    assert not torch.equal(before.model.lm_head.weight, after.model.lm_head.weight)
    train_by_recipe(
        read_training_recipe(recipe(tmp_path, new=None, base="run/model", training=settings)), tmp_path, tmp_path / "2"
    )  # what is masked with is still there


class Stop(Objective):
    """Interrupts after a step."""

    name = "stop"

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, model: Any, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        return outputs.logits.sum() * 0.0

    def after_step(self, model: Any, step: int, learning_rate: float) -> None:
        if step == self.at:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_in_its_first_epoch_goes_on_from_short_to_long(
    source: ClipSource, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 6, "batch_size": 1, "evaluate_every": 2, "shortest_first": True}

    def weights(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        for stop in stops:
            family = family_of("parakeet")
            try:
                learn(family, source, folder, objectives=[Stop(stop)], **settings)
            except KeyboardInterrupt:
                continue
        return dict(family.model.state_dict())

    whole, parts = weights(tmp_path / "whole", 0), weights(tmp_path / "parts", 3, 0)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6, msg=name)
