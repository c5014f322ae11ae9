"""Per-head reduction against brute force: truncated SVDs of the products themselves, over all pairs of rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sotto.head_reduction_math import balance, blocks, head_bases, share_held

HEADS, CHANNELS, WIDTH, ROWS = 2, 4, 7, 30


def random(*shape: int, seed: int) -> torch.Tensor:
    """Channels of many sizes, mixed with one another, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0 ** -torch.arange(shape[-1])
    mixing = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return rows @ mixing + torch.randn(shape[-1], generator=generator, dtype=torch.float64)


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[..., :rank] * values[..., None, :rank] @ v[..., :rank, :]


@given(st.integers(1, CHANNELS), st.integers(0, 1000))
def test_the_first_channels_give_the_best_products_of_their_rank(rank: int, seed: int) -> None:
    a, b = random(HEADS, ROWS, CHANNELS, seed=seed), random(HEADS, 2 * ROWS, CHANNELS, seed=seed + 1)
    products = a @ b.mT
    found = balance(a.mT @ a / ROWS, b.mT @ b / (2 * ROWS))
    kept = (a @ found.left[..., :rank]) @ (b @ found.right[..., :rank]).mT
    torch.testing.assert_close(kept, best(products, rank), atol=1e-8 * float(products.abs().max()), rtol=0)
    lost = (products - kept).square().mean((1, 2))
    torch.testing.assert_close(found.energies[:, rank:].sum(1), lost, atol=1e-8 * float(lost.max() + 1), rtol=1e-6)
    for side, rows in ((found.left, a), (found.right, b)):  # both sides are of one size
        sizes = (rows @ side).square().mean(1)
        torch.testing.assert_close(sizes, found.energies.sqrt(), rtol=1e-4, atol=1e-9)


def test_by_hand() -> None:
    """Channels of sizes 2 and 1 meet others of 1 and 3: products of 2 and 3, so the second channel comes first."""
    found = balance(
        torch.diag(torch.tensor([4.0, 1.0]))[None].double(), torch.diag(torch.tensor([1.0, 9.0]))[None].double()
    )
    assert found.energies.tolist() == [[pytest.approx(9), pytest.approx(4)]]
    expected = torch.tensor([[0, 2**-0.5], [3**0.5, 0]]).double()  # of the left side: to sizes of √3 and √2
    torch.testing.assert_close(found.left[0].abs(), expected)
    torch.testing.assert_close(found.left[0] @ found.right[0].T, torch.eye(2).double())


def test_all_channels_change_no_product() -> None:
    a, b = random(HEADS, ROWS, CHANNELS, seed=0), random(HEADS, ROWS, CHANNELS, seed=1)
    found = balance(a.mT @ a, b.mT @ b)
    torch.testing.assert_close(found.left @ found.right.mT, torch.eye(CHANNELS).double().expand(HEADS, -1, -1))


def test_sides_that_hardly_vary_need_no_inverse() -> None:
    """One side of rank 2 and one of rank 3 within four channels: two channels give all, the others are zero."""
    a, b = random(1, ROWS, 2, seed=0), random(1, ROWS, 3, seed=1)
    a, b = a @ random(2, CHANNELS, seed=2), b @ random(3, CHANNELS, seed=3)
    found = balance(a.mT @ a, b.mT @ b)
    torch.testing.assert_close((a @ found.left[..., :2]) @ (b @ found.right[..., :2]).mT, a @ b.mT)
    assert found.left[..., 2:].abs().max() == 0
    assert found.right[..., 2:].abs().max() == 0
    nothing = balance(torch.zeros(1, 3, 3).double(), torch.eye(3)[None].double())
    assert (nothing.left.abs().max(), nothing.energies.max()) == (0, 0)


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.mean(0), torch.cov(rows.T, correction=0)


def by_head(rows: torch.Tensor) -> torch.Tensor:
    """(heads, rows, channels)"""
    return rows.view(len(rows), HEADS, -1).transpose(0, 1)


@pytest.mark.parametrize("channels", [1, 2, CHANNELS])
def test_an_attention_keeps_the_best_scores_and_outputs(channels: int) -> None:
    query, key, value = (random(ROWS, HEADS * CHANNELS, seed=seed) for seed in range(3))
    output = random(WIDTH, HEADS * CHANNELS, seed=3)
    bases = head_bases(moments(query), moments(key), moments(value), output, HEADS)

    heard = by_head(key) - by_head(key).mean(1, keepdim=True)  # softmax sees differences between keys only
    expected = best(by_head(query) @ heard.mT, channels)
    scores = (by_head(query) @ bases.scores.left[..., :channels]) @ (
        by_head(key) @ bases.scores.right[..., :channels]
    ).mT
    torch.testing.assert_close(scores - scores.mean(2, keepdim=True), expected, atol=1e-8, rtol=1e-8)

    mean, columns = value.mean(0), by_head(output)
    expected = best(by_head(value - mean) @ columns.mT, channels).sum(0) + output @ mean
    said = (by_head(value) @ bases.outputs.left[..., :channels]) @ (columns @ bases.outputs.right[..., :channels]).mT
    found = said.sum(0) + output @ bases.lost_mean(channels).flatten()
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_values_that_never_change_pass_into_the_bias() -> None:
    rows = random(ROWS, HEADS * CHANNELS, seed=0)
    value = torch.arange(HEADS * CHANNELS).double().expand(ROWS, -1)
    bases = head_bases(moments(rows), moments(rows), moments(value), random(WIDTH, HEADS * CHANNELS, seed=1), HEADS)
    assert bases.lost_mean(1).flatten().tolist() == list(range(HEADS * CHANNELS))
    assert bases.shares.tolist()[-1] == 1


def test_shares_are_of_all_heads_together() -> None:
    assert share_held(torch.tensor([[6.0, 1.0, 0.0], [2.0, 0.0, 1.0]])).tolist() == pytest.approx([0.8, 0.9, 1.0])
    assert share_held(torch.zeros(2, 3)).tolist() == [1, 1, 1]


def test_blocks_are_those_of_the_heads() -> None:
    found = blocks(torch.arange(16.0).view(4, 4), 2)
    assert found.tolist() == [[[0, 1], [4, 5]], [[10, 11], [14, 15]]]
