from typing import Any

import pytest
import torch

import conformers
from sotto.errors import SottoError
from sotto.spec_augment import masked, spans, spec_augment


def test_about_the_share_asked_for_is_masked_in_whole_spans() -> None:
    found = spans(200, 400, 0.2, 10, torch.device("cpu"))
    assert found.shape == (200, 400)
    assert 0.12 < found.float().mean().item() < 0.25  # spans may overlap
    padded = torch.nn.functional.pad(found.int(), (1, 1))
    starts, ends = ((padded.diff() == step).nonzero()[:, 1] for step in (1, -1))
    assert (ends - starts).min() >= 10


@pytest.mark.parametrize(("length", "share"), [(400, 0.0), (9, 0.5)])
def test_nothing_is_masked_for_no_share_or_in_less_than_a_span(length: int, share: float) -> None:
    assert not spans(4, length, share, 10, torch.device("cpu")).any()


def test_whole_frames_and_whole_bins_are_masked() -> None:
    features = torch.ones(8, 300, 40)
    zeros = masked(features, 0.1, 0.3) == 0
    frames, bins = zeros.all(2), zeros.all(1)
    assert frames.any()
    assert bins.any()
    assert torch.equal(zeros, frames[:, :, None] | bins[:, None, :])
    assert torch.equal(features, torch.ones_like(features))  # the batch itself stays


def heard_by(recognizer: Any) -> list[torch.Tensor]:
    """What the encoder of a Parakeet hears from now on, after whatever is done to it."""
    heard: list[torch.Tensor] = []
    recognizer.model.encoder.subsampling.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    return heard


def test_a_parakeet_is_masked_in_training_only_and_never_afterwards() -> None:
    recognizer = conformers.make("parakeet")
    heard = heard_by(recognizer)
    inputs = recognizer.family.inputs([conformers.noise(4.0)])
    config = recognizer.model.config.to_dict()
    with spec_augment(recognizer.model, 0.3, 0.0):
        for training in (True, False):
            recognizer.model.train(training)
            recognizer.family.run(inputs)
    recognizer.model.train()
    recognizer.family.run(inputs)
    silent = [int((features == 0).all(-1).sum()) for features in heard]
    assert silent[1] == silent[2]  # frames of padding, if any
    assert silent[0] >= silent[1] + 10
    assert recognizer.model.config.to_dict() == config


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_family_that_masks_by_itself_is_told_and_then_told_to_stop(share: float) -> None:
    model = conformers.make("wav2vec2_conformer").model
    before = model.config.to_dict()
    with spec_augment(model, share, 0.0):
        assert model.config.apply_spec_augment is (share > 0)
        assert (model.config.mask_time_prob, model.config.mask_feature_prob) == (share, 0.0)
    assert model.config.to_dict() == before | {"apply_spec_augment": False}


def test_frames_cannot_be_masked_without_the_embedding_that_takes_their_place() -> None:
    model = conformers.wav2vec2_conformer(mask_time_prob=0.0, mask_feature_prob=0.0).model
    message = "the model has no embedding for masked frames; leave out mask_time"
    with pytest.raises(SottoError, match=message), spec_augment(model, 0.1, 0.0):
        pass
    with spec_augment(model, 0.0, 0.1):
        assert model.config.apply_spec_augment
