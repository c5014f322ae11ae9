import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sotto.methods.hard_concrete import HardConcrete

GATE = HardConcrete()
LOCATIONS = [-3.0, -1.0, 0.0, 0.5, 2.0, 4.0]


@pytest.mark.parametrize("location", LOCATIONS)
def test_the_probability_of_an_open_gate_is_what_sampling_finds(location: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gates = GATE.sample(torch.full((200_000,), location), generator)
    found = (gates > 0).float().mean().item()
    assert found == pytest.approx(GATE.probability_open(torch.tensor(location)).item(), abs=0.004)
    assert gates.min() >= 0
    assert gates.max() <= 1


@pytest.mark.parametrize("location", LOCATIONS)
def test_the_probability_of_a_gate_of_one_is_that_of_the_mirrored_location(location: float) -> None:
    """The distribution is symmetric: a gate at a is 1 as often as one at -a is 0."""
    generator = torch.Generator().manual_seed(1)
    ones = (GATE.sample(torch.full((200_000,), location), generator) == 1).float().mean().item()
    assert ones == pytest.approx(1 - GATE.probability_open(torch.tensor(-location)).item(), abs=0.004)


def test_the_open_probability_by_hand() -> None:
    """At 0: sigmoid(2/3 * log(11)) = 1 / (1 + 11 ** (-2/3))."""
    assert GATE.probability_open(torch.tensor(0.0)).item() == pytest.approx(1 / (1 + 11 ** (-2 / 3)), rel=1e-6)
    assert GATE.probability_open(torch.tensor(1e4)).item() == pytest.approx(1 - 1e-6)
    assert GATE.probability_open(torch.tensor(-1e4)).item() == pytest.approx(1e-6)


def test_as_many_gates_close_as_are_expected_to() -> None:
    location = torch.tensor([4.0, -4.0, 4.0, -4.0, 4.0])
    gates = GATE.gates(location)
    assert (gates == 0).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(gates[0], torch.sigmoid(torch.tensor(4.0 * 0.8 * 1.5)))
    assert (GATE.gates(torch.full((3,), 4.6)) > 0).all()


def test_gradients_reach_the_location() -> None:
    location = torch.zeros(1000, requires_grad=True)
    GATE.sample(location, torch.Generator().manual_seed(0)).sum().backward()  # type: ignore[no-untyped-call]
    assert location.grad is not None
    assert (location.grad >= 0).all()
    assert 0.3 < (location.grad > 0).float().mean() < 0.9  # none where a gate is clipped


@given(st.floats(0.02, 0.98))
def test_the_location_for_a_probability_is_the_inverse(share: float) -> None:
    found = GATE.location_for(share)
    assert GATE.least <= found <= GATE.most
    if GATE.least < found < GATE.most:
        assert GATE.probability_open(torch.tensor(found)).item() == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_no_gate_is_surely_open_or_closed(share: float) -> None:
    with pytest.raises(ValueError, match="a probability between 0 and 1 is needed"):
        GATE.location_for(share)


def test_locations_are_kept_in_their_range() -> None:
    location = torch.tensor([-9.0, 0.0, 10.0])
    GATE.clamp(location)
    torch.testing.assert_close(location, torch.tensor([math.log(0.01), 0.0, math.log(100)]))


@pytest.mark.parametrize(("shift", "zeros"), [(-2.0, 2), (0.0, 1), (3.0, 0)])
def test_a_shift_decides_how_many_are_open_and_changes_no_value(shift: float, zeros: int) -> None:
    location = torch.tensor([-3.0, -1.0, 0.5, 2.0])
    distribution = HardConcrete()
    soft = torch.sigmoid(location * 0.8 / (2 / 3))
    found = distribution.gates(location, shift)
    assert (found == 0).tolist() == [index < zeros for index in range(4)]
    torch.testing.assert_close(found[zeros:], soft[zeros:])
