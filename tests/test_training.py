import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sotto.augmentation import Augmentation
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, ClipExamples, Example
from sotto.families.whisper import Whisper
from sotto.families.whisper_labels import WhisperCollator, shift_right
from sotto.length_sampler import LengthSampler
from sotto.objectives import EncoderCtc, Objective, Setting, objectives
from sotto.speech_trainer import SpeechTrainer, TrainedModel
from sotto.text import get_normalizer
from sotto.training import Training, train
from sotto.training_checkpoints import average, last_checkpoint
from tones import PITCHES, open_folder, square_wave, tiny_whisper, write_folder

Log = list[dict[str, float]]
SECONDS = [0.5, 0.6, 0.7, 0.8]
NOISY = Augmentation(gain_db=6, noise_snr_db=(15, 30), noise_probability=1.0)


class Watcher(Objective):
    """Adds nothing to the loss; notes the steps it is told of, and can act at one of them."""

    name = "watcher"

    def __init__(self, at: int = 0, act: Any = None) -> None:
        super().__init__()
        self.at = at
        self.act = act
        self.steps: list[int] = []

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        return outputs.logits.sum() * 0.0

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        self.steps.append(step)
        if step == self.at:
            self.act(model)


class NotingExamples(ClipExamples):
    """Notes the epoch and the index of every example that is asked for."""

    def __init__(self, source: ClipSource) -> None:
        super().__init__(source, NOISY, 1.0, seed=0)
        self.noted: list[tuple[int, int]] = []

    def __getitem__(self, index: int) -> Example:
        self.noted.append((self.epoch, index))
        return super().__getitem__(index)


def ctc(model: Any) -> Objective:
    _, processor = tiny_whisper()
    torch.manual_seed(0)
    return objectives.handler(EncoderCtc(0.3))(EncoderCtc(0.3), Setting(Whisper(model, processor)))


def short(**changes: Any) -> Training:
    values: dict[str, Any] = {"steps": 6, "batch_size": 2, "learning_rate": 2e-3, "evaluate_every": 3, "log_every": 1}
    return Training(**(values | {"workers": 0} | changes))


def run(
    config: Training,
    source: ClipSource,
    folder: Path,
    terms: Any = (),
    training_data: Any = None,
) -> tuple[Any, Log]:
    """(model, log) of a training of the tiny Whisper; `terms` builds objectives from the model, or is a list."""
    model, processor = tiny_whisper()
    log = train(
        Whisper(model, processor),
        config,
        training_data=training_data or ClipExamples(source, NOISY, 1.0, seed=0),
        validation_data=ClipExamples(source, Augmentation(), 1.0, seed=0),
        language="en",
        normalizer=get_normalizer("english"),
        folder=folder,
        objectives=terms(model) if callable(terms) else terms,
        device="cpu",
    )
    return model, log


def column(log: Log, name: str) -> list[float]:
    return [entry[name] for entry in log if name in entry]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


def check_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return open_folder(write_folder(tmp_path_factory.mktemp("tones") / "clips", list(PITCHES), SECONDS))


@dataclass
class Overfitted:
    model: Any
    log: Log
    folder: Path
    watcher: Watcher
    first_head: torch.Tensor


STEPS, SPOILED = 120, 110


