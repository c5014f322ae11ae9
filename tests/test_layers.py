import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

from sotto.architectures.whisper import WHISPER
from sotto.layers import FactoredLinear, ReducedAttention, reduced_dimension, reduced_on_keys, saves_attention
from sotto.metrics.cost import encoder_flops
from sotto.surgery import factor, reduce_attention

HEAD_DIM = 4
POSITIONS = 7
RANKS = [  # query, key, value
    (4, 4, 4),
    (3, 4, 2),  # the key's rank is the query's + 1: still formed on the keys
    (3, 5, 2),  # one more: formed on the queries, with a column for the query bias
    (2, 8, 3),
    (8, 2, 8),
    (1, 1, 1),
    (1, 8, 8),
]


def attentions(heads: int, ranks: tuple[int, int, int], seed: int = 0) -> tuple[WhisperAttention, ReducedAttention]:
    """The same attention twice, in double precision: expanded, and in the reduced dimension. No bias is zero."""
    torch.manual_seed(seed)
    width = heads * HEAD_DIM
    config = WhisperConfig(d_model=width, encoder_attention_heads=heads)
    config._attn_implementation = "eager"
    expanded = WhisperAttention(width, heads, config=config).double()
    for name, rank in zip(("q_proj", "k_proj", "v_proj"), ranks, strict=True):
        setattr(expanded, name, FactoredLinear(width, rank, width, dtype=torch.float64))
    for parameter in expanded.parameters():
        nn.init.normal_(parameter, std=0.5)
    own = copy.deepcopy(expanded)
    return expanded, ReducedAttention(own.q_proj, own.k_proj, own.v_proj, own.out_proj, heads, expanded.scaling)


def test_factored_linear_is_a_linear_of_the_product() -> None:
    factored = FactoredLinear(3, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        factored.first.weight.copy_(torch.tensor([[1, 0, 2], [0, 3, 0]]))
        factored.second.weight.copy_(torch.tensor([[1, 0], [0, 1], [1, 1], [2, -1]]))
        factored.second.bias.copy_(torch.tensor([10, 20, 30, 40]))
    assert (factored.in_features, factored.rank, factored.out_features) == (3, 2, 4)
    assert factored.weight.tolist() == [[1, 0, 2], [0, 3, 0], [1, 3, 2], [2, -3, 4]]
    assert factored.bias is factored.second.bias
    assert factored(torch.tensor([1.0, 2.0, 3.0]).double()).tolist() == [17, 26, 43, 48]
    assert {name: tuple(weight.shape) for name, weight in factored.state_dict().items()} == {
        "first.weight": (2, 3),
        "second.weight": (4, 2),
        "second.bias": (4,),
    }


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("heads", [1, 2])
def test_reduced_attention_equals_the_expanded_form(heads: int, ranks: tuple[int, int, int]) -> None:
    ranks = tuple(min(rank, heads * HEAD_DIM) for rank in ranks)  # type: ignore[assignment]
    expanded, reduced = attentions(heads, ranks)
    states = torch.randn(3, POSITIONS, heads * HEAD_DIM, dtype=torch.float64)
    expected, weights = expanded(states)
    found, _ = reduced(states)
    assert weights.std() > 0.01  # not a plain average, in which queries and keys would not matter
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(reduced.float()(states.float())[0], expected.float(), atol=1e-5, rtol=0)


@given(st.integers(1, 3), st.tuples(*[st.integers(1, 12)] * 3), st.integers(0, 1000))
def test_reduced_attention_equals_the_expanded_form_for_any_ranks(
    heads: int, ranks: tuple[int, int, int], seed: int
) -> None:
    expanded, reduced = attentions(heads, ranks, seed)
    states = torch.randn(2, POSITIONS, heads * HEAD_DIM, dtype=torch.float64)
    torch.testing.assert_close(reduced(states)[0], expanded(states)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("ranks", [(3, 4, 2), (3, 5, 2)])
def test_reduced_attention_has_the_gradients_of_the_expanded_form(ranks: tuple[int, int, int]) -> None:
    expanded, reduced = attentions(2, ranks)
    states = torch.randn(2, POSITIONS, 2 * HEAD_DIM, dtype=torch.float64)
    target = torch.randn_like(states)
    inputs = [states.clone().requires_grad_() for _ in range(2)]
    for module, given_states in zip((expanded, reduced), inputs, strict=True):
        nn.functional.mse_loss(module(given_states)[0], target).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-10, rtol=0)
    found = dict(reduced.named_parameters())
    for name, parameter in expanded.named_parameters():
        if name == "k_proj.second.bias":  # softmax does not see it
            assert parameter.grad.abs().max() < 1e-10
            assert found[name].grad is None
        else:
            assert parameter.grad.abs().max() > 1e-6
            torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-10, rtol=0)


