import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sotto import quantization_math, torchao_products
from sotto.quantization_math import (
    BLOCK,
    Scales,
    blocks_of,
    fake_quantized,
    floating_product,
    from_codes,
    int8_product,
    largest_code,
    pack_pairs,
    scale_of,
    to_codes,
    unpack_pairs,
)
from sotto.torchao_products import torchao_product

BITS = st.sampled_from([4, 8])
SCALES = st.sampled_from(["tensor", "channel", "block"])
LEAST_NORMAL = 2.0**-14  # the smallest number that half precision keeps to all its digits


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


def test_codes_by_hand() -> None:
    weight = torch.tensor([[1.75, -3.5, 0.2, 0.3], [0.0, 7.0, -7.0, 3.4]])
    channel = scale_of(weight, 4, "channel")
    assert channel.tolist() == [[0.5], [1.0]]  # 3.5 / 7 and 7 / 7
    assert to_codes(weight, channel, 4).tolist() == [[4, -7, 0, 1], [0, 7, -7, 3]]  # 3.5 goes to the even 4
    assert from_codes(to_codes(weight, channel, 4), channel).tolist() == [[2.0, -3.5, 0.0, 0.5], [0.0, 7.0, -7.0, 3.0]]
    assert scale_of(weight, 4, "tensor").tolist() == [[1.0], [1.0]]
    assert to_codes(weight, scale_of(weight, 4, "tensor"), 4).tolist() == [[2, -4, 0, 0], [0, 7, -7, 3]]


def test_the_largest_weight_is_taken_without_its_sign() -> None:
    """Whisper-KDQ's code takes the largest with its sign, so that -6 here would be rounded to 3 times its range."""
    weight = torch.tensor([[-6.0, 2.0]])
    assert from_codes(to_codes(weight, scale_of(weight, 8, "tensor"), 8), scale_of(weight, 8, "tensor")).tolist() == [
        [pytest.approx(-6.0, rel=1e-3), pytest.approx(2.0, rel=2e-2)]
    ]


def test_a_block_has_a_scale_of_its_own() -> None:
    weight = torch.full((1, BLOCK + 3), 0.07)
    weight[0, BLOCK:] = 7.0
    scale = scale_of(weight, 4, "block")
    assert scale.shape == (1, blocks_of(BLOCK + 3)) == (1, 2)
    assert to_codes(weight, scale, 4).unique().tolist() == [7]
    torch.testing.assert_close(from_codes(to_codes(weight, scale, 4), scale), weight, rtol=1e-3, atol=0)
    assert to_codes(weight, scale_of(weight, 4, "channel"), 4)[0, :BLOCK].unique().tolist() == [0]


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 1000), BITS, SCALES)
def test_rounding_moves_a_weight_by_half_a_step_at_most(
    rows: int, columns: int, seed: int, bits: int, scales: Scales
) -> None:
    weight = matrix(rows, columns, seed)
    scale = scale_of(weight, bits, scales)
    assume(scale.min() >= LEAST_NORMAL)
    codes = to_codes(weight, scale, bits)
    assert codes.abs().max() <= largest_code(bits)
    moved = (from_codes(codes, scale) - weight).abs()
    widest = scale.amax(1, keepdim=True)
    assert (moved <= 0.5 * widest + 1e-3 * weight.abs().max()).all()  # and what the scale lost to half precision
    again = scale_of(from_codes(codes, scale), bits, scales)
    torch.testing.assert_close(again, scale)  # what was rounded stays as it is
    assert torch.equal(to_codes(from_codes(codes, scale), again, bits), codes)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(0, 1000), BITS, SCALES)
def test_products_are_those_of_the_weights_that_codes_stand_for(
    rows: int, inputs: int, outputs: int, seed: int, bits: int, scales: Scales
) -> None:
    weight, x = matrix(outputs, inputs, seed), matrix(rows, inputs, seed + 1)
    scale = scale_of(weight, bits, scales)
    codes = to_codes(weight, scale, bits)
    expected = x @ from_codes(codes, scale).t()
    torch.testing.assert_close(floating_product(x, codes, scale), expected, rtol=1e-4, atol=1e-5)
    if scale.shape[1] == 1:
        torch.testing.assert_close(torchao_product(x, codes, scale, False), expected, rtol=1e-4, atol=1e-5)
        own, theirs = int8_product(x, codes, scale), torchao_product(x, codes, scale, True)
        # torchao's steps for inputs are 1 / 127.5 of the largest, Sotto's 1 / 127: each input is off by a step at most
        step = x.abs().amax(1, keepdim=True) / 127 * from_codes(codes, scale).abs().sum(1)
        assert ((own - theirs).abs() <= step + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "product",
    [
        floating_product,
        int8_product,
        lambda *given: torchao_product(*given, True),
        lambda *given: torchao_product(*given, False),
    ],
)
def test_sums_of_codes_do_not_pass_the_largest_number_of_half_precision(dtype: torch.dtype, product: Any) -> None:
    x, codes = torch.full((1, 600), 1.0, dtype=dtype), torch.full((2, 600), 127, dtype=torch.int8)
    found = product(x, codes, torch.full((2, 1), 0.001, dtype=dtype))
    assert found.dtype == dtype
    assert found.tolist() == [[pytest.approx(76.2, rel=1e-2)] * 2]