@pytest.fixture(scope="module")
def overfitted(source: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    """120 steps on four clips; after step 110 the model is spoiled, so that the last checkpoint is not the best."""

    def spoil(model: Any) -> None:
        for parameter in model.model.decoder.parameters():
            parameter.data.zero_()

    folder = tmp_path_factory.mktemp("overfitted")
    watcher = Watcher(SPOILED, spoil)
    heads = []

    def terms(model: Any) -> list[Objective]:
        heads.append(ctc(model))
        heads.append(torch.clone(heads[0].head.weight.detach()))
        return [heads[0], watcher]

    config = short(steps=STEPS, batch_size=4, learning_rate=4e-3, evaluate_every=20, log_every=5, warmup_steps=10)
    model, log = run(config, source, folder, terms)
    return Overfitted(model, log, folder, watcher, heads[1])


def test_four_clips_are_learnt_by_heart(overfitted: Overfitted) -> None:
    rates = column(overfitted.log, "eval_wer")
    assert len(rates) == STEPS / 20
    assert min(rates) == 0.0
    assert min(column(overfitted.log, "eval_cer")) == 0.0
    losses = column(overfitted.log, "loss")
    assert losses[0] > 2
    assert min(losses) < 0.5


def test_the_model_left_is_the_best_and_its_checkpoint_is_kept(overfitted: Overfitted, source: ClipSource) -> None:
    rates = column(overfitted.log, "eval_wer")
    assert rates[-1] > 0  # spoiled
    best = 20 * (rates.index(0.0) + 1)
    assert sorted(path.name for path in overfitted.folder.iterdir()) == sorted(
        [f"checkpoint-{STEPS}", f"checkpoint-{best}"]
    )
    saved = weights(overfitted.folder, best)
    for name, parameter in overfitted.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), saved[f"model.{name}"], rtol=0, atol=0)
    assert not overfitted.model.training
    _, processor = tiny_whisper()
    collator = WhisperCollator(processor, "en", 8)
    clips = ClipExamples(source, Augmentation(), 1.0, seed=0)
    features = collator([clips[index] for index in range(4)])["input_features"]
    tokens = overfitted.model.generate(features, language="en", task="transcribe")
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [text.strip() for text in texts] == list(PITCHES)


def test_the_log_has_every_term(overfitted: Overfitted) -> None:
    entries = [entry for entry in overfitted.log if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(5, STEPS + 1, 5))
    assert all({"cross_entropy", "ctc", "watcher", "learning_rate"} <= entry.keys() for entry in entries)
    assert entries[0]["ctc"] > 0.1
    assert all(entry["watcher"] == 0 for entry in entries)


def test_objectives_act_once_after_every_step(overfitted: Overfitted) -> None:
    assert overfitted.watcher.steps == list(range(1, STEPS + 1))


def test_an_objectives_parameters_are_trained_and_saved_but_not_in_the_model(overfitted: Overfitted) -> None:
    saved = weights(overfitted.folder, STEPS)["objectives.0.head.weight"]
    assert saved.shape == overfitted.first_head.shape
    assert (saved - overfitted.first_head).abs().max() > 0.01
    assert not any("head" in name or "objectives" in name for name in overfitted.model.state_dict())


def test_a_finished_run_called_again_takes_no_step(overfitted: Overfitted, source: ClipSource, tmp_path: Path) -> None:
    folder = shutil.copytree(overfitted.folder, tmp_path / "again")
    watcher = Watcher()
    config = short(steps=STEPS, batch_size=4, evaluate_every=20)
    model, log = run(config, source, folder, lambda model: [ctc(model), watcher])
    assert watcher.steps == []
    assert column(log, "eval_wer") == column(overfitted.log, "eval_wer")
    check_same(dict(model.state_dict()), dict(overfitted.model.state_dict()), tolerance=0)


def test_a_finished_run_takes_no_step_in_the_middle_of_an_epoch_either(source: ClipSource, tmp_path: Path) -> None:
    config = short(steps=3, evaluate_every=3)  # two steps an epoch
    run(config, source, tmp_path / "run")
    watcher = Watcher()
    run(config, source, tmp_path / "run", [watcher])
    assert watcher.steps == []


def test_the_logged_terms_add_up_to_the_loss(source: ClipSource, tmp_path: Path) -> None:
    _, log = run(short(steps=3), source, tmp_path / "run", lambda model: [ctc(model)])
    entries = [entry for entry in log if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["cross_entropy"] + entry["ctc"], abs=2e-4)


