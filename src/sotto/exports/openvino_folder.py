"""The target `openvino`: the folder that openvino-genai's WhisperPipeline reads; for a CTC model, its model alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openvino
from openvino_tokenizers import convert_tokenizer

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.exports.capability import REDUCED, changes_of
from sotto.exports.graph_models import ctc_model
from sotto.exports.openvino_graphs import decoder_model, encoder_model, frame_model
from sotto.exports.openvino_models import OpenVinoGraph, OpenVinoWhisper, settings_of
from sotto.exports.openvino_pipeline import GenaiPipeline
from sotto.exports.openvino_precision import in_precision
from sotto.exports.settings import opened, write_settings
from sotto.exports.targets import CALIBRATED
from sotto.families import Ctc
from sotto.families.fitted_windows import is_fitted
from sotto.surgery import expand_attention, layers_of

ENCODER, DECODER, FRAMES = "openvino_encoder_model", "openvino_decoder_model", "openvino_model"
EXPANDED = f"{REDUCED}: expanded, since OpenVINO cannot compile its products in whole numbers; nothing gained"


def write(recognizer: Recognizer, folder: Path, precision: str, clips: Sequence[Clip] = ()) -> tuple[str, ...]:
    """Models, tokenizer and detokenizer, and config, generation config and feature extractor beside them.

    Returns what a user should know of it, a line each.
    """
    is_expanded = precision == CALIBRATED and REDUCED in {change for change, _ in changes_of(recognizer.structure)}
    for name, model in models(recognizer, precision, clips):
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=precision == "float16")
    if not isinstance(recognizer.family, Ctc):
        tokenizer, detokenizer = convert_tokenizer(recognizer.processor.tokenizer, with_detokenizer=True)
        openvino.save_model(tokenizer, folder / "openvino_tokenizer.xml")
        openvino.save_model(detokenizer, folder / "openvino_detokenizer.xml")
    write_settings(recognizer, folder)
    return (EXPANDED,) * is_expanded


def models(recognizer: Recognizer, precision: str, clips: Sequence[Clip]) -> Iterator[tuple[str, openvino.Model]]:
    """Name and model, one after the other. What hears audio is calibrated on `clips`, where it is asked for."""
    family = recognizer.family
    if precision == CALIBRATED:
        expand_all(recognizer.model)
    heard = [family.inputs([clip.audio[: int(family.longest_seconds * clip.sampling_rate)]]) for clip in clips]
    if isinstance(family, Ctc):
        yield FRAMES, in_precision(frame_model(family), precision, heard)
        return
    fitted = is_fitted(recognizer.processor.feature_extractor)
    yield ENCODER, in_precision(encoder_model(recognizer.model, fitted), precision, heard)
    decoder = decoder_model(recognizer.model, fitted)
    yield DECODER, in_precision(decoder, "int8" if precision == CALIBRATED else precision, ())


def expand_all(model: Any) -> None:
    """Undo attention in the reduced dimension, whose products in whole numbers OpenVINO 2026.4 cannot compile."""
    for stack, index in layers_of(model):
        for attention in stack.attentions:
            expand_attention(model, stack, index, attention)


def read(folder: Path, precision: str) -> Recognizer:
    """The export as a recogniser. In float32 it is computed in that, in others as OpenVINO sees fit on the machine."""
    exact = precision == "float32"

    def graph(name: str) -> OpenVinoGraph:
        return OpenVinoGraph(folder / f"{name}.xml", exact)

    def pipeline() -> GenaiPipeline:
        return GenaiPipeline(folder, settings_of(exact))

    return opened(
        folder,
        precision,
        whisper=lambda config: OpenVinoWhisper(config, graph(ENCODER), graph(DECODER), pipeline),
        ctc=lambda config: ctc_model(config, graph(FRAMES)),
    )
