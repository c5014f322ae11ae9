"""Gates on modules and units: what they cost, what is decided, and that removal computes what the gated model did."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from random_gates import modules_of, random_gates
from recognizers import ARCHITECTURES, recognizer, scores
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.gate_costs import GateCosts, ModuleCost, gate_costs, latency_costs
from sotto.methods.gate_decisions import carry_out, decide, left_notes, share_of
from sotto.methods.gate_start import places_of, start_in_order
from sotto.methods.gated_modules import KINDS
from sotto.methods.gates import Gates, gated_by
from sotto.methods.hard_concrete import HardConcrete
from sotto.methods.module_times import SHARES, Times, whole_seconds
from sotto.metrics.cost import count_parameters, flops_by_module
from sotto.new_models import NewParakeet, new_models
from sotto.surgery import drop_module, factor, narrow_heads, structure_of
from tones import tiny_whisper


@pytest.mark.parametrize("constraint", ["parameters", "flops"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_left_computes_and_costs_what_was_decided(architecture: str, constraint: Any) -> None:
    found = recognizer(architecture)
    with torch.no_grad():  # biases that are not zero, which a module's gate has to scale too
        for name, parameter in found.model.named_parameters():
            if name.endswith("bias") and ".layers." in name and "norm" not in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    gates = random_gates(found)
    costs = gate_costs(found, gates.gated, constraint)
    before = cost_of(found, constraint)
    decisions = decide(gates, costs, 0.75)
    assert 0.75 - dearest_unit(gates, costs) <= share_of(decisions, costs) <= 0.75
    of_module = [torch.tensor([decision.module]) for decision in decisions]
    of_units = [decision.units for decision in decisions]
    with gated_by(found.model, gates.gated, lambda index, _: of_module[index], lambda index, _: of_units[index]):
        gated = scores(found)
    assert (gated - scores(found)).abs().max() > 1e-2

    carry_out(found.model, gates.gated, decisions)

    torch.testing.assert_close(scores(found), gated, atol=1e-5, rtol=1e-5)
    assert cost_of(found, constraint) / before == pytest.approx(share_of(decisions, costs), rel=1e-6)
    for gated_module, decision in zip(gates.gated, decisions, strict=True):
        layer = structure_of(found.model).layer(gated_module.stack.name, gated_module.layer)
        assert (gated_module.module.name in layer.absent) == (not decision.kept)


def dearest_unit(gates: Gates, costs: GateCosts) -> float:
    """The largest share of the whole that a unit costs, or a module whose units have no gates."""
    pairs = zip(costs.modules, gates.gated, strict=True)
    return max(cost.costs[-1] / (each.units if each.has_units else 1) for cost, each in pairs) / costs.whole


def cost_of(found: Recognizer, constraint: str) -> float:
    if constraint == "parameters":
        return count_parameters(found.model).total
    return flops_by_module(found.model, found.family.window_frames, 8)[""]


def test_rotary_attention_has_a_gate_and_its_heads_have_none() -> None:
    gated = modules_of(recognizer("wav2vec2_conformer_rotary"))
    assert [each.has_units for each in gated[:4]] == [True, False, True, True]


def test_narrower_heads_are_units_of_fewer_channels() -> None:
    found = recognizer("whisper")
    stack = found.architecture.stack("encoder")
    narrow_heads(found.model, stack, 0, stack.attentions[0], 5)
    attention = modules_of(found)[0]
    assert (attention.units, attention.channels) == (2, 5)


def test_gates_do_not_go_on_factored_linears() -> None:
    found = recognizer("parakeet")
    (stack,) = found.architecture.stacks
    down = stack.feed_forwards[0].down
    old: Any = found.model.get_submodule(f"{stack.layers}.0.{down}")
    first, second = torch.randn(2, old.in_features), torch.randn(old.out_features, 2)
    factor(found.model, stack, 0, down, first, second, torch.zeros(old.out_features))
    with pytest.raises(SottoError, match=r"layers.0.feed_forward1.linear2: gates come before low rank"):
        modules_of(found)


def test_gates_do_not_go_on_modules_that_are_partly_factored() -> None:
    found = recognizer("parakeet")
    (stack,) = found.architecture.stacks
    up = stack.feed_forwards[0].up
    old: Any = found.model.get_submodule(f"{stack.layers}.0.{up}")
    factor(
        found.model, stack, 0, up, torch.randn(2, old.in_features), torch.randn(old.out_features, 2), old.bias.detach()
    )
    with pytest.raises(SottoError, match=r"layers.0.feed_forward1.linear1: gates come before low rank"):
        modules_of(found)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_what_stays_open_keeps_the_value_that_it_learnt(target: float) -> None:
    found = recognizer("parakeet")
    gates = random_gates(found, 1)
    costs = gate_costs(found, gates.gated, "parameters")
    for index, decision in enumerate(decide(gates, costs, target)):
        for location, values in (
            (gates.module(index), torch.tensor([decision.module])),
            (gates.units(index), decision.units),
        ):
            if location is not None:
                soft = torch.sigmoid(location.detach() * 0.8 / (2 / 3))
                torch.testing.assert_close(values, torch.where(values > 0, soft, 0.0))


def test_an_absent_module_gets_no_gate() -> None:
    found = recognizer("parakeet")
    (stack,) = found.architecture.stacks
    count = len(modules_of(found))
    drop_module(found.model, stack, 0, stack.convolutions[0])
    assert len(modules_of(found)) == count - 1


def test_gates_are_drawn_in_training_and_fixed_otherwise_and_gone_afterwards() -> None:
    found = recognizer("parakeet")
    before = scores(found)
    gates = random_gates(found)
    with gates.attached(found.model):
        torch.testing.assert_close(scores(found), scores(found), atol=0, rtol=0)
        fixed = scores(found)
        for module in found.model.modules():  # the gates look at the part that they are on
            if type(module) in (torch.nn.Linear, torch.nn.Conv1d):
                module.training = True
        assert (scores(found) - scores(found)).abs().max() > 1e-3
    found.model.eval()
    assert (fixed - before).abs().max() > 1e-3
    torch.testing.assert_close(scores(found), before, atol=0, rtol=0)


def test_fixed_gates_are_found_once_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    gates = random_gates(found)
    asked: list[torch.Tensor] = []
    by_location = HardConcrete.gates

    def gates_of(distribution: HardConcrete, location: torch.Tensor) -> torch.Tensor:
        asked.append(location)
        return by_location(distribution, location)

    monkeypatch.setattr(HardConcrete, "gates", gates_of)
    with gates.attached(found.model):
        first = scores(found)
        scores(found)
        assert len(asked) == len(gates.of_units) + len(gates.gated)
        found.model.train()
        scores(found)
        with torch.no_grad():
            gates.of_units[0].neg_()
        found.model.eval()
        assert (scores(found) - first).abs().max() > 1e-3
        assert len(asked) == 2 * (len(gates.of_units) + len(gates.gated))


def test_gradients_reach_every_location() -> None:
    found = recognizer("parakeet")
    gates = Gates(modules_of(found), HardConcrete(), 0.9, True)
    with torch.no_grad():
        for location in gates.parameters():
            location.fill_(0.3)
    costs = gate_costs(found, gates.gated, "parameters")
    share = costs.share(gates.expected())
    share.backward()
    assert all((location.grad > 0).all() for location in gates.parameters())  # the likelier, the dearer
    assert 0 < share.item() < 1


def test_what_is_open_costs_the_whole() -> None:
    found = recognizer("whisper")
    gates = Gates(modules_of(found), HardConcrete(), 0.9, True)
    costs = gate_costs(found, gates.gated, "parameters")
    full = [(torch.ones(()), torch.tensor(float(each.units))) for each in gates.gated]
    assert costs.share(full).item() == pytest.approx(1.0)
    empty = [(torch.zeros(()), torch.tensor(float(each.units))) for each in gates.gated]
    for each in gates.gated:
        each.keep(found.model, [])
    assert costs.share(empty).item() * costs.whole == pytest.approx(count_parameters(found.model).total)


def test_costs_lie_on_lines_between_the_widths_by_hand() -> None:
    cost = ModuleCost((1.0, 2.0, 4.0), (3.0, 4.0, 10.0))
    for width, expected in [(1.0, 3.0), (1.5, 3.5), (2.0, 4.0), (3.0, 7.0), (4.0, 10.0), (5.0, 13.0), (0.0, 3.0)]:
        assert cost.at(torch.tensor(width)).item() == pytest.approx(expected)
    steep = ModuleCost((4.0, 8.0, 16.0, 32.0), (1.0, 3.0, 5.0, 9.0))
    assert steep.at(torch.tensor(2.0)).item() == 1.0  # and not nothing, where the first line would go on
    width = torch.tensor(3.0, requires_grad=True)
    cost.at(width).backward()
    assert width.grad is not None
    assert width.grad.item() == 3.0


def test_the_share_is_that_of_the_expected_cost_by_hand() -> None:
    costs = GateCosts((ModuleCost((0.0, 4.0), (2.0, 10.0)), ModuleCost((0.0, 2.0), (0.0, 6.0))), rest=4.0, whole=20.0)
    expected = [(torch.tensor(0.5), torch.tensor(2.0)), (torch.tensor(1.0), torch.tensor(1.0))]
    assert costs.share(expected).item() == pytest.approx((0.5 * 6 + 3 + 4) / 20)


def test_latency_is_measured_at_some_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotto.methods.module_times.ENOUGH", 0.0)
    found = recognizer("parakeet")
    gated = modules_of(found)
    costs = gate_costs(found, gated, "latency")
    assert costs.whole > 0
    assert all(cost.widths[-1] == each.units for cost, each in zip(costs.modules, gated, strict=True))
    assert all(value > 0 for cost in costs.modules for value in cost.costs)
    assert costs.modules[0] == costs.modules[4]  # the same network of another layer
    one = modules_of(recognizer("wav2vec2_conformer_rotary"))
    assert gate_costs(recognizer("wav2vec2_conformer_rotary"), one, "latency").whole > 0


def same_at_every_share(times: Times) -> dict[float, Times]:
    return dict.fromkeys(SHARES, times)


def test_heads_of_fewer_channels_have_times_of_their_own() -> None:
    found = Recognizer(*tiny_whisper(encoder_layers=3))
    stack = found.architecture.stack("encoder")
    narrow_heads(found.model, stack, 1, stack.attentions[0], 5)
    gated = [each for each in modules_of(found) if each.module is stack.attentions[0]]
    modules, whole = latency_costs(gated, same_at_every_share(Times(20.0, (4.0, 1.0, 6.0))))
    assert [cost.costs[-1] for cost in modules] == [5.0, 1.0, 5.0]
    assert whole == 20.0


def test_more_units_never_cost_less() -> None:
    gated = modules_of(recognizer("parakeet"))
    measured = {0.125: 3.0, 0.25: 2.0, 0.5: 5.0, 0.75: 4.0, 1.0: 6.0}
    count = len(gated)
    found = {share: Times(10.0 + count * each, (each,) * count) for share, each in measured.items()}
    costs, _ = latency_costs(gated, found)
    network = next(cost for cost, each in zip(costs, gated, strict=True) if each.units == 24)
    assert network.widths == (3, 6, 12, 18, 24)
    assert network.costs == pytest.approx((3.0, 3.0, 5.0, 5.0, 6.0))


def test_modules_that_seem_slow_apart_are_scaled_to_what_the_whole_model_is_faster_by() -> None:
    """Half of the units: 12 of 20 seconds of the whole, of which 8 are the rest; the modules say 3 + 5 apart, not 4."""
    network = next(each for each in modules_of(recognizer("parakeet")) if each.units == 24)
    gated = [each for each in modules_of(recognizer("parakeet")) if each.module.name == network.module.name]
    costs, _ = latency_costs(gated, {0.5: Times(12.0, (3.0, 5.0)), 1.0: Times(20.0, (5.0, 7.0))})
    assert costs[0].widths == (12, 24)
    assert [cost.costs for cost in costs] == [pytest.approx((2.0, 6.0))] * 2  # of one shape: the medians


def test_modules_whose_units_have_no_gates_have_one_time() -> None:
    """That of all their units: half of the other modules' saves 2 of 12 seconds, so that these take 2 of their 4."""
    gated = modules_of(recognizer("parakeet"), ("modules", "neurons"))
    rest, count = 4.0, len(gated)
    times = {0.5: Times(rest + 6.0, (3.0 / count,) * count), 1.0: Times(rest + count, (1.0,) * count)}
    costs, _ = latency_costs(gated, times)
    attention = next(cost for cost, each in zip(costs, gated, strict=True) if "attn" in each.module.name)
    network = next(cost for cost, each in zip(costs, gated, strict=True) if each.has_units)
    assert (attention.widths[0], attention.costs) == (0, (0.0, 1.0))
    assert network.costs == pytest.approx((0.5, 1.0))


