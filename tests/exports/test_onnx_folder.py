"""Exports to ONNX: opened by onnxruntime, and held to the model that they were made of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.exports import export, is_export, onnx_runs, open_export
from sotto.exports.merging import merged
from sotto.exports.onnx_folder import graphs
from sotto.exports.onnx_models import OnnxGraph
from sotto.methods import Quantization, StepContext, methods
from sotto.opening import cost_of, import_runtime, open_model
from tones import tiny_whisper, write_folder

Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""


@pytest.fixture(params=["whisper", "parakeet"])
def both(request: pytest.FixtureRequest, exported_by: Callable[[Any], Both]) -> Both:
    return exported_by(("onnx", request.param, "mixed"))


def test_threads_of_what_is_timed_in_turn_do_not_spin(tmp_path: Path) -> None:
    """Two linears of some milliseconds took ten times as long beside the spinning threads of thirty others."""
    heard = torch.randn(1, 6, 4)
    linear = torch.nn.Linear(4, 3)
    run: Any = onnx_runs.module_run(linear, heard, "float32", tmp_path)
    assert torch.allclose(run()["given"], linear(heard), atol=1e-5)
    spins = "session.intra_op.allow_spinning"
    assert run.func.session.get_session_options().get_session_config_entry(spins) == "0"
    again = OnnxGraph(next(tmp_path.glob("*.onnx")))
    assert again.session.get_session_options().get_session_config_entry(spins) == "1"


def clips_in(folder: Path) -> Path:
    return write_folder(folder / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])


def test_a_quantized_model_is_exported_in_floats_and_in_whole_numbers(tmp_path: Path) -> None:
    found = Recognizer(*tiny_whisper())
    step = Quantization(embedding_bits=8)
    methods.handler(step)(found, step, StepContext(tmp_path))
    clips = clips_in(tmp_path)
    plain = export(found, tmp_path / "plain", to="onnx", audio=clips)
    whole = export(found, tmp_path / "whole", to="onnx", precision="int8", audio=clips)
    assert plain.agreement.scores < 1e-5 < whole.agreement.scores < 0.1
    assert found.structure.embedding is not None  # the model itself stays as it was
    graph = onnx.load(tmp_path / "whole" / "onnx" / "decoder_model_merged_quantized.onnx").graph
    tokens, width = found.model.config.vocab_size, found.model.config.d_model
    tables = [tensor for tensor in graph.initializer if sorted(tensor.dims) == sorted((tokens, width))]
    assert [tensor.data_type for tensor in tables] == [onnx.TensorProto.INT8]  # once, for both ends of the decoder


def test_half_precision_takes_half(tmp_path: Path) -> None:
    found = Recognizer(*tiny_whisper(d_model=64, attention_heads=2))
    record = export(found, tmp_path / "half", to="onnx", precision="float16", audio=clips_in(tmp_path))
    assert 1e-6 < record.agreement.scores < 5e-3
    kinds = {
        tensor.data_type
        for path in (tmp_path / "half" / "onnx").iterdir()
        for tensor in onnx.load(path).graph.initializer
        if np.prod(tensor.dims) > 64
    }
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_an_export_that_computes_something_else_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of_architecture("parakeet")
    damaged = of_architecture("parakeet")
    with torch.no_grad():
        damaged.model.ctc_head.weight.mul_(1.01)
    monkeypatch.setattr(
        "sotto.exports.onnx_folder.graphs",
        lambda _, precision: graphs(Recognizer(damaged.model, found.processor), precision),
    )
    with pytest.raises(SottoError, match=r"does not compute .*: its scores differ by 0.0\d+ of their size, more than"):
        export(found, tmp_path / "out", to="onnx", audio=clips_in(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


@pytest.mark.parametrize("kind", [RuntimeError, Fail])
def test_a_runtime_that_cannot_run_it_is_told_by_its_words(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's own kinds of errors are no RuntimeErrors."""

    def fail(*_: Any) -> Any:
        raise kind("no position 449")

    monkeypatch.setattr("sotto.exports.onnx_models.OnnxGraph.__call__", fail)
    with pytest.raises(SottoError, match=r"onnx cannot run what was written \(no position 449\); nothing was left"):
        export(of_architecture("parakeet"), tmp_path / "out", to="onnx", audio=clips_in(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_what_cannot_be_opened_is_told_by_the_place_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime names the file, in a folder that is gone. So are the parents that were made for it."""
    monkeypatch.setattr("sotto.exports.onnx_folder.write_graph", lambda _, path: path.write_bytes(b"cut"))
    place = tmp_path / "new" / "deep" / "out"
    with pytest.raises(SottoError, match=rf"onnx cannot run what was written \(.*{place}/onnx/model.onnx") as refused:
        export(of_architecture("parakeet"), place, to="onnx", audio=clips_in(tmp_path))
    assert "partial" not in str(refused.value)
    assert "again" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_an_error_of_the_model_is_not_the_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("of torch")

    monkeypatch.setattr("sotto.families.parakeet.Parakeet.with_transcript", fail)
    with pytest.raises(RuntimeError, match="^of torch$"):
        export(of_architecture("parakeet"), tmp_path / "out", to="onnx", audio=clips_in(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_the_graph_of_later_tokens_is_proved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_other_logits(first: onnx.ModelProto, following: onnx.ModelProto) -> onnx.ModelProto:
        logits = following.graph.output[0].name
        for node in following.graph.node:
            node.output[:] = ["before" if name == logits else name for name in node.output]
        following.graph.node.append(onnx.helper.make_node("Neg", ["before"], [logits]))
        return merged(first, following)

    monkeypatch.setattr("sotto.exports.onnx_folder.merged", with_other_logits)
    found = Recognizer(*tiny_whisper())
    with pytest.raises(SottoError, match="does not compute what the model computes: its scores differ"):
        export(found, tmp_path / "out", to="onnx", precision="float16", audio=clips_in(tmp_path))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_large_graphs_have_their_weights_beside_them(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sotto.exports.precision.LARGEST_FILE", 10_000)
    found = of_architecture("parakeet")
    export(found, tmp_path / "out", to="onnx", precision=precision, audio=clips_in(tmp_path))
    (graph,) = (path for path in (tmp_path / "out" / "onnx").iterdir() if path.suffix == ".onnx")
    beside = graph.with_name(f"{graph.name}_data")
    assert beside.stat().st_size > 1_000
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {graph.name: True}}
    assert cost_of(open_export(tmp_path / "out"), str(tmp_path / "out")).bytes_on_disk == sum(
        path.stat().st_size for path in (graph, beside)
    )


def test_small_graphs_are_said_to_have_nothing_beside_them(both: Both) -> None:
    assert "transformers.js_config" not in json.loads((both[1] / "config.json").read_text())


def test_an_export_takes_the_place_of_one(both: Both) -> None:
    """And an export is no model to export."""
    model, folder = both
    with pytest.raises(SottoError, match="out is an export; name the checkpoint that it was made of"):
        export(open_export(folder), folder.parent / "again", to="onnx")
    with pytest.raises(SottoError, match="out: is an export for another runtime; name the checkpoint"):
        load(folder)
    with pytest.raises(SottoError, match="an export has the precision that it was written in; leave out dtype"):
        open_model(folder, dtype=torch.bfloat16)
    copied = folder.parent / "copied"
    shutil.copytree(folder, copied)
    if model.architecture.name == "parakeet":
        export(model, copied, to="transformers", audio=folder.parent / "clips")
        assert not (copied / "onnx").exists()
    else:
        next((copied / "onnx").iterdir()).write_bytes(b"cut")
        with pytest.raises(SottoError, match=r"copied: cannot be opened \(.*\); export the model again"):
            open_export(copied)
    shutil.rmtree(copied)


def test_what_is_not_installed_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotto.exports.targets.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SottoError, match=r"onnx needs onnxscript, which is not installed; pip install 'sotto\[onnx\]'"):
        export(tmp_path / "no model", tmp_path / "out", to="onnx")


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    found = of_architecture("parakeet")
    with pytest.raises(SottoError, match="unknown target 'onx'; did you mean 'onnx'"):
        export(found, tmp_path / "out", to="onx")
    with pytest.raises(SottoError, match="onnx is written in float32, float16, int8; found precision 'int4'"):
        export(found, tmp_path / "out", to="onnx", precision="int4")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(SottoError, match="exists and is no export; name a new folder"):
        export(found, tmp_path / "notes", to="onnx")
    assert not is_export(tmp_path / "notes")


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "sotto_export.json").write_text("{}")
    with pytest.raises(SottoError, match=r"sotto_export.json is of version None and this Sotto reads 1; export"):
        open_export(tmp_path)
    (tmp_path / "sotto_export.json").write_text("{")
    with pytest.raises(SottoError, match=r"sotto_export.json: cannot be read \(.*\); export the model again"):
        open_export(tmp_path)


@pytest.mark.parametrize("call", [open_export, open_model, import_runtime])
def test_a_record_of_an_unknown_target_is_said(
    call: Callable[[Path], Any], tmp_path: Path, exported_by: Callable[[Any], Both]
) -> None:
    record = json.loads((exported_by(("onnx", "parakeet", "mixed"))[1] / "sotto_export.json").read_text())
    (tmp_path / "sotto_export.json").write_text(json.dumps(record | {"target": "tensorrt"}))
    with pytest.raises(SottoError, match="sotto_export.json: unknown target 'tensorrt'; did you mean 'tr"):
        call(tmp_path)


def test_a_record_of_another_model_is_said(tmp_path: Path, exported_by: Callable[[Any], Both]) -> None:
    folder = shutil.copytree(exported_by(("onnx", "parakeet", "mixed"))[1], tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["encoder_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SottoError, match=r"sotto_export.json: structure record: encoder has \d layers, but .* again"):
        open_export(folder)
