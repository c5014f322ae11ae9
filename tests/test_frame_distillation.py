from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from conformers import make
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.examples import Batch, Example
from sotto.families.whisper import Whisper
from sotto.new_models import NewParakeet, new_models
from sotto.objectives import FrameDistillation, FrameDistillationObjective, Setting, objectives
from sotto.objectives.frame_distillation import frames_of
from sotto.training_recipe import read_training_recipe, train_by_recipe
from tones import PITCHES, square_wave, tiny_whisper, write_folder

PARAKEET = NewParakeet(16, 1, 2, subsampling_channels=4, vocabulary=24, mel_bins=16)
AUDIO = [square_wave(300, 0.9), square_wave(700, 0.5)]


def teacher() -> Recognizer:
    return Recognizer(*new_models.handler(PARAKEET)(PARAKEET, list(PITCHES), 0))


def built(config: FrameDistillation, opened: Recognizer | None = None) -> FrameDistillationObjective:
    found = opened or teacher()
    setting = Setting(Whisper(*tiny_whisper()), lambda name: found)
    objective = objectives.handler(config)(config, setting)
    assert isinstance(objective, FrameDistillationObjective)
    return objective


def batch_for(objective: FrameDistillationObjective, audio: list[Any]) -> Batch:
    assert objective.collate is not None
    return objective.collate([Example(samples, "one", None, None) for samples in audio])


def term(objective: FrameDistillationObjective, states: torch.Tensor, audio: list[Any]) -> torch.Tensor:
    outputs = SimpleNamespace(encoder_last_hidden_state=states)
    return objective(nn.Identity(), batch_for(objective, audio), outputs, torch.tensor(5))


def test_frames_are_means_of_their_states_by_hand() -> None:
    states = torch.arange(10.0).view(1, 10, 1)
    assert frames_of(states, 4).flatten().tolist() == [1.5, 5.5]  # two states are left over


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_term_is_the_divergence_over_frames_that_are_not_padding(temperature: float) -> None:
    objective = built(FrameDistillation("teacher", weight=0.7, temperature=temperature))
    states = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    inputs = {name.removeprefix("teacher_"): tensor for name, tensor in batch_for(objective, AUDIO).items()}
    scores, counts = objective.teacher.run(inputs), objective.teacher.frame_counts(inputs).tolist()
    assert counts[1] < counts[0] <= 12
    expected = 0.0
    for clip in range(2):
        for frame in range(counts[clip]):
            wanted = (scores[clip, frame] / temperature).softmax(-1)
            own = objective.head(states[clip, 4 * frame : 4 * frame + 4].mean(0)) / temperature
            expected += (wanted * (wanted.log() - own.log_softmax(-1))).sum().item()
    found = term(objective, states, AUDIO).item()
    assert found == pytest.approx(0.7 * temperature**2 * expected / 5, rel=1e-4)


def test_a_student_that_says_what_the_teacher_says_has_no_loss() -> None:
    objective = built(FrameDistillation("teacher"))
    taught = objective.taught(batch_for(objective, AUDIO), torch.device("cpu"))
    objective.head = nn.Identity()
    states = taught.scores.repeat_interleave(4, dim=1)
    assert term(objective, states, AUDIO).item() == pytest.approx(0.0, abs=1e-5)


def test_the_states_of_the_teacher_are_learnt_frame_by_frame() -> None:
    objective = built(FrameDistillation("teacher", states=0.5))
    taught = objective.taught(batch_for(objective, AUDIO), torch.device("cpu"))
    states = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    head = objective.teacher.model.ctc_head(taught.states)
    torch.testing.assert_close(head, taught.scores)  # these are what the head hears
    assert objective.to_states is not None
    expected = 0.0
    for clip, count in enumerate(taught.heard.sum(1).tolist()):
        for frame in range(count):
            wanted = taught.states[clip, frame]
            wanted = (wanted - wanted.mean()) / wanted.std(correction=0)
            own = objective.to_states(states[clip, 4 * frame : 4 * frame + 4].mean(0))
            expected += 0.5 * (own - wanted).square().mean().item() / 5
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.zero_()
    both = term(objective, states, AUDIO).item()
    objective.to_states = None
    assert both - term(objective, states, AUDIO).item() == pytest.approx(expected, rel=1e-3)


def test_gradients_reach_the_student_and_its_head_and_not_the_teacher() -> None:
    objective = built(FrameDistillation("teacher"))
    states = torch.randn(2, 50, 32, requires_grad=True)
    term(objective, states, AUDIO).backward()
    assert states.grad is not None
    assert states.grad[1, :20].abs().sum() > 0
    assert states.grad[1, 36:].abs().sum() == 0  # padding of the shorter clip
    assert objective.head.weight.grad is not None
    assert all(parameter.grad is None for parameter in objective.teacher.model.parameters())
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"head"}
    assert set(objective.state_dict()) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.0}, "weight must be positive, found 0.0"),
        ({"temperature": -1.0}, "temperature must be positive, found -1.0"),
        ({"states": -1.0}, "states must not be negative, found -1.0"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        FrameDistillation("teacher", **values)


def test_a_whisper_teaches_no_frames() -> None:
    with pytest.raises(SottoError, match="the teacher must have a CTC head; 'teacher' has none"):
        built(FrameDistillation("teacher"), Recognizer(*tiny_whisper()))


def test_a_ctc_model_is_no_student() -> None:
    config = FrameDistillation("teacher")
    with pytest.raises(SottoError, match="frame_distillation is for the encoder of a Whisper"):
        objectives.handler(config)(config, Setting(make("parakeet").family))


def test_a_frame_of_20_ms_is_one_position() -> None:
    assert built(FrameDistillation("teacher"), make("wav2vec2_conformer")).positions == 1
    assert built(FrameDistillation("teacher")).positions == 4


@pytest.mark.parametrize(("samples", "found"), [(160, 10), (480, 30)])
def test_a_frame_of_the_teacher_must_be_made_of_whole_positions(
    samples: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = make("wav2vec2_conformer")
    monkeypatch.setattr(type(recognizer.family), "samples_per_frame", samples)
    with pytest.raises(SottoError, match=f"must be a multiple of 20 ms, found {found} ms"):
        built(FrameDistillation("teacher"), recognizer)


def test_a_recipe_trains_with_a_teacher_whose_path_is_seen_from_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    teacher().save(tmp_path / "teacher")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "window_seconds": 1}
    values = {
        "data": {"train": {"path": "clips"}, "hold_out": 1},
        "training": {"steps": 4, "batch_size": 2, "evaluate_every": 2, "log_every": 1, "workers": 0},
        "language": "en",
        "new": {"whisper": {**sizes, "vocabulary": 300, "maximum_tokens": 32}},
        "objectives": [{"frame_distillation": {"teacher": "teacher", "weight": 2.0}}],
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    train_by_recipe(read_training_recipe(tmp_path / "train.yaml"), tmp_path, tmp_path / "run")
    log = yaml.safe_load((tmp_path / "run" / "log.json").read_text())
    assert all(np.isfinite(entry["frame_distillation"]) for entry in log if "loss" in entry)
    assert load(tmp_path / "run" / "model").model.config.d_model == 16
