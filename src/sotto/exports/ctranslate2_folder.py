"""The target `ctranslate2`: the folder that faster-whisper opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters.transformers import WhisperLoader
from transformers import AutoConfig, GenerationConfig

from sotto.checkpoint import Recognizer
from sotto.exports.copies import config_without_record
from sotto.exports.ctranslate2_models import CTranslate2Whisper, open_runtime
from sotto.exports.ctranslate2_shapes import narrow_copy, notes
from sotto.exports.settings import token_of_no_timestamps, write_for_clients
from sotto.families import family_of
from sotto.families.whisper_transcription import is_multilingual

FASTER_WHISPER_SECONDS = 30.0
UNUSED = "<|startoflm|>"  # a token that no runtime decodes with


def write(recognizer: Recognizer, folder: Path, precision: str) -> tuple[str, ...]:
    """model.bin, config.json and vocabulary.json, and the files beside them; what each change is worth.

    Raises SottoError for a Whisper that does not name its token for "no timestamps".
    """
    config = recognizer.model.config
    token_of_no_timestamps(recognizer, "CTranslate2")
    spec = spec_of(recognizer)
    for key, value in config_without_record(recognizer.model).to_dict().items():
        spec.config.add_attribute(key, value)  # CTranslate2 reads its own entries, transformers those
    spec.validate()
    spec.optimize(quantization=precision)
    spec.save(str(folder))
    write_for_clients(recognizer, folder)
    return (*notes(recognizer.structure, config, recognizer.architecture.stacks), *limits(recognizer))


def spec_of(recognizer: Recognizer) -> Any:
    """The model as CTranslate2's converter lays it out, without what the converter takes for granted.

    CTranslate2 scales queries by the width over the number of heads, which is the size of a head in no model that has
    lost some: it would compute something else, without a word.
    """
    loader, model, tokenizer = WhisperLoader(), narrow_copy(recognizer), recognizer.processor.tokenizer
    with torch.no_grad():
        spec = loader(model, tokenizer)
    if is_multilingual(model.generation_config):
        spec.register_vocabulary(with_languages(loader.get_vocabulary(model, tokenizer)))
    for stack in recognizer.architecture.stacks:
        scale = stack.dimensions(recognizer.model.config).head_dim ** -0.5
        for layer in getattr(spec, stack.name).layer:
            for name in ("self_attention", "attention"):  # the second is the decoder's, to the audio
                if hasattr(layer, name):
                    getattr(layer, name).queries_scale = scale
    return spec


def with_languages(tokens: list[str]) -> list[str]:
    """The names of the tokens for a model that is told the language.

    CTranslate2 knows one by an empty name, which is there in the published vocabularies of many languages only.
    """
    return tokens if "" in tokens else ["" if token == UNUSED else token for token in tokens]


def limits(recognizer: Recognizer) -> list[str]:
    """What faster-whisper does otherwise with this model, a line each."""
    seconds, vocabulary = recognizer.window_seconds, recognizer.processor.tokenizer.get_vocab()
    found = []
    if seconds != FASTER_WHISPER_SECONDS:
        found.append(f"faster-whisper pads audio to 30 s and this model hears {seconds:g} s: see docs/export.md")
    if is_multilingual(recognizer.model.generation_config) and not {"", UNUSED} & vocabulary.keys():
        found.append(
            f"faster-whisper leaves language and task out of the prompt: the tokenizer has no {UNUSED}, by which "
            "CTranslate2 would know this model for one of several languages"
        )
    return found


def read(folder: Path, precision: str) -> Recognizer:
    """The export as a recogniser: CTranslate2 runs its encoder, and decodes."""
    config = AutoConfig.from_pretrained(folder)
    model: Any = CTranslate2Whisper(config, open_runtime(folder, precision))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return Recognizer(model.eval(), family_of(config).load_processor(folder), precision, folder=folder)
