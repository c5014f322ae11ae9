import argparse
from pathlib import Path
from typing import Any

import pytest

import low_rank_pareto
from conformers import make
from sotto.checkpoint import Recognizer
from sotto.data import DataConfig
from sotto.decoding import Decoding
from sotto.metrics.errors import ErrorReport
from sotto.text import get_normalizer
from tones import PITCHES, tiny_whisper, write_folder


@pytest.fixture
def bench(tmp_path: Path) -> low_rank_pareto.Bench:
    clips = DataConfig(str(write_folder(tmp_path / "clips", list(PITCHES), [0.6, 0.7, 0.8, 0.9])))
    return low_rank_pareto.Bench(make("parakeet"), clips, clips, Decoding(), get_normalizer("basic"))


def test_every_way_is_measured_at_every_share_within_its_budget(
    bench: low_rank_pareto.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = argparse.Namespace(shares=[0.9, 0.75], multiple=1)
    before = bench.errors_of(bench.base)
    measured: list[str] = []
    evaluate = low_rank_pareto.evaluate

    def noted(recognizer: Recognizer, *rest: Any) -> ErrorReport:
        measured.append(low_rank_pareto.digest(recognizer))
        return evaluate(recognizer, *rest)

    monkeypatch.setattr(low_rank_pareto, "evaluate", noted)
    rows = list(low_rank_pareto.by_shares(bench, before, arguments))
    assert [row["way"] for row in rows] == 2 * list(low_rank_pareto.ways(1))
    for row, share in zip(rows, 5 * [0.9] + 5 * [0.75], strict=True):
        assert share - 0.1 < row["encoder_parameters"] <= share
        assert row["against_dense"]["interval"][0] <= row["against_dense"]["wer"] <= row["against_dense"]["interval"][1]
    assert len(set(measured)) == len(measured) <= 8  # a budget alone is one of the two weightings
    assert bench.sizes_of(bench.base) == (1.0, 1.0)  # every way starts from the base as it was


def test_weights_have_a_digest_of_their_own() -> None:
    found = Recognizer(*tiny_whisper())
    changed = found.copy()
    assert low_rank_pareto.digest(changed) == low_rank_pareto.digest(found)
    changed.model.model.encoder.layers[0].fc1.weight.data[0, 0] += 1
    assert low_rank_pareto.digest(changed) != low_rank_pareto.digest(found)
