"""How near an export is to its model, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sotto.errors import SottoError
from sotto.exports.verification import Agreement, Heard, agreement, check

MODEL = Heard(
    scores=[torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 5.0]])],
    transcripts=["one", "two"],
    clips=["a.wav", "b.wav"],
    states=[torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 5.0]]])],
)


def test_an_equal_export_differs_in_nothing() -> None:
    found = agreement(MODEL, MODEL)
    assert replace(found, farthest=None) == Agreement(2, 0.0, 0.0, 0, 0.0)
    check(found, "float32")


def test_differences_are_shares_of_all_clips_and_the_farthest_clip_is_named() -> None:
    """Scores: 3 and 4 of one clip and 5 of the other are 50 in squares; moved are 1 and 2, 5 in squares."""
    export = Heard(
        scores=[torch.tensor([[3.0, 1.0], [0.0, 4.0]]), torch.tensor([[0.0, 3.0]])],
        transcripts=MODEL.transcripts,
        clips=MODEL.clips,
        states=[torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[5.0, 5.0]]])],
    )
    found = agreement(MODEL, export)
    assert found.scores == pytest.approx(0.1**0.5)
    assert found.encoder == pytest.approx(0.5**0.5)
    assert (found.decisions, found.transcripts, found.farthest) == (0, 0, "b.wav")
    with pytest.raises(SottoError, match=r"its encoder's output differs by 0.71 of its size, .*; farthest on b\.wav;"):
        check(found, "float32")


def test_a_clip_with_another_text_is_named_before_one_with_farther_scores() -> None:
    export = replace(MODEL, scores=[MODEL.scores[0], MODEL.scores[1] * 1.0001], transcripts=["won", "two"])
    found = agreement(MODEL, export)
    assert (found.transcripts, found.farthest) == (1, "a.wav")
    with pytest.raises(SottoError, match=r"it writes another text for 1 of 2 clips; farthest on a\.wav; nothing was"):
        check(found, "float32")
    check(found, "int8")


def test_a_clip_heard_in_whole_and_in_fitted_windows_counts_once() -> None:
    both = replace(MODEL, transcripts=["one", "two", "one", "two"])
    assert agreement(both, replace(both, transcripts=["one", "too", "one", "to"])).transcripts == 1


def test_a_clip_whose_scores_are_no_numbers_is_named() -> None:
    export = replace(MODEL, scores=[MODEL.scores[0], MODEL.scores[1] * float("nan")])
    with pytest.raises(SottoError, match=r"scores differ by nan of their size, .*; farthest on b\.wav"):
        check(agreement(MODEL, export), "int8")


def test_scores_of_a_runtime_that_gives_none_for_the_prompt_are_held_to_the_last_ones() -> None:
    export = replace(MODEL, scores=[torch.tensor([[0.0, 4.0]]), MODEL.scores[1]])
    assert agreement(MODEL, export).scores == 0


def test_a_decision_that_differs_is_refused_in_floats() -> None:
    export = replace(MODEL, scores=[torch.tensor([[3.0, 3.001], [0.0, 4.0]]), MODEL.scores[1]])
    found = agreement(MODEL, export)
    assert found.decisions == pytest.approx(1 / 3)
    with pytest.raises(SottoError, match="its scores differ by 0.42 of their size, more than 0.001"):
        check(found, "float32")


def test_where_something_is_rounded_a_refusal_says_to_prove_it_on_speech_of_its_kind() -> None:
    """A model in doubt: its two best differ by less than rounding."""
    doubt = replace(MODEL, scores=[torch.tensor([[3.0, 2.999], [4.0, 3.999]]), MODEL.scores[1]])
    found = agreement(doubt, replace(doubt, scores=[torch.tensor([[3.0, 3.001], [4.0, 3.999]]), MODEL.scores[1]]))
    reason = r"decides otherwise on 33\.3% of what it writes, more than"
    with pytest.raises(SottoError, match=rf"{reason} 1\.0%; farthest on a\.wav; name speech of the kind"):
        check(found, "float16")
    with pytest.raises(SottoError, match=rf"{reason} 0\.1%; farthest on a\.wav; nothing was written"):
        check(found, "float32")


def test_scores_of_another_shape_are_refused_by_name() -> None:
    export = replace(MODEL, scores=[MODEL.scores[0], torch.zeros(1, 3)])
    with pytest.raises(SottoError, match=r"its scores of b\.wav have the shape \(1, 3\) where it is \(1, 2\); nothing"):
        agreement(MODEL, export)


def test_an_encoder_that_gives_another_shape_is_refused() -> None:
    export = replace(MODEL, states=[MODEL.states[0], torch.zeros(1, 2, 2)])
    with pytest.raises(SottoError, match=r"its encoder's states of b\.wav have the shape \(1, 2, 2\) where"):
        agreement(MODEL, export)


def test_an_encoder_that_keeps_its_states_to_itself_is_not_compared() -> None:
    found = agreement(MODEL, replace(MODEL, states=[]))
    assert found.encoder is None
    check(found, "float32")