def interrupt(model: nn.Module) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(source: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of six steps at once, three epochs, with and without length bucketing."""
    folders = {bucketed: tmp_path_factory.mktemp("whole") for bucketed in (True, False)}
    for bucketed, folder in folders.items():
        run(short(length_bucketing=bucketed), source, folder, lambda model: [ctc(model), Watcher()])
    return folders


@pytest.mark.parametrize(("bucketed", "workers"), [(True, 0), (False, 0), (False, 1)])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    source: ClipSource, tmp_path: Path, whole: dict[bool, Path], bucketed: bool, workers: int
) -> None:
    """Stopped in the third epoch, resumed from the middle of the second: order and noise must be those of the epoch."""
    config = short(length_bucketing=bucketed, workers=workers)
    with pytest.raises(KeyboardInterrupt):
        run(config, source, tmp_path / "run", lambda model: [ctc(model), Watcher(5, interrupt)])
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
    watcher = Watcher()
    _, log = run(config, source, tmp_path / "run", lambda model: [ctc(model), watcher])
    assert watcher.steps == [4, 5, 6]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    check_same(weights(tmp_path / "run", 6), weights(whole[bucketed], 6))


@pytest.mark.parametrize("bucketed", [True, False])
def test_every_epoch_has_its_own_order_and_number_also_after_a_resume(
    source: ClipSource, tmp_path: Path, bucketed: bool
) -> None:
    config = short(steps=7, length_bucketing=bucketed)  # two steps an epoch, a checkpoint in the middle of the second
    seen, resumed = NotingExamples(source), NotingExamples(source)
    run(config, source, tmp_path / "whole", training_data=seen)
    with pytest.raises(KeyboardInterrupt):
        run(config, source, tmp_path / "parts", [Watcher(4, interrupt)])
    run(config, source, tmp_path / "parts", [Watcher()], training_data=resumed)
    assert [epoch for epoch, _ in seen.noted[:14]] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    orders = [[index for _, index in seen.noted[start : start + 4]] for start in (0, 4, 8)]
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3]] * 3
    assert orders[0] != orders[1]
    assert resumed.noted[:8] == seen.noted[6:14]
    sampler = LengthSampler(2, SECONDS, seed=0)
    assert (orders[0] == list(sampler)) is bucketed


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_training import Watcher, ctc, open_folder, run, short
from sotto.speech_trainer import SpeechTrainer

def die(self, folder):
    if "checkpoint-6" in folder:
        os.kill(os.getpid(), signal.SIGKILL)

SpeechTrainer._save_rng_state = die
run(short(), open_folder(Path(sys.argv[1])), Path(sys.argv[2]), lambda model: [ctc(model), Watcher()])
"""


def test_a_run_killed_while_it_saves_goes_on_from_the_last_whole_checkpoint(
    source: ClipSource, tmp_path: Path, whole: dict[bool, Path]
) -> None:
    folder = tmp_path / "run"
    here = str(Path(__file__).parent)
    script = [sys.executable, "-c", KILLED, source.config.path, str(folder), here]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "checkpoint-6" / "model.safetensors").exists()  # half of a checkpoint
    watcher = Watcher()
    run(short(), source, folder, lambda model: [ctc(model), watcher])
    assert watcher.steps == [4, 5, 6]
    check_same(weights(folder, 6), weights(whole[True], 6))


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None
    assert last_checkpoint(tmp_path) is None
    for step, state in {20: "{}", 100: "{}", 300: '{"epoch": 1', 400: None}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_bfloat16_trains_nearly_alike_and_keeps_full_weights(
    source: ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    model, log = run(short(precision="bf16"), source, tmp_path / "half")
    _, full = run(short(), source, tmp_path / "full")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    half_losses, losses = column(log, "loss"), column(full, "loss")
    assert half_losses != losses
    np.testing.assert_allclose(half_losses, losses, rtol=0.03)


def test_a_cpu_that_is_slow_at_bfloat16_trains_in_full_precision(
    source: ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    _, log = run(short(precision="bf16"), source, tmp_path / "asked")
    _, full = run(short(), source, tmp_path / "full")
    assert column(log, "loss") == column(full, "loss")
    assert "this CPU is slow at bf16: training in fp32 instead" in caplog.text


def test_spec_augment_masks_frames_and_bins_in_training_only(source: ClipSource, tmp_path: Path) -> None:
    masked: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def terms(model: Any) -> list[Objective]:
        def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            blank = inputs[0] == 0
            counts = int(blank.all(1).sum()), int(blank.all(2).sum())
            masked[model.training].append(counts)

        model.model.encoder.conv1.register_forward_pre_hook(look)
        return []

    model, _ = run(short(mask_time=0.2, mask_frequency=0.2), source, tmp_path / "run", terms)
    frames, bins = (sum(column) for column in zip(*masked[True], strict=True))
    assert len(masked[True]) == 6
    assert frames > 0
    assert bins > 0
    assert masked[False]
    assert set(masked[False]) == {(0, 0)}
    assert not model.config.apply_spec_augment


def batch_of(processor: Any) -> Batch:
    audio = [square_wave(pitch, 0.5) for pitch in PITCHES.values()]
    examples = [Example(wave, word, None, None) for wave, word in zip(audio, ("one", "two three"), strict=False)]
    return WhisperCollator(processor, "en", 8)(examples)


def test_the_loss_is_whispers_own() -> None:
    model, processor = tiny_whisper()
    batch = batch_of(processor)
    expected = model(**batch).loss  # transformers: the mean over all labels that are not -100
    trained = TrainedModel(Whisper(model, processor), [], 0.0)
    found = trained(**batch)["loss"]
    torch.testing.assert_close(found, expected)
    tokens = int((batch["labels"] != IGNORED).sum())
    twice = trained(**batch, num_items_in_batch=torch.tensor(2 * tokens))["loss"]
    torch.testing.assert_close(twice, expected / 2)


def test_label_smoothing_mixes_in_the_mean_over_the_vocabulary() -> None:
    model, processor = tiny_whisper()
    batch = batch_of(processor)
    labels = batch["labels"]
    decoder_inputs = shift_right(labels, model.config.decoder_start_token_id, model.config.pad_token_id)
    scores = model(input_features=batch["input_features"], decoder_input_ids=decoder_inputs).logits.log_softmax(-1)
    kept = labels != IGNORED
    right = scores[kept].gather(1, labels[kept][:, None])
    expected = -(0.9 * right.sum() + 0.1 * scores[kept].mean(-1).sum()) / kept.sum()
    torch.testing.assert_close(TrainedModel(Whisper(model, processor), [], 0.1)(**batch)["loss"], expected)


def test_decoder_inputs_are_the_labels_one_later() -> None:
    labels = torch.tensor([[5, 6, 7, 8], [5, 9, IGNORED, IGNORED]])
    expected = torch.tensor([[1, 5, 6, 7], [1, 5, 9, 0]])
    assert torch.equal(shift_right(labels, start=1, pad=0), expected)


def test_the_sampler_puts_clips_of_like_length_together() -> None:
    lengths = np.random.default_rng(0).uniform(1, 30, size=400).tolist()
    sampler = LengthSampler(8, lengths, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(400))
    spreads = [np.ptp([lengths[index] for index in first[start : start + 8]]) for start in range(0, 400, 8)]
    assert np.mean(spreads) < 4  # 8 clips at random spread over 22 s
    assert lengths[first[0]] == max(lengths)  # what needs most memory comes first
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert second != first


def test_the_first_epoch_can_go_from_short_to_long() -> None:
    lengths = np.random.default_rng(0).uniform(1, 30, size=100).tolist()
    sampler = LengthSampler(8, lengths, seed=0, shortest_first=True)
    first = [round(100 * lengths[index]) for index in sampler]
    assert first == sorted(first)
    sampler.set_epoch(1)
    plain = LengthSampler(8, lengths, seed=0)
    plain.set_epoch(1)
    assert list(sampler) == list(plain)


def test_short_to_long_needs_lengths(tmp_path: Path) -> None:
    alike = open_folder(write_folder(tmp_path / "clips", ["one", "two"], [0.5, 0.5]))
    with pytest.raises(SottoError, match="shortest_first: all training examples have one length"):
        run(short(shortest_first=True), alike, tmp_path / "run")


def test_attention_is_computed_as_asked_and_then_as_before(source: ClipSource, tmp_path: Path) -> None:
    seen: list[str] = []

    def terms(model: Any) -> list[Objective]:
        model.register_forward_pre_hook(lambda module, _: seen.append(module.config._attn_implementation))
        return []

    model, log = run(short(steps=2, attention="eager"), source, tmp_path / "eager", terms)
    _, fused = run(short(steps=2), source, tmp_path / "fused")
    assert set(seen) == {"eager"}
    assert model.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(column(log, "loss"), column(fused, "loss"), rtol=1e-4)


def test_an_error_in_a_loaders_process_stays_one_line(tmp_path: Path) -> None:
    source = open_folder(write_folder(tmp_path / "clips", ["one"] * 2, [0.5, 0.6]))
    for path in (tmp_path / "clips").glob("*.wav"):
        path.write_bytes(b"no audio")
    with pytest.raises(SottoError, match=r"^none of the 2 clips in .*; check the files$"):
        run(short(workers=1), source, tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"evaluate_every": -1}, "evaluate_every must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, found 0.0"),
        ({"workers": -1}, "workers must not be negative"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"shortest_first": True, "length_bucketing": False}, "shortest_first needs length_bucketing"),
        ({"mask_time": -0.1}, "mask_time must be at least 0 and below 1"),
    ],
)
def test_training_validates_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        Training(**({"steps": 1} | values))


