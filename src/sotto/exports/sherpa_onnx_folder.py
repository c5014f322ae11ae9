"""The target `sherpa-onnx`: what its OfflineRecognizer reads of a Whisper, of NeMo's CTC and of Omnilingual ASR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx.helper import set_model_props

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports.onnx_models import OnnxGraph
from sotto.exports.precision import Precision, in_precision, write_graph
from sotto.exports.settings import opened, token_of_no_timestamps, write_settings
from sotto.exports.sherpa_graphs import (
    KeptSizes,
    decoder_graph,
    encoder_graph,
    features_graph,
    kept_sizes,
    samples_graph,
)
from sotto.exports.sherpa_models import SherpaParakeet, SherpaWav2Vec2Conformer, SherpaWhisper
from sotto.exports.sherpa_tokens import ctc_tokens, text_tokens, write_tokens
from sotto.exports.short_names import short_names
from sotto.families import Ctc, family_of
from sotto.families.parakeet import Parakeet
from sotto.families.whisper_transcription import is_multilingual

SUFFIX: dict[Precision, str] = {"float32": "", "int8": ".int8"}
FEATURES = {"sampling_rate": 16000, "hop_length": 160, "win_length": 400, "n_fft": 512, "preemphasis": 0.97}
"""of NeMo's models in sherpa-onnx"""
SAMPLES = {"sampling_rate": 16000, "do_normalize": True}
"""of Omnilingual ASR's"""


def write(recognizer: Recognizer, folder: Path, precision: Precision) -> None:
    """Graphs and tokens.txt in `folder`; config, generation config, tokenizer and feature extractor are Sotto's.

    Raises SottoError where sherpa-onnx would not compute what the model computes.
    """
    family, tokenizer = recognizer.family, recognizer.processor.tokenizer
    if isinstance(family, Ctc):
        check_hearing(family)
        write_tokens(ctc_tokens(tokenizer, family.blank), folder)
    else:
        write_tokens(text_tokens(tokenizer), folder)
    for name, graph in graphs(recognizer, precision):
        write_graph(short_names(graph), folder / f"{name}{SUFFIX[precision]}.onnx")
    write_settings(recognizer, folder)


def graphs(recognizer: Recognizer, precision: Precision) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Name and graph, one after the other: each is as large as its part of the model."""
    family, model = recognizer.family, recognizer.model
    if isinstance(family, Parakeet):
        yield "model", described(in_precision(features_graph(family), precision), nemo_metadata(model.config))
    elif isinstance(family, Ctc):
        yield "model", in_precision(samples_graph(family), precision)
    else:
        sizes = kept_sizes(model)
        metadata = whisper_metadata(recognizer, sizes)
        yield "encoder", described(in_precision(encoder_graph(model, sizes), precision), metadata)
        yield "decoder", in_precision(decoder_graph(model, sizes), precision)


def described(graph: onnx.ModelProto, metadata: Mapping[str, object]) -> onnx.ModelProto:
    set_model_props(graph, {name: str(value) for name, value in metadata.items()})
    return graph


def check_hearing(family: Ctc) -> None:
    """Raises SottoError where sherpa-onnx hears otherwise, or takes another token for the blank."""
    extractor = family.processor.feature_extractor
    is_parakeet = isinstance(family, Parakeet)
    for name, value in (FEATURES if is_parakeet else SAMPLES).items():
        if getattr(extractor, name) != value:
            raise SottoError(f"sherpa-onnx has {name} {value} and the model {getattr(extractor, name)}; export to onnx")
    if not is_parakeet and family.blank != 0:
        raise SottoError(
            f"sherpa-onnx takes token 0 for the blank, which is token {family.blank} of the model; export to onnx"
        )


def nemo_metadata(config: Any) -> dict[str, object]:
    return {
        "model_type": "EncDecCTCModelBPE",
        "vocab_size": config.vocab_size - 1,  # NeMo does not count the blank
        "normalize_type": "per_feature",
        "subsampling_factor": config.encoder_config.subsampling_factor,
    }


def whisper_metadata(recognizer: Recognizer, sizes: KeptSizes) -> dict[str, object]:
    """Raises SottoError where the generation config does not tell how timestamps are left out."""
    config, generation = recognizer.model.config, recognizer.model.generation_config
    tokenizer: Any = recognizer.processor.tokenizer
    without_times = token_of_no_timestamps(recognizer, "sherpa-onnx")
    start, transcribe, translate = (
        tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("startoftranscript", "transcribe", "translate")
    )
    languages: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    is_told_the_language = bool(languages) and is_multilingual(generation)
    prompt = [start, next(iter(languages.values())), transcribe] if is_told_the_language else [start]
    return {
        "model_type": "whisper",
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_text_layer": len(sizes.tokens),
        "n_text_ctx": config.max_target_positions,
        "n_text_state": sizes.width,
        "n_vocab": config.vocab_size,
        "sot": start,
        "eot": config.eos_token_id,
        "blank_id": tokenizer.encode(" ", add_special_tokens=False)[0],
        "translate": translate,
        "transcribe": transcribe,
        "is_multilingual": int(is_told_the_language),
        "no_timestamps": without_times,
        "no_speech": without_times - 1,
        "sot_sequence": ",".join(map(str, prompt)),
        "all_language_tokens": ",".join(map(str, languages.values())),
        "all_language_codes": ",".join(token.strip("<|>") for token in languages),
    }


def read(folder: Path, precision: Precision) -> Recognizer:
    """The export as a recogniser: its model runs the graphs."""

    def graph(name: str) -> OnnxGraph:
        return OnnxGraph(folder / f"{name}{SUFFIX[precision]}.onnx")

    def ctc(config: Any) -> Any:
        kind: Any = SherpaParakeet if issubclass(family_of(config), Parakeet) else SherpaWav2Vec2Conformer
        return kind(config, graph("model"))

    return opened(
        folder, precision, whisper=lambda config: SherpaWhisper(config, graph("encoder"), graph("decoder")), ctc=ctc
    )
