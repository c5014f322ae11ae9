"""The whole table of what each target takes: every cell is exported, or refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mixed_shapes import factor_at_random, mixed
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports import TARGETS, export
from sotto.exports.capability import (
    CONFORMER,
    FEWER_LAYERS,
    ORDER,
    OUTCOMES,
    REASONS,
    REDUCED,
    WHOLE_NUMBERS,
    Outcome,
    as_table,
    changes_of,
    outcome,
    told,
)
from sotto.exports.record import read_record
from sotto.methods import LayerDropping, Quantization, StepContext, methods
from sotto.opening import cost_of, open_model
from sotto.surgery import (
    drop_module,
    gather_inputs,
    keep_channels,
    keep_heads,
    narrow_ffn,
    narrow_heads,
    reduce_attention,
)
from tones import forbid_special_tokens, tiny_whisper, write_folder

GRAPHS = ("onnx", "openvino", "sherpa-onnx")
GAINS = {Outcome.KEPT, Outcome.IN_PART}
NOT_IN_BYTES = (CONFORMER, REDUCED)
"""what has no equal model that is larger: a Conformer as it is, and an attention in which factors are used otherwise"""


def whisper(layers: int = 1) -> Recognizer:
    sizes = {"encoder_layers": layers, "decoder_layers": layers, "d_model": 64, "attention_heads": 4}
    found = Recognizer(*tiny_whisper(**sizes, maximum_tokens=16))
    found.model.eval()
    forbid_special_tokens(found.model, found.processor)
    return found


def fewer_layers(found: Recognizer, layers: int = 1) -> None:
    step = LayerDropping(encoder=layers, decoder=layers)
    methods.handler(step)(found, step, StepContext(Path()))


def factors(stack: str) -> Callable[[Recognizer], None]:
    def make(found: Recognizer) -> None:
        factor_at_random(found, found.architecture.stack(stack), 0, "fc1")

    return make


def reduced(found: Recognizer) -> None:
    encoder = found.architecture.stack("encoder")
    for projection in encoder.attentions[0].projections[:3]:
        factor_at_random(found, encoder, 0, projection)
    reduce_attention(found.model, encoder, 0, encoder.attentions[0])


def fewer_heads(found: Recognizer) -> None:
    for stack in found.architecture.stacks:
        for attention in stack.attentions:
            keep_heads(found.model, stack, 0, attention, [0, 2, 3])


def narrower_heads(found: Recognizer) -> None:
    for stack in found.architecture.stacks:
        for attention in stack.attentions:
            narrow_heads(found.model, stack, 0, attention, 10)


def narrower(found: Recognizer) -> None:
    encoder = found.architecture.stack("encoder")
    narrow_ffn(found.model, encoder, 0, encoder.feed_forwards[0], [0, 2, 3, 7])


def fewer_channels(found: Recognizer) -> None:
    (encoder,) = found.architecture.stacks
    keep_channels(found.model, encoder, 0, encoder.convolutions[0], [0, 1, 5])


def absent(found: Recognizer) -> None:
    decoder = found.architecture.stack("decoder")
    for module in (decoder.attentions[1], decoder.feed_forwards[0]):
        drop_module(found.model, decoder, 0, module)


def inputs_in_part(found: Recognizer) -> None:
    gather_inputs(found.model, found.architecture.stack("encoder"), 0, "fc1", range(2, 9))


def in_whole_numbers(found: Recognizer) -> None:
    step = Quantization()
    methods.handler(step)(found, step, StepContext(Path()))


MAKERS: dict[str, Callable[[Recognizer], None]] = {
    CONFORMER: lambda found: None,
    FEWER_LAYERS: fewer_layers,
    "factors in the encoder": factors("encoder"),
    "factors in the decoder": factors("decoder"),
    REDUCED: reduced,
    "fewer heads": fewer_heads,
    "narrower heads": narrower_heads,
    "narrower feed-forward networks": narrower,
    "narrower convolutions": fewer_channels,
    "absent modules": absent,
    "inputs heard in part": inputs_in_part,
    WHOLE_NUMBERS: in_whole_numbers,
}
OF_CONFORMERS = {CONFORMER, "narrower convolutions"}
ALONG = {"narrower convolutions": {CONFORMER}, REDUCED: {"factors in the encoder"}}
"""what else a change comes with"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "clips", ["one", "two"], [0.6, 0.9])


