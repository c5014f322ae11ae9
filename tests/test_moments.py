"""Streaming moments against numpy over all rows at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sotto.moments
from sotto.moments import BLOCKS, Moments

CPU = torch.device("cpu")


def moments_of(rows: torch.Tensor, pieces: int = 1) -> Moments:
    moments = Moments(rows.shape[-1], CPU)
    for piece in rows.chunk(pieces):
        moments.add(piece)
    return moments


def random_rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows with a mean, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    mean = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + mean


def assert_close(moments: Moments, rows: torch.Tensor, tolerance: float) -> None:
    """Both moments within `tolerance` of numpy's, relative to the largest entry."""
    values = rows.double().numpy().reshape(-1, rows.shape[-1])
    expected = np.atleast_2d(np.cov(values, rowvar=False, bias=True))
    assert moments.count == len(values)
    assert np.abs(moments.mean.numpy() - values.mean(0)).max() <= tolerance * np.abs(values.mean(0)).max()
    assert np.abs(moments.covariance.numpy() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rows_in_chunks_give_numpys_mean_and_covariance(dtype: torch.dtype, tolerance: float) -> None:
    rows = random_rows(1000, 30).to(dtype)
    moments = Moments(30, CPU)
    for piece in (rows[:1], rows[1:400], rows[400:990].view(10, 59, 30), rows[990:]):
        moments.add(piece)
    assert_close(moments, rows, tolerance)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64


@pytest.mark.parametrize("width", [1, 2, BLOCKS - 1, BLOCKS, BLOCKS + 1, 7, 10])
def test_widths_that_the_blocks_do_not_divide(width: int) -> None:
    rows = random_rows(50, width)
    assert_close(moments_of(rows, pieces=3), rows, 1e-12)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 12), count=st.integers(1, 40), pieces=st.integers(1, 40), seed=st.integers(0, 1000))
def test_how_rows_are_divided_does_not_matter(width: int, count: int, pieces: int, seed: int) -> None:
    rows = random_rows(count, width, seed)
    whole, divided = moments_of(rows), moments_of(rows, pieces)
    assert divided.count == whole.count
    torch.testing.assert_close(divided.mean, whole.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(divided.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_a_covariance_by_hand() -> None:
    moments = moments_of(torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0], [2.0, -3.0]]))
    assert moments.mean.tolist() == [2.0, 0.0]
    assert moments.covariance.tolist() == [[0.5, 0.0], [0.0, 4.5]]


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 1e4 + 1e-2 * torch.randn(20000, 6, generator=generator)
    moments = moments_of(rows, pieces=20)
    expected = np.cov(rows.double().numpy(), rowvar=False, bias=True)
    assert np.abs(moments.covariance.numpy() - expected).max() < 1e-3 * expected.max()
    assert abs(float(moments.mean[0]) - float(rows[:, 0].double().mean())) < 1e-6
    moments.move_shift(torch.zeros(6, dtype=torch.float64))  # as processes do before they add up
    assert np.abs(moments.covariance.numpy() - expected).max() < 1e-3 * expected.max()


def test_half_precision_rows_do_not_overflow() -> None:
    rows = (300 * random_rows(200, 5)).half()
    assert_close(moments_of(rows, pieces=4), rows, 1e-5)


def test_a_covariance_is_symmetric_and_has_no_negative_variance() -> None:
    covariance = moments_of(random_rows(5, 20).float()).covariance
    assert torch.equal(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-5 * covariance.diagonal().max()


def test_moving_the_shift_moves_neither_moment() -> None:
    rows = random_rows(100, 9)
    moments = moments_of(rows, pieces=4)
    moments.move_shift(torch.full((9,), 3.0, dtype=torch.float64))
    assert_close(moments, rows, 1e-12)
    moments.add(rows)
    assert_close(moments, torch.cat((rows, rows)), 1e-12)


def test_no_rows_are_no_moments() -> None:
    moments = Moments(3, CPU)
    moments.reduce()
    assert moments.count == 0
    assert moments.mean.tolist() == [0.0, 0.0, 0.0]
    assert not moments.covariance.any()


def test_rows_leave_no_trace_of_themselves() -> None:
    """What moments hold is as large after many rows as after few."""
    moments = Moments(8, CPU)
    moments.add(random_rows(10, 8).float())
    small = bytes_held(moments)
    for seed in range(20):
        moments.add(random_rows(1000, 8, seed).float())
    assert bytes_held(moments) == small


def bytes_held(moments: Moments) -> int:
    """Storage behind all tensors; there is nothing else but a number."""
    assert all(isinstance(value, int | torch.Tensor) for value in vars(moments).values())
    tensors = [value for value in vars(moments).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_rows_that_ask_for_gradients_are_not_kept_for_them() -> None:
    moments = moments_of(random_rows(10, 4).requires_grad_())
    assert not moments.covariance.requires_grad


# Of some moments each of two processes hears a part of the rows; of others the first hears all.
PROCESS = """
import runpy, sys
import torch
import torch.distributed
from safetensors.torch import load_file, save_file

rank, file, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
Moments = runpy.run_path(file)["Moments"]  # the file alone: the package takes long to import
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
rows = load_file(f"{folder}/rows.safetensors")["rows"]
for name, shares in {"shared": (rows[:300], rows[300:]), "lonely": (rows, rows[:0])}.items():
    moments = Moments(rows.shape[1], torch.device("cpu"))
    for piece in shares[rank].split(100) if len(shares[rank]) else ():
        moments.add(piece)
    moments.reduce()
    found = {"count": torch.tensor(moments.count), "mean": moments.mean, "covariance": moments.covariance}
    save_file(found, f"{folder}/{name} {rank}.safetensors")
torch.distributed.destroy_process_group()
"""


def test_processes_that_share_the_rows_end_with_the_moments_of_all(tmp_path: Path) -> None:
    rows = torch.cat((random_rows(300, 7), 5.0 + random_rows(211, 7, seed=1))).float()
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    arguments = (sotto.moments.__file__, str(tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), *arguments]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = moments_of(rows.double())
    for file in ("shared 0", "shared 1", "lonely 0", "lonely 1"):
        found = load_file(tmp_path / f"{file}.safetensors")
        assert found["count"] == 511
        torch.testing.assert_close(found["mean"], alone.mean, rtol=1e-6, atol=1e-6)
        assert (found["covariance"] - alone.covariance).abs().max() < 1e-6 * alone.covariance.abs().max()