def test_weights_are_averaged_and_whole_numbers_taken_from_the_last(tmp_path: Path) -> None:
    for number, (weight, count) in enumerate([(1.0, 3), (3.0, 5)]):
        save_file({"weight": torch.tensor([weight]), "count": torch.tensor(count)}, tmp_path / f"{number}.safetensors")
    found = average(sorted(tmp_path.iterdir()))
    assert found["weight"].tolist() == [2.0]
    assert found["count"].item() == 5


@pytest.mark.parametrize("better", [True, False])
def test_the_average_of_the_last_checkpoints_is_kept_where_it_is_better(
    source: ClipSource, tmp_path: Path, better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of five is the best by itself: it is kept, and is not one of the last three."""
    rates = iter([0.3, 0.6, 0.5, 0.4, 0.4, 0.2 if better else 0.3])
    own = SpeechTrainer.evaluate

    def evaluate(self: SpeechTrainer, *args: Any, metric_key_prefix: str = "eval", **named: Any) -> dict[str, float]:
        own(self, *args, metric_key_prefix=metric_key_prefix, **named)
        return {f"{metric_key_prefix}_wer": next(rates)}

    monkeypatch.setattr(SpeechTrainer, "evaluate", evaluate)
    model, log = run(short(steps=10, evaluate_every=2, average_last=3), source, tmp_path)
    best, *last = (weights(tmp_path, step) for step in (2, 6, 8, 10))
    name = "model.model.encoder.conv1.weight"
    mean = torch.stack([each[name] for each in last]).mean(0)
    expected = mean if better else best[name]
    assert (mean - best[name]).abs().max() > 1e-5
    assert len(column(log, "average_wer")) == 1
    torch.testing.assert_close(model.model.encoder.conv1.weight.detach(), expected)


def test_the_log_is_printed_as_it_comes(source: ClipSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(short(steps=4, evaluate_every=2, log_every=2), source, tmp_path, terms=lambda model: [ctc(model)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4"] * 2 + ["step 4 of 4"] * 3
    assert "loss " in lines[0]
    assert "ctc " in lines[0]
    assert "eval_wer " in lines[1]
    assert "train_runtime " in lines[-1]
