"""Replacement modules: linears of other forms, attention in a reduced dimension, and what stands where nothing is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperAttention


class FactoredLinear(nn.Module):
    """A linear of rank `rank`: y = second(first(x)), with the bias in the second.

    Weights: `first` (rank, inputs), `second` (outputs, rank).
    """

    def __init__(
        self,
        in_features: int,
        rank: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.second = nn.Linear(rank, out_features, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.second.out_features

    @property
    def rank(self) -> int:
        return self.first.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The product of the factors, (outputs, inputs): what a plain linear would hold."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.second.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x))
        return result


class GatheredLinear(nn.Linear):
    """A linear that hears some of its inputs only: `columns` (kept,) of all `inputs`; `weight` (outputs, kept)."""

    columns: torch.Tensor

    def __init__(
        self,
        inputs: int,
        kept: int,
        outputs: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kept, outputs, bias, device=device, dtype=dtype)
        self.inputs = inputs
        self.register_buffer("columns", torch.empty(kept, dtype=torch.int64, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.index_select(-1, self.columns))


class PackedLinear(nn.Module):
    """A linear many of whose weights are zero, as it lies on disk: one bit a weight, and those that are not zero.

    `pattern` (bytes,) uint8 has the bits of the weights row by row, the first in the lowest; `values` (nonzeros,).
    """

    pattern: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nonzeros: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.values = nn.Parameter(torch.empty(nonzeros, device=device, dtype=dtype))
        self.register_buffer(
            "pattern", torch.empty(packed_bytes(in_features * out_features), dtype=torch.uint8, device=device)
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None

    @property
    def weight(self) -> torch.Tensor:
        """(outputs, inputs): what a plain linear would hold."""
        return unpack(self.values, self.pattern, (self.out_features, self.in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def packed_bytes(count: int) -> int:
    """Bytes that the bits of `count` weights take."""
    return -(-count // 8)


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that are not zero (nonzeros,), and the bits (bytes,) of where they are."""
    is_nonzero = (weight != 0).flatten()
    bits = nn.functional.pad(is_nonzero, (0, -len(is_nonzero) % 8)).view(-1, 8)
    places = 2 ** torch.arange(8, device=weight.device)
    return weight.flatten()[is_nonzero], (bits * places).sum(1).to(torch.uint8)


