"""The target `onnx`: files under the names that transformers.js and optimum look for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx

from sotto.checkpoint import Recognizer
from sotto.exports.frame_tokenizer import group_frames
from sotto.exports.graph_models import ctc_model
from sotto.exports.graphs import decoder_graphs, encoder_graph, frame_graph
from sotto.exports.merging import merged
from sotto.exports.onnx_models import OnnxGraph, OnnxWhisper
from sotto.exports.precision import Precision, in_precision, write_graph
from sotto.exports.settings import opened, write_json, write_settings
from sotto.exports.short_names import short_names
from sotto.families import Ctc

SUFFIX: dict[Precision, str] = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""transformers.js knows a precision by the end of the name; `_quantized` is what it takes if it is not told"""


def write(recognizer: Recognizer, folder: Path, precision: Precision) -> None:
    """Graphs in `folder`/onnx, and config, generation config, tokenizer and feature extractor beside them."""
    (folder / "onnx").mkdir(parents=True)
    for name, graph in graphs(recognizer, precision):
        write_graph(short_names(graph), folder / "onnx" / f"{name}{SUFFIX[precision]}.onnx")
    write_settings(recognizer, folder)
    name_data_files(folder)
    tokenizer = recognizer.processor.tokenizer
    if isinstance(recognizer.family, Ctc) and tokenizer.is_fast:
        group_frames(folder, tokenizer.pad_token)


def name_data_files(folder: Path) -> None:
    """Say in `folder`/config.json which graphs have their weights in a file beside them: transformers.js asks there."""
    path = folder / "config.json"
    beside = [f"{graph.stem}.onnx" for graph in (folder / "onnx").glob("*.onnx_data")]
    if beside:
        named = {"transformers.js_config": {"use_external_data_format": dict.fromkeys(beside, True)}}
        write_json(json.loads(path.read_text(encoding="utf-8")) | named, path)


def graphs(recognizer: Recognizer, precision: Precision) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Name and graph, one after the other: each is as large as its part of the model."""
    family = recognizer.family
    if isinstance(family, Ctc):
        yield "model", in_precision(frame_graph(family), precision)
        return
    yield "encoder_model", in_precision(encoder_graph(recognizer.model), precision)
    first, following = decoder_graphs(recognizer.model)
    yield "decoder_model_merged", merged(in_precision(first, precision), in_precision(following, precision))


def read(folder: Path, precision: Precision) -> Recognizer:
    """The export as a recogniser: its model runs the graphs."""

    def graph(name: str) -> OnnxGraph:
        return OnnxGraph(folder / "onnx" / f"{name}{SUFFIX[precision]}.onnx")

    return opened(
        folder,
        precision,
        whisper=lambda config: OnnxWhisper(config, graph("encoder_model"), graph("decoder_model_merged")),
        ctc=lambda config: ctc_model(config, graph("model")),
    )
