"""What a model costs on paper: parameters, floating point operations, bytes on disk.

Nothing here is a measurement of speed: `sotto.metrics.speed` takes those.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sotto.errors import SottoError
from sotto.quantized_layers import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has; `total` is `encoder` + `decoder`, `nonzero` those that are not 0."""

    total: int
    nonzero: int
    encoder: int
    decoder: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of encoder and decoder, and of each module that runs."""

    encoder: int
    decoder: int
    by_module: dict[str, int]


def count_parameters(model: PreTrainedModel) -> Parameters:
    """Count the parameters of a model on any device.

    A tensor used in several places (Whisper's embedding and output head) is counted once. Whisper's fixed
    table of encoder positions is left out, since it is computed and not learned: whisper-large-v3 has an
    encoder of 635 million, as published, where `model.num_parameters()` would count 637. The decoder is all
    that is outside of the encoder, its learned positions and the output head included; a CTC model is all
    encoder. On the meta device there are no values, and every parameter passes for non-zero.
    """
    encoder = _encoder(model)
    fixed = {id(p) for name, p in encoder.named_parameters() if name.startswith("embed_positions.")}
    counted = {key: weights for key, weights in weights_of(model).items() if key not in fixed}
    in_encoder = {id(part) for part in (*encoder.parameters(), *encoder.modules())}
    total = sum(weights.numel() for weights in counted.values())
    encoder_total = sum(weights.numel() for key, weights in counted.items() if key in in_encoder)
    nonzero = sum(w.numel() if w.is_meta else int(torch.count_nonzero(w)) for w in counted.values())
    return Parameters(total, nonzero, encoder_total, total - encoder_total)


def weights_of(module: nn.Module) -> dict[int, Tensor]:
    """All parameters by identity, and the codes of quantized weights by that of their module: they are no parameters.

    Scales are not counted: they say how the weights are written down.
    """
    found: dict[int, Tensor] = {id(parameter): parameter for parameter in module.parameters()}
    for part in module.modules():
        if isinstance(part, QuantizedWeight):
            found[id(part)] = part.codes
    return found


def ideal_bytes(module: nn.Module, itemsize: int) -> int:
    """Bytes of the weights where every one took its bits and nothing else: scales and floating ones `itemsize` each."""
    quantized = [part for part in module.modules() if isinstance(part, QuantizedWeight)]
    codes = sum(part.codes.numel() * part.bits for part in quantized) // 8
    scales = sum(part.scale.numel() for part in quantized)
    return codes + (scales + sum(parameter.numel() for parameter in module.parameters())) * itemsize


def encoder_flops(model: PreTrainedModel, frames: int | None = None) -> int:
    """FLOPs of the encoder over one window; for a CTC model, of the whole model.

    A multiply-add is two FLOPs. Counted are the matrix products, convolutions and both products of attention
    (scores, and scores times values); not counted are biases, norms, softmax and activations. The model may
    hold modules of any kind and is not touched: a copy without values is run on the meta device.

    `frames` is the length of the window: spectrogram frames, or samples where the model takes raw audio. Left
    out, it is Whisper's own window; elsewhere in Sotto, CTC models are counted over 10 s of audio. Raises
    `SottoError` for a window the model cannot take, and where a model without a window of its own is given none.
    """
    copied = _valueless_copy(model)
    inputs = _window(copied, frames)
    return _flops(_encoder(copied), inputs)[""]


def decoder_flops(model: PreTrainedModel, tokens: int, encoder_positions: int | None = None) -> int:
    """FLOPs of the decoder and its output head over `tokens` tokens that attend to one window.

    Counted as in `encoder_flops`, in one pass over all the tokens with full self-attention scores. Decoding
    token by token with a cache does the same products but for the half of those scores that the causal mask
    hides, far below one per cent. `encoder_positions` is the length of the encoder's output, Whisper's own
    when left out. A CTC model has no decoder: 0. Raises `SottoError` for more tokens than the model takes.
    """
    if not model.config.is_encoder_decoder:
        return 0
    copied = _valueless_copy(model)
    positions = copied.config.max_source_positions if encoder_positions is None else encoder_positions
    if positions < 1:
        raise SottoError(f"encoder_positions: {positions} is no length; give 1 or more")
    states = torch.empty(1, positions, copied.config.hidden_size, device="meta")
    return _flops(copied, {"encoder_outputs": (states,), **_prefix(copied, tokens)})[""]


def flops_by_module(model: PreTrainedModel, frames: int | None = None, tokens: int = 32) -> dict[str, int]:
    """FLOPs of each module that runs, over one window and `tokens` decoded tokens.

    Keys are the names of `model.named_modules()`, with "" for the whole model; a module includes those inside
    it. Counted as in `encoder_flops` and `decoder_flops`, with the same errors.
    """
    copied = _valueless_copy(model)
    inputs = _window(copied, frames)
    if copied.config.is_encoder_decoder:
        inputs |= _prefix(copied, tokens)
    return _flops(copied, inputs)


def count_flops(model: PreTrainedModel, frames: int | None, tokens: int) -> Flops:
    """What `encoder_flops`, `decoder_flops` and `flops_by_module` give, counted in one run, with the same errors."""
    by_module, encoder = flops_by_module(model, frames, tokens), _encoder(model)
    name = next(name for name, module in model.named_modules() if module is encoder)
    return Flops(by_module[name], by_module[""] - by_module[name], by_module)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the weights of a saved model. Raises `SottoError` where there are none.

    Those that transformers would load: in one file or in the shards of an index, in safetensors or else in torch's
    own format. A folder of the hub may hold the same weights several times.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return (folder / name).stat().st_size
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sum((folder / shard).stat().st_size for shard in shards)
    raise SottoError(f"{folder}: no weights in it; give the folder of a saved model")


def _encoder(model: PreTrainedModel) -> nn.Module:
    encoder: nn.Module = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder


def _valueless_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the meta device, dense and floating, ready to run; it shares nothing with `model`."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    copied = copy.deepcopy(model, {id(tensor): _valueless(tensor) for tensor in tensors})
    for module in copied.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):  # kept from the last run, such as rotary positions
                setattr(module, name, _valueless(value))
        # Hooks are copied by reference: one that gathers statistics must not see this run.
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.training = False
    return copied


def _valueless(tensor: Tensor) -> Tensor:
    # One floating type everywhere, so that a model of mixed precision meets no mismatch with its input.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    shape = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape


def _window(copied: PreTrainedModel, frames: int | None) -> Inputs:
    if copied.config.is_encoder_decoder:
        return _whisper_window(copied, frames)
    if frames is None or frames < 1:
        raise SottoError(f"frames: {type(copied).__name__} has no fixed window; give the length to count over")
    if copied.main_input_name == "input_values":
        return {"input_values": torch.empty(1, frames, device="meta")}
    config = getattr(copied.config, "encoder_config", copied.config)
    if not hasattr(config, "num_mel_bins"):
        raise SottoError(f"{type(copied).__name__}: takes neither raw audio nor mel frames; cannot count its FLOPs")
    return {"input_features": torch.empty(1, frames, config.num_mel_bins, device="meta")}


def _whisper_window(copied: PreTrainedModel, frames: int | None) -> Inputs:
    """Features (1, mels, frames); the copy's positions are changed to fit, since Whisper insists on them."""
    encoder: Any = copied.get_encoder()
    stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    frames = encoder.config.max_source_positions * stride if frames is None else frames
    if frames < 1 or frames % stride:
        raise SottoError(f"frames: {frames} is no window of Whisper; give a positive multiple of {stride}")
    positions = frames // stride
    encoder.config.max_source_positions = positions
    encoder.embed_positions = nn.Embedding(positions, encoder.config.d_model, device="meta")
    return {"input_features": torch.empty(1, encoder.config.num_mel_bins, frames, device="meta")}


def _prefix(copied: PreTrainedModel, tokens: int) -> Inputs:
    longest = copied.config.max_target_positions
    if not 1 <= tokens <= longest:
        raise SottoError(f"tokens: {tokens} is out of range; this model decodes 1 to {longest}")
    return {"decoder_input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta")}


def _flops(root: nn.Module, inputs: Inputs) -> dict[str, int]:
    """FLOPs by module name of one run of `root`, a module on the meta device."""
    counts: defaultdict[str, int] = defaultdict(int)
    running: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._int_mm: _int_mm_flops})

    def entered(*_: object) -> None:
        running.append(counter.get_total_flops())

    def left(name: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            counts[name] += counter.get_total_flops() - running.pop()

        return add

    for name, module in root.named_modules():
        module.register_forward_pre_hook(entered)
        module.register_forward_hook(left(name))
    # A fused attention kernel may have no formula in torch and count as nothing (the CPU's has none); the
    # plain one is made of matrix products, which are counted whatever the head dimensions.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        root(**inputs)
    return dict(counts)


def _int_mm_flops(left: tuple[int, int], right: tuple[int, int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]
