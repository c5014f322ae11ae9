from pathlib import Path
from typing import Any

import pytest
import torch
from small_whisper import MakeRecognizer

from recognizers import recognizer
from sotto.checkpoint import Recognizer
from sotto.compress import compress
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.methods import LayerDropping, StepContext, methods
from sotto.methods.layer_dropping import evenly
from sotto.surgery import get_linear, structure_of
from tones import tiny_whisper


@pytest.mark.parametrize(
    ("kept", "count", "expected"),
    [(1, 6, [0]), (2, 6, [0, 5]), (3, 6, [0, 2, 5]), (4, 6, [0, 1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5])],
)
def test_layers_are_chosen_evenly_by_hand(kept: int, count: int, expected: list[int]) -> None:
    assert evenly(kept, count) == expected


def test_layers_are_dropped() -> None:
    found = Recognizer(*tiny_whisper(encoder_layers=4, decoder_layers=2))
    smaller = compress(found, LayerDropping(encoder=2, decoder=1))
    structure = structure_of(smaller.model)
    assert [layer.base_layer for layer in structure.stacks["encoder"].layers] == [0, 3]
    assert [layer.base_layer for layer in structure.stacks["decoder"].layers] == [0]
    with pytest.raises(SottoError, match="layer_dropping: the encoder has 4 layers; 5 cannot be kept"):
        compress(found, LayerDropping(encoder=5))
    with pytest.raises(SottoError, match="has no stack 'decoder'"):
        compress(recognizer("parakeet"), LayerDropping(decoder=1))
    with pytest.raises(SottoError, match="give encoder, decoder or both"):
        LayerDropping()
    with pytest.raises(SottoError, match="encoder must keep at least 1 layer, found 0"):
        LayerDropping(encoder=0)


@pytest.mark.parametrize(("stack", "idle"), [("decoder", [0, 2]), ("encoder", [1])])
def test_by_divergence_those_go_that_say_nothing(
    stack: Any, idle: list[int], make_recognizer: MakeRecognizer, clips: ClipSource
) -> None:
    found = make_recognizer(layers=4)
    table = found.architecture.stack(stack)
    with torch.no_grad():
        for layer in idle:
            for module in table.modules:
                last = get_linear(found.model, table, layer, module.linears[-1])
                last.weight.zero_()
                last.bias.zero_()
    config = LayerDropping(**{stack: 4 - len(idle)}, by="divergence")
    notes = methods.handler(config)(found, config, StepContext(Path(), calibration=clips))
    kept = [layer for layer in range(4) if layer not in idle]
    assert [layer.base_layer for layer in structure_of(found.model).stacks[stack].layers] == kept
    assert notes == [f"{stack}: layers {', '.join(map(str, kept))} of 4 kept"]


def test_divergence_is_told_on_clips(make_recognizer: MakeRecognizer) -> None:
    with pytest.raises(SottoError, match="layer_dropping by divergence needs calibration clips; give data.calibration"):
        compress(make_recognizer(), LayerDropping(decoder=1, by="divergence"))
    assert LayerDropping(decoder=1, by="divergence").needs == ("calibration",)
