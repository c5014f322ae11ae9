"""Statistics of batch norm: by hand, and of nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recognizers import recognizer
from sotto.data import ClipSource
from sotto.methods.norm_statistics import renew_statistics, spread
from tones import PITCHES, open_folder, write_folder

WORDS = list(PITCHES)[:4]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return open_folder(write_folder(tmp_path_factory.mktemp("norms") / "clips", WORDS, [0.5, 0.6, 0.7, 0.8]))


@pytest.mark.parametrize("architecture", ["parakeet", "wav2vec2_conformer"])
def test_they_are_the_averages_over_batches(architecture: str, clips: ClipSource) -> None:
    found = recognizer(architecture)
    norms = [module for module in found.model.modules() if isinstance(module, nn.BatchNorm1d)]
    weights = {name: tensor.clone() for name, tensor in found.model.named_parameters()}
    momentum = norms[0].momentum
    heard: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor]) -> None:
        heard.append(inputs[0].transpose(0, 1).flatten(1))  # (channels, batch and positions)

    handle = norms[1].register_forward_pre_hook(keep)
    renew_statistics(found, [clips], batch_size=2)
    handle.remove()
    assert len(heard) == 2
    torch.testing.assert_close(norms[1].running_mean, torch.stack([each.mean(1) for each in heard]).mean(0))
    torch.testing.assert_close(norms[1].running_var, torch.stack([each.var(1) for each in heard]).mean(0))
    assert not any(module.training for module in found.model.modules())
    assert norms[0].momentum == momentum
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_clips_of_a_length_are_heard_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = open_folder(write_folder(tmp_path / "clips", WORDS, [0.5, 3.0, 0.6, 2.9]))
    found, lengths = recognizer("parakeet"), []
    own = type(found.family).inputs

    def noting(family: Any, audio: Any) -> Any:
        lengths.append([round(len(each) / 16_000, 1) for each in audio])
        return own(family, audio)

    monkeypatch.setattr(type(found.family), "inputs", noting)
    renew_statistics(found, [uneven], batch_size=2)
    assert lengths == [[0.5, 0.6], [2.9, 3.0]]


def test_clips_are_taken_from_all_over(clips: ClipSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotto.methods.norm_statistics.CLIPS", 4)
    assert [clip.text for clip in spread([clips, clips], 30.0)] == [WORDS[0], WORDS[2]] * 2
    assert [clip.text for clip in spread([clips], 0.65)] == WORDS[:2]
