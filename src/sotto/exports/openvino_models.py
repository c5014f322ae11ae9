"""Models whose graphs are OpenVINO's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from transformers.cache_utils import EncoderDecoderCache

from sotto.exports.graph_models import Arrays, Graph, GraphEncoder, GraphWhisper
from sotto.exports.openvino_graphs import BEAMS
from sotto.exports.openvino_pipeline import GenaiPipeline
from sotto.exports.signal_stack import signal_stack_kept


class OpenVinoGraph:
    """One model, on the CPU, with as many threads as torch has; computed in float32 where it is to be `exact`."""

    def __init__(self, path: Path, exact: bool) -> None:
        with signal_stack_kept():
            self.request = openvino.Core().compile_model(path, "CPU", settings_of(exact)).create_infer_request()

    def __call__(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        found = self.request.infer(arrays)
        return {port.get_any_name(): torch.from_numpy(array.copy()) for port, array in found.items()}

    def forget(self) -> None:
        """Empty its states."""
        self.request.reset_state()


def settings_of(exact: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if exact:
        settings |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return settings


class OpenVinoWhisper(GraphWhisper):
    """Whisper whose decoder keeps keys and values by itself, for one transcript (or batch of them) at a time."""

    def __init__(
        self, config: Any, encoder: Graph, decoder: OpenVinoGraph, make_pipeline: Callable[[], GenaiPipeline]
    ) -> None:
        super().__init__(config, GraphEncoder(encoder))
        self.decoder_graph = decoder
        self.make_pipeline = make_pipeline

    @cached_property
    def pipeline(self) -> GenaiPipeline:
        """Made when it is first asked for: measuring times and scores takes the graphs alone."""
        return self.make_pipeline()

    def step(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        """The cache holds for each token the number of its row: where beams were reordered, that of another one."""
        rows = torch.arange(len(tokens))
        origins = rows
        if cache.get_seq_length():
            layer: Any = cache.self_attention_cache.layers[0]
            origins = layer.keys[:, 0, -1, 0]
        else:
            self.decoder_graph.forget()
        marks = rows[:, None, None, None].expand(-1, 1, tokens.shape[1], 1)
        cache.self_attention_cache.update(marks, marks, 0)
        arrays = {
            "input_ids": tokens.numpy(),
            "encoder_hidden_states": states.numpy(),
            BEAMS: origins.numpy().astype(np.int32),
        }
        return self.decoder_graph(arrays)["logits"]