def unpack(values: torch.Tensor, pattern: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `pack`."""
    bits = (pattern[:, None] >> torch.arange(8, device=pattern.device)) & 1
    is_nonzero = bits.flatten()[: shape[0] * shape[1]].bool()
    weight = values.new_zeros(shape[0] * shape[1])
    return weight.masked_scatter(is_nonzero, values).view(shape)


class ReducedAttention(nn.Module):
    """Self-attention over the whole window, computed in the rank of its factored projections.

    LiteASR, eq. (11)-(16): with queries A W_q + b_q and keys B W_k + b_k per head (A, B the inputs in the reduced
    dimension, shared by all heads), the scores are A (W_q W_k^T) B^T + b_q W_k^T B^T plus terms that are the same for
    every key, which softmax does not see. So keys (or queries) stay in the reduced dimension, and so do values, which
    each head expands after its weighted sum: the rows of softmax sum to one, so the value bias is added at the end.
    """

    def __init__(
        self,
        query: FactoredLinear,
        key: FactoredLinear,
        value: FactoredLinear,
        output: nn.Module,
        num_heads: int,
        scaling: float,
        dropout: float = 0.0,
    ) -> None:
        """`scaling`: what the products of queries and keys are multiplied by."""
        super().__init__()
        self.q_proj = query
        self.k_proj = key
        self.v_proj = value
        self.out_proj = output
        self.num_heads = num_heads
        self.dropout = dropout
        self.head_dim = query.out_features // num_heads
        self.scaling = scaling

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """`hidden_states`: (batch, positions, width) -> the same, and no attention weights."""
        query, key = self.scores_factors(hidden_states)
        value = self.v_proj.first(hidden_states).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        dimension = max(query.shape[-1], value.shape[-1])  # fused kernels want one dimension for all three
        query, key, value = (nn.functional.pad(x, (0, dimension - x.shape[-1])) for x in (query, key, value))
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, scale=self.scaling
        )
        mixed = mixed[..., : self.v_proj.rank]
        expand = self.v_proj.second.weight.view(self.num_heads, self.head_dim, -1)
        heads = torch.einsum("bhtr,hdr->bthd", mixed, expand).flatten(2)
        return self.out_proj(heads + self.v_proj.bias), None

    def scores_factors(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (batch, heads, positions, reduced) whose products are the scores, up to row constants."""
        query, key = self.q_proj.first(hidden_states), self.k_proj.first(hidden_states)
        to_query = self.q_proj.second.weight.view(self.num_heads, self.head_dim, -1)
        to_key = self.k_proj.second.weight.view(self.num_heads, self.head_dim, -1)
        middle = torch.einsum("hdq,hdk->hqk", to_query, to_key)
        offset = torch.einsum("hd,hdk->hk", self.q_proj.bias.view(self.num_heads, -1), to_key)
        if reduced_on_keys(self.q_proj.rank, self.k_proj.rank):
            queries = torch.einsum("btq,hqk->bhtk", query, middle) + offset[:, None]
            return queries, key.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        ones = torch.ones_like(query[..., :1])
        queries = torch.cat((query, ones), -1).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        keys = torch.einsum("btk,hqk->bhtq", key, torch.cat((middle, offset[:, None]), 1))
        return queries, keys


def reduced_on_keys(query_rank: int, key_rank: int) -> bool:
    """Whether scores are formed in the key's rank; in the query's, one more column carries the query bias."""
    return key_rank <= query_rank + 1


def reduced_dimension(query_rank: int, key_rank: int, value_rank: int) -> int:
    """The dimension of the attention products of a ReducedAttention."""
    return max(key_rank if reduced_on_keys(query_rank, key_rank) else query_rank + 1, value_rank)


def saves_attention(width: int, heads: int, positions: int, query_rank: int, key_rank: int, value_rank: int) -> bool:
    """Whether the reduced form costs fewer multiply-adds than the expanded one, for `heads` heads of `width` in all.

    Expanded: second factors of query, key and value, and products in the head dimension. Reduced: the middle matrix
    and its product with queries or keys, products in the reduced dimension, the values' expansion after the mixing.
    """
    dimension = reduced_dimension(query_rank, key_rank, value_rank)
    expanded = positions * width * (query_rank + key_rank + value_rank) + 2 * positions**2 * width
    middle = width * (query_rank + 1) * key_rank  # and the query bias times the keys' factor
    rank = query_rank if reduced_on_keys(query_rank, key_rank) else query_rank + 1
    reduced = middle + heads * positions * rank * key_rank + positions * width * value_rank
    return reduced + 2 * positions**2 * heads * dimension < expanded


class AbsentModule(nn.Module):
    """Stands where a module was: nothing is added to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """A zero without dimensions, which any tensor can be added to."""
        return hidden_states.new_zeros(())


class AbsentAttention(nn.Module):
    """Stands where an attention without a cache was."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """A zero without dimensions, and no attention weights."""
        return hidden_states.new_zeros(()), None


class AbsentCachedAttention(WhisperAttention):
    """Stands where an attention of Whisper's decoder was.

    The cache tells by the keys of its first layer how many tokens there are, and transformers looks for attention
    weights in every layer: one number a position is cached, and the weights are those of no head.
    """

    layer_idx: int

    def __init__(self, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.layer_idx = layer_idx

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A zero without dimensions, and attention weights (batch, no heads, tokens, positions)."""
        batch, tokens = hidden_states.shape[:2]
        is_cross = key_value_states is not None
        heard = hidden_states if key_value_states is None else key_value_states
        keys = hidden_states.new_zeros(batch, 1, heard.shape[1], 1)
        if past_key_values is not None and not (is_cross and past_key_values.is_updated.get(self.layer_idx)):
            cache = past_key_values.cross_attention_cache if is_cross else past_key_values.self_attention_cache
            if is_cross:
                past_key_values.is_updated[self.layer_idx] = True
            keys, _values = cache.update(keys, keys, self.layer_idx)
        return hidden_states.new_zeros(()), hidden_states.new_zeros(batch, 0, tokens, keys.shape[2])


def trained_weight(module: Any) -> torch.Tensor:
    """What an optimiser changes, where the module computes with something made of it, such as a rounded weight."""
    is_made = parametrize.is_parametrized(module, "weight")
    found: torch.Tensor = module.parametrizations["weight"].original if is_made else module.weight
    return found
