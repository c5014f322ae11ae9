"""Divergence between recognisers against sums by hand, and the choice of ranks that it makes."""

from types import SimpleNamespace

import pytest
import torch
from small_whisper import MakeRecognizer, apply, each_window
from transformers import WhisperConfig

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.methods import ranks
from sotto.methods.divergence import divergence


def saying(*rows: list[float]) -> Recognizer:
    """A recogniser that gives each token the same distribution, whatever it hears."""
    logits = torch.tensor(rows).log()

    def model(input_features: torch.Tensor, decoder_input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=logits[None])

    model.config = WhisperConfig()  # type: ignore[attr-defined]
    return Recognizer(model, None)


def test_the_divergence_is_the_mean_over_tokens() -> None:
    original = saying([0.5, 0.5], [0.9, 0.1])
    moved = saying([0.25, 0.75], [0.9, 0.1])
    expected = (0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))) / 2
    window = {"input_features": torch.zeros(1, 2, 4), "decoder_input_ids": torch.zeros(1, 2)}
    assert divergence(moved, original, [window, window]) == pytest.approx(expected.item(), rel=1e-6)
    assert divergence(original, original, [window]) == 0.0
    assert divergence(original, original, []) == 0.0


def test_the_divergence_of_models_grows_with_what_is_taken_away(
    make_recognizer: MakeRecognizer, clips: ClipSource
) -> None:
    base = make_recognizer()
    windows = each_window(base, clips).split(1)
    transcripts = [base.family.with_transcript({"input_features": window}) for window in windows]
    assert divergence(base.copy(), base, transcripts) == pytest.approx(0.0, abs=1e-9)
    found = []
    for parameters in (0.9, 0.7, 0.4):
        smaller = base.copy()
        apply(smaller, clips, parameters=parameters, rank_multiple=2)
        found.append(divergence(smaller, base, transcripts))
    assert 0 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("better", ["relative", "sensitivity"])
def test_the_best_weighting_is_the_one_that_diverges_less(
    make_recognizer: MakeRecognizer, clips: ClipSource, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    tried: list[dict[str, float]] = []
    measure = ranks.divergences

    def weighed(*arguments: object) -> dict[str, float]:
        tried.append(measure(*arguments))  # type: ignore[arg-type]
        return {name: nats if name == better else 9.0 for name, nats in tried[-1].items()}

    monkeypatch.setattr(ranks, "divergences", weighed)
    best, asked = make_recognizer(64), make_recognizer(64)
    notes = apply(best, clips, parameters=0.6)
    apply(asked, clips, parameters=0.6, weighting=better)
    assert best.structure == asked.structure
    assert tried[0].keys() == {"relative", "sensitivity"}
    assert f"ranks weighted by {better}" in notes[-1]
    assert f"{better} {tried[0][better]:.3g}" in notes[-1]
