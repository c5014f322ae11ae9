"""The target `lite-whisper`: the layout in which LiteASR published its checkpoints (Kamahori et al., 2025).

A Whisper whose config lists, for every layer of the encoder, the ranks of the linears that have two factors. These are
stored as `weight1` (inputs, rank), `weight2` (rank, outputs) and `bias`, all else as in Whisper.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from sotto.architectures import architecture_of
from sotto.checkpoint import DTYPES, Recognizer
from sotto.errors import SottoError
from sotto.exports.copies import config_without_record
from sotto.exports.settings import write_for_clients, write_json
from sotto.quiet import only_errors
from sotto.surgery import factor, layer_path

MODEL_TYPE = "lite-whisper"
PREFIX = "self_attn."  # of attention's linears; the ranks have short names


def write(recognizer: Recognizer, folder: Path, precision: str) -> None:
    """Config, weights, generation config, tokenizer and feature extractor."""
    model = recognizer.model
    config = config_without_record(model).to_dict() | {
        "model_type": MODEL_TYPE,
        "architectures": ["LiteWhisperForConditionalGeneration"],
        "dtype": precision,
        "low_rank_config": [
            {name.removeprefix(PREFIX): rank for name, rank in layer.ranks.items()}
            for layer in recognizer.structure.stacks["encoder"].layers
        ],
    }
    write_json(config, folder / "config.json")
    weights = {key: tensor.to(DTYPES[precision]) for key, tensor in published(model).items()}
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})
    write_for_clients(recognizer, folder)


def published(model: Any) -> dict[str, torch.Tensor]:
    """The weights under LiteASR's names, contiguous, the head that is the table of tokens left out."""
    found = {key: tensor for key, tensor in model.state_dict().items() if key != "proj_out.weight"}
    for key in list(found):
        for part, name in ((".first.weight", ".weight1"), (".second.weight", ".weight2"), (".second.bias", ".bias")):
            if key.endswith(part):
                tensor = found.pop(key)
                found[key.removesuffix(part) + name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor
    return found


def read(folder: Path, precision: str) -> Recognizer:
    """A checkpoint in that layout as a recogniser in float32."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ranks = values.pop("low_rank_config")
    config = WhisperConfig(**{key: value for key, value in values.items() if key != "model_type"})
    weights = {key: tensor.float() for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
    model: Any = WhisperForConditionalGeneration(config)
    stack = architecture_of(config).stack("encoder")
    for index, layer in enumerate(ranks):
        for name in layer:
            linear = name if name.startswith("fc") else PREFIX + name
            path = layer_path(stack, index, linear)
            first, second = weights.pop(f"{path}.weight1"), weights.pop(f"{path}.weight2")
            factor(model, stack, index, linear, first.T, second.T, weights.pop(f"{path}.bias"))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [key for key in missing if not any(part in key for part in (".first.", ".second.", "proj_out."))]
    if lost or unexpected:
        raise SottoError(f"{folder}: the weights do not fit the config: {[*lost, *unexpected][0]}")
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    with only_errors("transformers.configuration_utils"):  # which looks for the model's class here too
        processor = WhisperProcessor.from_pretrained(folder)
    return Recognizer(model.eval(), processor, precision, folder=folder)