@pytest.fixture(scope="module")
def bytes_of_dense(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], int]:
    """Bytes of an export to that target of a model of that kind as it was."""

    @cache
    def measured(target: str, kind: str) -> int:
        folder = tmp_path_factory.mktemp("dense") / target
        export(KINDS[kind](), folder, to=target, audio=clips)
        return size(folder)

    return measured


def size(folder: Path) -> int:
    found = cost_of(open_model(folder), str(folder)).bytes_on_disk
    assert found
    return found


KINDS: dict[str, Callable[[], Recognizer]] = {
    "one layer": whisper,
    "two layers": lambda: whisper(2),
    "three layers": lambda: whisper(3),
    "a Conformer": lambda: of_architecture("parakeet"),
}


def kind_for(change: str) -> str:
    """Of the model that is changed so."""
    if change in OF_CONFORMERS:
        return "a Conformer"
    return "two layers" if change == FEWER_LAYERS else "one layer"


@pytest.mark.parametrize("target", ORDER)
@pytest.mark.parametrize("change", OUTCOMES)
def test_every_cell(
    change: str, target: str, clips: Path, bytes_of_dense: Callable[[str, str], int], tmp_path: Path
) -> None:
    """What is exact is proved by the export itself; what is kept is smaller, and what is filled up is not."""
    kind = kind_for(change)
    found = KINDS[kind]()
    MAKERS[change](found)
    assert rows_of(found) == {change} | ALONG.get(change, set())
    expected = outcome(change, target)
    if expected is Outcome.REFUSED:
        with pytest.raises(SottoError, match=f": {REASONS[target]}; export to onnx instead"):
            export(found, tmp_path / "out", to=target, audio=clips)
        assert not list(tmp_path.iterdir())
        return
    export(found, tmp_path / "out", to=target, audio=clips)
    record = read_record(tmp_path / "out")
    assert record.target == target
    said = [note for note in record.notes if note.startswith(f"{change}: ")]
    assert said == ([f"{change}: {expected.value}"] if expected in (Outcome.FILLED, Outcome.FLOATS) else [])
    if change not in NOT_IN_BYTES:
        gained = bytes_of_dense(target, kind) - size(tmp_path / "out")
        assert gained > 400 if expected in GAINS else gained < 400


@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize("kind", ["three layers", "a Conformer"])
def test_every_row_at_once(
    target: str, kind: str, clips: Path, bytes_of_dense: Callable[[str, str], int], tmp_path: Path
) -> None:
    """Of the targets that keep everything: changes that lie within each other."""
    in_part = {change for change in OUTCOMES if outcome(change, target) is Outcome.IN_PART}
    assert in_part == ({REDUCED} if target == "openvino" else set())
    assert {outcome(change, target) for change in OUTCOMES.keys() - in_part} == {Outcome.KEPT, Outcome.FLOATS}
    found = KINDS[kind]()
    if kind == "three layers":
        fewer_layers(found, 2)
    in_whole_numbers(mixed(found))
    of_one = OF_CONFORMERS if kind == "a Conformer" else set(OUTCOMES) - OF_CONFORMERS
    assert rows_of(found) >= of_one
    notes = export(found, tmp_path / "out", to=target, audio=clips).notes
    assert notes == (f"{WHOLE_NUMBERS}: {Outcome.FLOATS.value}",)
    assert size(tmp_path / "out") < bytes_of_dense(target, kind)


def test_what_is_rounded_anew_is_said() -> None:
    found = whisper(1)
    in_whole_numbers(found)
    assert list(told(found.structure, "onnx", "int8")) == [f"{WHOLE_NUMBERS}: rounded anew, as onnx does"]
    assert list(told(found.structure, "onnx", "float16")) == [f"{WHOLE_NUMBERS}: {Outcome.FLOATS.value}"]


def rows_of(found: Recognizer) -> set[str]:
    return {change for change, _ in changes_of(found.structure)}


def test_the_documentation_shows_the_table() -> None:
    assert as_table() in (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    assert set(ORDER) == set(TARGETS)
    assert all(len(outcomes) == len(ORDER) for outcomes in OUTCOMES.values())