def test_the_whole_is_timed_without_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(heard: Recognizer, length: float) -> float:
        measured = whole_seconds(heard, length)
        return measured if any(module._forward_hooks for module in heard.model.modules()) else 7.0

    found = recognizer("parakeet")
    monkeypatch.setattr("sotto.methods.module_times.ENOUGH", 0.0)
    monkeypatch.setattr("sotto.methods.module_times.whole_seconds", seconds)
    assert gate_costs(found, modules_of(found), "latency").whole == 7.0


def test_on_a_gpu_threads_change_nothing_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    monkeypatch.setattr(type(found.model), "device", torch.device("cuda"))
    with pytest.raises(SottoError, match="the model's time is that on a GPU; leave out threads"):
        gate_costs(found, modules_of(found), "latency", threads=2)


def test_time_is_on_the_threads_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, before, heard = recognizer("parakeet"), torch.get_num_threads(), []
    gated = modules_of(found)

    def timed(*_: object) -> Times:
        heard.append(torch.get_num_threads())
        return Times(20.0, (1.0,) * len(gated))

    monkeypatch.setattr("sotto.methods.module_times.timed", timed)
    assert gate_costs(found, gated, "latency", threads=before + 1).threads == before + 1
    gate_costs(found, gated, "latency")
    assert set(heard[: len(heard) // 2]) == {before + 1}
    assert set(heard[len(heard) // 2 :]) == {before}
    assert torch.get_num_threads() == before


def test_costs_are_of_audio_of_the_length_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    gated = modules_of(found)
    for seconds in (2.0, 20.0):
        costs = gate_costs(found, gated, "flops", seconds)
        assert costs.whole == flops_by_module(found.model, found.family.frames(seconds), 0)[""]
        assert costs.length == seconds
    assert gate_costs(found, gated, "flops").length == found.window_seconds
    assert gate_costs(found, gated, "parameters").length is None
    short, long = (gate_costs(found, gated, "flops", seconds) for seconds in (2.0, 20.0))
    attention = next(index for index, each in enumerate(gated) if "attn" in each.module.name)
    shares = [costs.modules[attention].costs[-1] / costs.whole for costs in (short, long)]
    assert shares[0] < shares[1]  # products of every frame with every other one
    heard = []
    monkeypatch.setattr("sotto.methods.module_times.whole_seconds", lambda _, length: heard.append(length) or 1.0)
    monkeypatch.setattr("sotto.methods.module_times.Clock.seconds", lambda _: 0.01)
    gate_costs(found, gated, "latency", 3.0)
    assert set(heard) == {3.0}
    whisper = Recognizer(*tiny_whisper())
    with pytest.raises(SottoError, match="pads all audio to 1 s; leave out seconds"):
        gate_costs(whisper, modules_of(whisper), "flops", 0.5)


@pytest.mark.parametrize("kinds", [KINDS, ("modules",), ("neurons",), ("heads", "channels")])
def test_the_target_is_met_as_nearly_as_the_units_allow(kinds: Any) -> None:
    found = recognizer("parakeet")
    gates = random_gates(found, 3, kinds)
    costs = gate_costs(found, gates.gated, "parameters")
    least = share_of(decide(gates, costs, 1e-9), costs)
    most = share_of(decide(gates, costs, 1.0), costs)
    target = least + 0.6 * (most - least)
    left = share_of(decide(gates, costs, target), costs)
    dearest = max(cost.costs[-1] for cost in costs.modules) / costs.whole
    coarse = dearest if kinds == ("modules",) else dearest_unit(gates, costs)
    assert target - coarse <= left <= target


@pytest.mark.parametrize("seed", range(6))
def test_cheap_units_fill_what_dear_ones_leave(seed: int) -> None:
    """Heads cost 5 % of the whole each, neurons and channels 0.1 % and less."""
    generator = torch.Generator().manual_seed(seed)
    gated = [replace(each, units=4 if each.channels > 1 else 64) for each in modules_of(recognizer("parakeet"))]
    gates = Gates(gated, HardConcrete(), 0.9, True)
    with torch.no_grad():
        for location in gates.parameters():
            location.normal_(2.0, 2.0, generator=generator)
    gates.clamp()
    tables = [ModuleCost((0.0, each.units), (0.1, 20.0 if each.channels > 1 else 6.0)) for each in gated]
    costs = GateCosts(tuple(tables), rest=20.0, whole=20.0 + sum(table.costs[-1] for table in tables))
    for target in (0.4, 0.6, 0.8):
        assert 0.99 * target <= share_of(decide(gates, costs, target), costs) <= target


def test_notes_say_where_gates_come_no_closer_and_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer("parakeet")
    costs = GateCosts((), rest=4.0, whole=4.0)
    (met,) = left_notes(found, None, 0.495, costs, "parameters", 0.5)
    assert met == "49.5% of the parameters are left; the target was 50.0%"
    (missed,) = left_notes(found, None, 0.469, costs, "parameters", 0.5)
    assert missed.endswith("the target was 50.0%, and is missed by more than 1 %")
    costs = replace(costs, length=4.0)
    (of_audio,) = left_notes(found, None, 0.5, costs, "flops", 0.5)
    assert of_audio == "50.0% of the flops of 4 s are left; the target was 50.0%"
    dense, asked = recognizer("parakeet"), []

    def seconds(heard: Recognizer, length: float) -> float:
        asked.append(heard)
        return {id(found): 3.0, id(dense): 4.0}[id(heard)] if length == 4.0 else 0.0

    monkeypatch.setattr("sotto.methods.gate_decisions.whole_seconds", seconds)
    expected, measured = left_notes(found, dense, 0.5, costs, "latency", 0.5)
    assert asked[:4] == [found, dense, found, dense]  # in turns
    assert expected.startswith("50.0% of the latency of 4 s are expected to be left")
    assert measured.startswith("the whole pruned model was measured to take 75.0% of the latency before, threads: ")


def test_heads_and_modules_are_open_at_first() -> None:
    gates = Gates(modules_of(recognizer("parakeet")), HardConcrete(), 0.9, True)
    for gated, (there, units) in zip(gates.gated, gates.expected(), strict=True):
        assert there.item() > 0.99
        expected = 1.0 if gated.channels > 1 else 0.9
        assert units.item() / gated.units == pytest.approx(expected, abs=0.01)


def test_closed_modules_that_still_fit_are_opened_again_by_hand() -> None:
    """Locations fall from module to module; the third costs too much, the fourth and fifth still fit."""
    gated = modules_of(recognizer("parakeet"), ("modules",))[:6]
    prices = (20.0, 20.0, 30.0, 5.0, 6.0, 3.0)
    costs = GateCosts(tuple(ModuleCost((0.0, 1.0), (0.0, price)) for price in prices), rest=16.0, whole=100.0)
    gates = Gates([replace(each, units=1) for each in gated], HardConcrete(), 0.9, True)
    assert gates.of_modules is not None
    with torch.no_grad():
        gates.of_modules.copy_(torch.tensor([3.0, 2.5, 1.0, -1.0, -2.0, -3.0]))
    decisions = decide(gates, costs, 0.69)
    assert [bool(decision.kept) for decision in decisions] == [True, True, False, True, True, False]
    assert share_of(decisions, costs) == pytest.approx(0.67)
    assert decisions[3].module == pytest.approx(torch.sigmoid(torch.tensor(-1.2)).item())


def test_locations_begin_in_the_order_of_worth_about_the_target_by_hand() -> None:
    """Two networks of ten neurons, those of the second worth more; a neuron costs 2 and the rest 60 of 100."""
    gated = [replace(each, units=10) for each in modules_of(recognizer("parakeet"), ("neurons",)) if each.has_units][:2]
    costs = GateCosts(tuple(ModuleCost((0.0, 10.0), (0.0, 20.0)) for _ in gated), rest=60.0, whole=100.0)
    gates = Gates(gated, HardConcrete(), 0.9, False)
    worths = [torch.arange(10.0, dtype=torch.float64), torch.arange(10.0, 20.0, dtype=torch.float64)]
    places = places_of(gates, costs, worths)
    torch.testing.assert_close(torch.cat(places), torch.arange(20.0, dtype=torch.float64) / 20)
    start_in_order(gates, costs, worths, 0.8)
    assert costs.share(gates.expected()).item() == pytest.approx(0.8, abs=1e-4)
    locations = torch.cat(list(gates.of_units)).detach()
    assert (locations.diff() >= 0).all()
    assert locations.unique().numel() > 5
    few, many = (decision.kept for decision in decide(gates, costs, 0.801))
    assert few == list(range(10 - len(few), 10))
    assert many == list(range(10 - len(many), 10))
    assert len(few) <= 1  # at the threshold, a gate is as likely open as closed
    assert len(few) + len(many) == 10


def test_not_all_units_begin_closed_where_modules_cost_much_by_themselves() -> None:
    """Two networks that cost 30 of 100 each as soon as they are there: closing all units leaves 80."""
    gated = [replace(each, units=10) for each in modules_of(recognizer("parakeet")) if each.units == 24]
    costs = GateCosts(tuple(ModuleCost((1.0, 10.0), (30.0, 40.0)) for _ in gated[:2]), rest=20.0, whole=100.0)
    gates = Gates(gated[:2], HardConcrete(), 0.9, True)
    worths = [torch.arange(10.0, dtype=torch.float64), torch.arange(10.0, 20.0, dtype=torch.float64)]
    start_in_order(gates, costs, worths, 0.5)
    assert costs.share(gates.expected()).item() == pytest.approx(0.8 + 0.15 * 0.2, abs=0.01)
    locations = torch.cat(list(gates.of_units))
    assert (locations > 0).any()
    assert (locations.diff() >= 0).all()


def test_where_the_whole_seems_faster_than_without_modules_their_own_times_count() -> None:
    gated = [each for each in modules_of(recognizer("parakeet")) if each.units == 24][:2]
    costs, _ = latency_costs(gated, {0.5: Times(7.0, (3.0, 5.0)), 1.0: Times(20.0, (5.0, 7.0))})  # 8 are the rest
    assert [cost.costs for cost in costs] == [(3.0, 5.0), (5.0, 7.0)]


@pytest.mark.parametrize("constraint", ["parameters", "flops"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_the_target_is_met_within_one_percent_at_sizes_that_are_used(constraint: Any, target: float) -> None:
    config = NewParakeet(hidden_size=64, layers=4, attention_heads=4, intermediate_size=512, subsampling_channels=16)
    found = Recognizer(*new_models.handler(config)(config, ["some words to learn pieces of"], 0, None))
    gates = random_gates(found, 5)
    costs = gate_costs(found, gates.gated, constraint)
    assert 0.99 * target <= share_of(decide(gates, costs, target), costs) <= target


def test_units_that_cost_more_take_more_of_the_order() -> None:
    gated = [replace(each, units=2) for each in modules_of(recognizer("parakeet"), ("neurons",)) if each.has_units][:2]
    costs = GateCosts((ModuleCost((0.0, 2.0), (0.0, 60.0)), ModuleCost((0.0, 2.0), (0.0, 20.0))), 20.0, 100.0)
    gates = Gates(gated, HardConcrete(), 0.9, False)
    places = places_of(gates, costs, [torch.tensor([4.0, 1.0]).double(), torch.tensor([3.0, 2.0]).double()])
    torch.testing.assert_close(torch.cat(places), torch.tensor([50.0, 0.0, 40.0, 30.0]).double() / 80)
