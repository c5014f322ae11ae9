"""The mathematics of per-head reduction: the fewest channels that carry the products of a head. Ours, all in float64.

A head forms two products of its channels: queries with keys, which are the scores, and values with the head's columns
of the output projection, which are what it adds to the residual stream. Any invertible change of channels on one side
that is undone on the other leaves a product as it is. There is one after which dropping all channels but the first r is
the best that rank r can do for independent vectors of the two sides: that of balanced truncation in its square-root
form (Tombs and Postlethwaite, 1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sotto.low_rank_math import NEGLIGIBLE


@dataclass(frozen=True)
class Balance:
    """Changes of channels for both sides of a product of heads, channels in descending order of what they carry.

    `left` and `right` (heads, channels, new channels): a becomes leftᵀ a, and b becomes rightᵀ b. `energies` (heads,
    new channels): what each holds of the mean of (aᵀ b)². A channel that holds nothing is zero on both sides.
    """

    left: torch.Tensor
    right: torch.Tensor
    energies: torch.Tensor


def balance(left: torch.Tensor, right: torch.Tensor) -> Balance:
    """From the second moments (heads, channels, channels) of both sides: E[a aᵀ] and E[b bᵀ].

    With E[a aᵀ] = A Aᵀ, E[b bᵀ] = B Bᵀ and Aᵀ B = U S Vᵀ, the mean of (aᵀ M b)² is the squared norm of Aᵀ M B. The
    best M of rank r makes that U_r S_r V_rᵀ (Eckart and Young, 1936): it is the product of B V_r S_r^-1/2 and
    A U_r S_r^-1/2, the second transposed. No moment has to be inverted, so they may be singular.
    """
    a, b = root(left), root(right)
    u, values, v = torch.linalg.svd(a.mT @ b)
    energies = values.square()
    is_live = energies > NEGLIGIBLE * energies[..., :1]
    scale = torch.where(is_live, values.clamp(min=1e-300).rsqrt(), 0.0).unsqueeze(-2)
    return Balance(b @ v.mT * scale, a @ u * scale, energies)


def root(moment: torch.Tensor) -> torch.Tensor:
    """R with R Rᵀ = `moment`, a symmetric matrix without negative eigenvalues but for rounding."""
    variances, axes = torch.linalg.eigh(moment)
    result: torch.Tensor = axes * variances.clamp(min=0.0).sqrt().unsqueeze(-2)
    return result


def blocks(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """The blocks (heads, channels, channels) on the diagonal of a matrix over the channels of all heads."""
    channels = len(matrix) // heads
    return matrix.view(heads, channels, heads, channels).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


@dataclass(frozen=True)
class HeadBases:
    """How the channels of every head of an attention are best changed before some of them are dropped."""

    scores: Balance
    """left: queries, right: keys"""
    outputs: Balance
    """left: values, right: what the output projection multiplies them with"""
    value_mean: torch.Tensor
    """(heads, channels)"""

    @property
    def shares(self) -> torch.Tensor:
        """(channels,): the share of the energy that the first 1, 2, … channels of all heads hold, of scores or outputs.

        The lesser of the two shares counts.
        """
        return torch.minimum(share_held(self.scores.energies), share_held(self.outputs.energies))

    @property
    def lost(self) -> torch.Tensor:
        """(channels,): the shares of both energies that the first 1, 2, … channels of all heads do not hold, added."""
        return 2 - share_held(self.scores.energies) - share_held(self.outputs.energies)

    def lost_mean(self, channels: int) -> torch.Tensor:
        """(heads, channels): of the values' mean, what the first `channels` new channels do not give."""
        left, right = (side[..., :channels] for side in (self.outputs.left, self.outputs.right))
        heard = torch.einsum("hdr,hd->hr", left, self.value_mean)
        return self.value_mean - torch.einsum("hdr,hr->hd", right, heard)


def head_bases(
    query: tuple[torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
    value: tuple[torch.Tensor, torch.Tensor],
    output: torch.Tensor,
    heads: int,
) -> HeadBases:
    """From mean (channels of all heads,) and covariance of queries, keys and values, and the output weight.

    Keys are taken around their mean: what the mean key adds to a score is the same for all keys, and softmax does not
    see it. So are values, as weights of attention sum to one: their mean passes into the output's bias, exactly. That
    queries and keys are independent, and that a value is heard alone and not mixed with others, are simplifications.
    """
    of_queries = query[1] + torch.outer(query[0], query[0])
    scores = balance(blocks(of_queries, heads), blocks(key[1], heads))
    outputs = balance(blocks(value[1], heads), blocks(output.T @ output, heads))
    return HeadBases(scores, outputs, value[0].view(heads, -1))


def share_held(energies: torch.Tensor) -> torch.Tensor:
    """(channels,): the share of all heads' energies (heads, channels) in the first 1, 2, … channels of each."""
    held = energies.sum(0).cumsum(0)
    return held / held[-1] if held[-1] > 0 else torch.ones_like(held)