def test_products_of_whole_numbers_that_torchao_gets_wrong_are_sottos(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes, scale = matrix(3, 16, 0), torch.full((8, 16), 100, dtype=torch.int8), torch.full((8, 1), 0.01)
    assert not torch.equal(torchao_product(x, codes, scale, True), int8_product(x, codes, scale))
    for part in (torchao_products, quantization_math):
        monkeypatch.setattr(part, "adds_exactly", lambda: False)
    assert torch.equal(torchao_product(x, codes, scale, True), int8_product(x, codes, scale))
    sizes = [(outputs, inputs) for outputs in (8, 12) for inputs in (16, 18)]
    found = [torchao_products.multiplies_whole_numbers(torch.empty(size, device="meta")) for size in sizes]
    assert found == [True, False, False, False]  # elsewhere than on a CPU


def test_codes_of_weights_in_half_precision_are_the_nearest() -> None:
    weight = torch.tensor([[1.0, 0.963]], dtype=torch.bfloat16)
    scale = scale_of(weight, 8, "channel")
    expected = (weight.double() / scale.double()).round().clamp(-127, 127)
    assert to_codes(weight, scale, 8).tolist() == expected.tolist()


@given(st.floats(1e-7, 1e-3), BITS)
def test_tiny_weights_lose_what_their_scale_does(largest: float, bits: int) -> None:
    """Below `LEAST_NORMAL` half precision has steps of 2^-24, and the largest code multiplies what one is off."""
    weight = torch.tensor([[largest, -largest / 2, largest / 3]])
    scale = scale_of(weight, bits, "channel")
    moved = (from_codes(to_codes(weight, scale, bits), scale) - weight).abs()
    assert (moved <= 0.5 * scale + largest_code(bits) * 2.0**-25 + 1e-3 * largest).all()


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 1000), SCALES)
def test_half_precision_keeps_the_scales(rows: int, columns: int, seed: int, scales: Scales) -> None:
    scale = scale_of(matrix(rows, columns, seed), 8, scales)
    assert torch.equal(scale.half().float(), scale)


@pytest.mark.parametrize("scales", ["tensor", "channel", "block"])
def test_zeros_stay_zeros(scales: Scales) -> None:
    weight = torch.zeros(3, 40)
    assert not fake_quantized(weight, 8, scales).any()
    weight[1, 7] = 1.0
    assert fake_quantized(weight, 8, scales).nonzero().tolist() == [[1, 7]]


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 1000))
def test_pairs_of_codes_are_unpacked_again(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (rows, columns), dtype=torch.int8, generator=generator)
    packed = pack_pairs(codes)
    assert packed.shape == (rows, -(-columns // 2))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_pairs(packed, columns), codes)


def test_pairs_by_hand() -> None:
    assert pack_pairs(torch.tensor([[1, -1, 7]], dtype=torch.int8)).tolist() == [[0xF1, 0x07]]


def test_gradients_pass_rounding() -> None:
    weight = matrix(3, 5, 0).requires_grad_()
    rounded = fake_quantized(weight, 4, "channel")
    scale = scale_of(weight, 4, "channel")
    torch.testing.assert_close(rounded.detach(), from_codes(to_codes(weight, scale, 4), scale))
    (rounded * torch.arange(15.0).view(3, 5)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == torch.arange(15.0).view(3, 5).tolist()


def test_products_in_whole_numbers_are_exact_where_nothing_is_rounded() -> None:
    codes = torch.tensor([[1, 2, -3], [127, 0, 1]], dtype=torch.int8)
    scale = torch.tensor([[0.5], [0.25]])
    x = torch.tensor([[[127.0, 1.0, 2.0], [-254.0, 4.0, 0.0]]])  # rows with steps of 1 and of 2
    expected = x @ from_codes(codes, scale).t()
    torch.testing.assert_close(int8_product(x, codes, scale), expected, rtol=1e-6, atol=0)
    assert int8_product(torch.zeros(1, 3), codes, scale).tolist() == [[0.0, 0.0]]


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
def test_products_in_whole_numbers_are_near(columns: int, rows: int, seed: int) -> None:
    weight, x = matrix(6, columns, seed), matrix(rows, columns, seed + 1)
    scale = scale_of(weight, 8, "channel")
    codes = to_codes(weight, scale, 8)
    expected = x @ from_codes(codes, scale).t()
    step = x.abs().amax(1, keepdim=True) / 127
    bound = 0.5 * step * from_codes(codes, scale).abs().sum(1) + 1e-5
    assert ((int8_product(x, codes, scale) - expected).abs() <= bound).all()


EXACT = """
import torch
from sotto.quantization_math import adds_exactly, whole_product

generator = torch.Generator().manual_seed(0)
exact = []
for inputs, least in ((256, -127), (5120, 120)):  # the latter are Whisper large's, with sums of more than 2^24
    rows, codes = (torch.randint(least, 128, (n, inputs), dtype=torch.int8, generator=generator) for n in (20, 64))
    exact.append(torch.equal(whole_product(rows, codes).double(), rows.double() @ codes.double().t()))
print(adds_exactly(), all(exact))
"""


@pytest.mark.parametrize("instructions", ["AVX2", "ALL"])
def test_products_are_exact_on_cpus_without_vnni_too(instructions: str) -> None:
    """Those add pairs of products in 16 bits, and cut off what does not fit."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", EXACT], env=environment, capture_output=True, text=True, check=True)
    adds, exact = done.stdout.split()
    assert exact == "True"
    if instructions == "AVX2":
        assert adds == "False"  # so that it is not torch's own product that was exact
