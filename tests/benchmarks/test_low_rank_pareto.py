import argparse
from pathlib import Path

import pytest

import low_rank_pareto
from conformers import make
from sotto.data import DataConfig
from sotto.decoding import Decoding
from sotto.text import get_normalizer
from tones import PITCHES, write_folder


@pytest.fixture
def bench(tmp_path: Path) -> low_rank_pareto.Bench:
    clips = DataConfig(str(write_folder(tmp_path / "clips", list(PITCHES), [0.6, 0.7, 0.8, 0.9])))
    return low_rank_pareto.Bench(make("parakeet"), clips, clips, Decoding(), get_normalizer("basic"))


def test_every_way_is_measured_at_every_share_within_its_budget(bench: low_rank_pareto.Bench) -> None:
    arguments = argparse.Namespace(shares=[0.9, 0.75], multiple=1)
    before = bench.errors_of(bench.base)
    rows = list(low_rank_pareto.by_shares(bench, before, arguments))
    assert [row["way"] for row in rows] == 2 * list(low_rank_pareto.ways(1))
    for row, share in zip(rows, 5 * [0.9] + 5 * [0.75], strict=True):
        assert share - 0.1 < row["encoder_parameters"] <= share
        assert row["against_dense"]["interval"][0] <= row["against_dense"]["wer"] <= row["against_dense"]["interval"][1]
    assert bench.sizes_of(bench.base) == (1.0, 1.0)  # every way starts from the base as it was