def test_reduced_attention_drops_weights_only_in_training() -> None:
    _, reduced = attentions(2, (3, 5, 2))
    reduced.dropout = 0.5
    states = torch.randn(2, POSITIONS, 2 * HEAD_DIM, dtype=torch.float64)
    first, second = reduced(states)[0], reduced(states)[0]
    assert not torch.allclose(first, second)
    reduced.eval()
    assert torch.equal(reduced(states)[0], reduced(states)[0])


def test_reduced_dimension_is_that_of_the_products() -> None:
    assert [reduced_on_keys(3, key) for key in (2, 4, 5)] == [True, True, False]
    assert reduced_dimension(3, 4, 2) == 4
    assert reduced_dimension(3, 5, 2) == 4  # the query's rank and the column of its bias
    assert reduced_dimension(3, 5, 6) == 6


def flops_in_both_forms(heads: int, positions: int, ranks: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of an encoder of one layer with factored projections: expanded, reduced."""
    width = heads * HEAD_DIM
    config = WhisperConfig(
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4,
        decoder_ffn_dim=4,
        max_source_positions=positions,
        max_target_positions=4,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    encoder = WHISPER.stack("encoder")
    (attention,) = encoder.attentions
    with torch.device("meta"):
        for name, rank in zip(attention.projections[:3], ranks, strict=True):
            factor(model, encoder, 0, name, torch.empty(rank, width), torch.empty(width, rank), torch.empty(width))
    expanded = encoder_flops(model)
    reduce_attention(model, encoder, 0, attention)
    return expanded, encoder_flops(model)


@settings(max_examples=25)
@given(st.integers(1, 3), st.sampled_from([4, 20, 100]), st.tuples(*[st.integers(1, 12)] * 3))
@example(1, 4, (2, 4, 4))  # a tie but for the query bias times the keys' factor
@example(2, 4, (1, 3, 5))  # a tie but for the column of the query bias
@example(2, 4, (5, 3, 4))
def test_the_choice_of_form_is_that_of_the_counted_operations(
    heads: int, positions: int, ranks: tuple[int, int, int]
) -> None:
    within = tuple(min(rank, heads * HEAD_DIM) for rank in ranks)
    expanded, reduced = flops_in_both_forms(heads, positions, within)
    assert saves_attention(heads * HEAD_DIM, heads, positions, *within) == (reduced < expanded)


@pytest.mark.parametrize(
    ("heads", "positions", "ranks", "saves"),
    [
        (2, 50, (2, 2, 2), True),
        (2, 50, (4, 4, 4), True),  # the products are as large as before, but two expansions are gone
        (2, 50, (5, 5, 5), False),
        (2, 50, (2, 2, 5), False),  # the values' rank alone decides
        (4, 50, (1, 16, 1), True),  # one query channel and its bias make two
        (4, 50, (16, 1, 1), True),
        (4, 50, (16, 16, 1), False),
    ],
)
def test_the_choice_of_form_at_known_shapes(
    heads: int, positions: int, ranks: tuple[int, int, int], saves: bool
) -> None:
    expanded, reduced = flops_in_both_forms(heads, positions, ranks)
    assert (reduced < expanded) == saves
    assert saves_attention(heads * HEAD_DIM, heads, positions, *ranks) == saves
