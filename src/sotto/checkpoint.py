"""A recogniser on disk: load, save, and the proof that what was saved is what was in memory."""

from __future__ import annotations

import copy
import itertools
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.utils import logging
from transformers.utils.hub import cached_file

from sotto.architectures import Architecture, architecture_of
from sotto.auto_classes import classes_of, plain_config, register, sotto_config
from sotto.configuration import nearest
from sotto.errors import SottoError
from sotto.families import Family, evaluating, family_of
from sotto.layers import packed_bytes
from sotto.quantized_layers import QuantizedWeight, floating_products
from sotto.structure import LayerStructure, Structure, check, from_json
from sotto.surgery import get_any_linear, linears_of, pack_linear, structure_of, unpack_linear

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNHEARD = ("wav2vec2_conformer.masked_spec_embed",)  # weights for training alone, which a checkpoint may lack
EXPORT_RECORD = "sotto_export.json"  # in a folder that was exported
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}  # relative, of the largest output


@dataclass
class Recognizer:
    """A model with the processor that belongs to it."""

    model: Any
    processor: Any
    stored_dtype: str | None = None
    """precision of the weights in the checkpoint it was loaded from; saved in the same unless asked otherwise"""
    language: str | None = None
    """what is spoken, where that is known: for the transcripts that methods have the model write"""
    folder: Path | None = None
    """the checkpoint that it was loaded from, for one of the hub its copy on this machine"""
    packed: bool = False
    """whether zeros took a bit each in that checkpoint; saved in the same way unless asked otherwise"""

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.model.config)

    @property
    def structure(self) -> Structure:
        return structure_of(self.model)

    @property
    def family(self) -> Family:
        """What it does in the way of its family."""
        return family_of(self.model.config)(self.model, self.processor)

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.family.sampling_rate

    @property
    def window_seconds(self) -> float:
        """Length of audio over which FLOPs and latency are given: what Whisper's encoder sees, 10 s for a CTC model."""
        return self.family.window_seconds

    def copy(self) -> Recognizer:
        """One with weights of its own, that stays as it is while this one is changed."""
        return replace(self, model=copy.deepcopy(self.model))

    def save(
        self, folder: str | Path, dtype: str | None = None, card: str | None = None, packed: bool | None = None
    ) -> Path:
        """Write a checkpoint to `folder`; see `save`."""
        return save(self, Path(folder), dtype=dtype, card=card, packed=packed)


def load(name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Recognizer:
    """Open a checkpoint: a folder, or the id of one on the hub.

    Raises SottoError where there is none, it is of another family, its record does not fit, or its weights are broken.
    """
    register()
    config = load_config(name)
    with readable(name), no_loading_bar():
        loaded: Any = classes_of(config).model.from_pretrained(
            name, config=sotto_config(config), dtype=dtype or torch.float32, output_loading_info=True
        )
        if (Path(name) / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(name)  # a damaged one was passed over in silence
    model, info = loaded
    lost = [key for key in sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]) if key not in UNHEARD]
    if lost:
        raise SottoError(f"{name}: the weights do not fit the config: {lost[0]} and {len(lost) - 1} more; save it anew")
    with readable(name):
        processor = family_of(config).load_processor(name)
    packed = unpack_linears(model)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype_on_disk = str(config.dtype or torch.float32).removeprefix("torch.")
    return Recognizer(model.eval(), processor, dtype_on_disk, folder=local_folder(name), packed=packed)


def local_folder(name: str | Path) -> Path:
    """Where the files of a checkpoint that was just opened lie: its folder, or the hub's cache."""
    return Path(name) if Path(name).is_dir() else Path(str(cached_file(name, "config.json"))).parent


def load_config(name: str | Path) -> Any:
    """The config of a checkpoint, refused before anything is allocated."""
    if not Path(name).exists() and not HUB_ID.fullmatch(str(name)):
        raise SottoError(f"{name}: no such folder, and no id of the hub (owner/name); check the path")
    with readable(name):
        config = AutoConfig.from_pretrained(name)
        architecture_of(config)
        if quantized := getattr(config, "quantization_config", None):
            library = quantized.get("quant_method", "another library")
            raise SottoError(
                f"its weights are quantized by {library}; name the floating checkpoint that it was made of"
            )
        if getattr(config, "sotto", None):
            check(from_json(config.sotto), config)
    return config


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Turn what transformers and safetensors say of an unreadable checkpoint into one line."""
    try:
        yield
    except SottoError as error:
        raise SottoError(f"{name}: {error}") from error
    except SafetensorError as error:
        raise SottoError(f"{name}: the weights are damaged ({error}); fetch or save the checkpoint again") from error
    except Exception as error:  # tokenizers raises nothing narrower, and a damaged JSON file gives any of them
        if (Path(name) / EXPORT_RECORD).is_file():
            reason = "is an export for another runtime; name the checkpoint that it was made of"
        elif not Path(name).exists():
            reason = "no such folder, and no checkpoint of that id could be opened from the hub; check the path"
        elif "ignore_mismatched_sizes" in str(error):
            reason = "the weights do not fit the config: their sizes differ; take both from the same checkpoint"
        else:
            reason = f"not a checkpoint that can be opened: {' '.join(str(error).split())[:300]}"
        raise SottoError(f"{name}: {reason}") from error


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Without transformers' progress bar for weights, which are read in seconds and more than once."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def save(
    recognizer: Recognizer,
    folder: Path,
    *,
    dtype: str | None = None,
    card: str | None = None,
    packed: bool | None = None,
) -> Path:
    """Write model, processor, generation config and model card to `folder`, and verify what was written.

    A model whose shapes plain transformers can express is written as a plain checkpoint of its family. Everything goes
    to a temporary folder beside `folder`, is reloaded and compared with the model in memory, and only then takes its
    place; on any failure nothing is left. `packed`: zeros take a bit each where that makes the weights of a linear
    smaller, in a checkpoint of Sotto's own. Raises SottoError where `folder` holds something that is no checkpoint,
    where the disk is full, or where the reloaded model does not compute the same.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SottoError(f"unknown dtype '{dtype}'{nearest(dtype, DTYPES)}")
    if folder.exists() and not replaceable(folder):
        raise SottoError(f"{folder} exists and is no checkpoint; name a new folder")
    target = folder.resolve()  # "." has no name, and a link is to be kept
    try:
        with partial_folder(target) as partial:
            wanted = wanted_dtype(recognizer, dtype)
            packs = recognizer.packed if packed is None else packed
            write(packed_copy(recognizer, wanted) if packs else recognizer, partial, wanted, card)
            verify(recognizer, partial)
            replace_folder(partial, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SottoError(f"{folder}: cannot be written ({reason}); nothing was left there") from error
    return folder


def replaceable(folder: Path) -> bool:
    """Whether nothing but a checkpoint is lost where `folder` gives way to a new one."""
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors")))


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that is gone at the end, unless it took the place of `target`; so are new parents."""
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        partial.chmod(0o755)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # of one that is not empty
            for parent in made:
                parent.rmdir()


def wanted_dtype(recognizer: Recognizer, dtype: str | None) -> torch.dtype:
    """The precision to save in: as asked, else as loaded, else as in memory. Raises SottoError on an unknown name."""
    name = dtype or recognizer.stored_dtype or str(recognizer.model.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SottoError(f"unknown dtype '{name}'{nearest(name, DTYPES)}")
    return DTYPES[name]


def write(recognizer: Recognizer, folder: Path, dtype: torch.dtype, card: str | None) -> None:
    model = recognizer.model
    config = config_on_disk(model)
    config.dtype = dtype
    config.save_pretrained(folder)
    write_beside(recognizer, folder)
    tied = set(model._tied_weights_keys or ()) if getattr(config, "tie_word_embeddings", False) else set()
    state = {key: value for key, value in model.state_dict().items() if key not in tied}
    scales = {f"{name}.scale" for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    kept = {key: torch.float16 if key in scales else dtype for key in state}  # which holds scales without a loss
    state = {key: value.to(kept[key]) if value.is_floating_point() else value for key, value in state.items()}
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
    for weights in folder.glob("*.safetensors"):  # safetensors 0.8 lets nobody else read them
        weights.chmod(stat.S_IMODE((folder / "config.json").stat().st_mode))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_beside(recognizer: Recognizer, folder: Path) -> None:
    """What belongs beside the weights, whatever runtime they are for: decoding settings, tokenizer, features.

    Raises SottoError for settings that transformers refuses, OSError where the disk is full.
    """
    generation = recognizer.family.generation_config()
    if generation is not None:
        try:
            generation.save_pretrained(folder)
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]
            raise SottoError(f"{reason}; correct generation_config.json of the base") from error
    try:
        recognizer.processor.save_pretrained(folder)
    except Exception as error:  # tokenizers raises nothing narrower when the disk is full
        raise OSError(str(error)) from error


def packed_copy(recognizer: Recognizer, dtype: torch.dtype) -> Recognizer:
    """One that shares its weights with `recognizer`, but for linears that are smaller when packed in that precision."""
    tensors = itertools.chain(recognizer.model.parameters(), recognizer.model.buffers())
    model = copy.deepcopy(recognizer.model, {id(tensor): tensor for tensor in tensors})
    for stack, index, name in linears_of(model):
        linear = get_any_linear(model, stack, index, name)
        if type(linear) is nn.Linear:
            zeros = int((linear.weight == 0).sum())
            if zeros * dtype.itemsize > 1.1 * packed_bytes(linear.weight.numel()):
                pack_linear(model, stack, index, name)
    return replace(recognizer, model=model)


def unpack_linears(model: Any) -> bool:
    """Make plain linears of all that are packed; whether there were any."""
    packed = [
        (stack, index, name)
        for stack, index, name in linears_of(model)
        if name in structure_of(model).layer(stack.name, index).nonzeros
    ]
    for place in packed:
        unpack_linear(model, *place)
    return bool(packed)


def config_on_disk(model: Any) -> Any:
    """transformers' own config where it can express the shapes, else Sotto's with the record."""
    sizes = plain_sizes(structure_of(model), architecture_of(model.config), model.config)
    return sotto_config(model.config) if sizes is None else plain_config(model.config, sizes)


def plain_sizes(structure: Structure, architecture: Architecture, config: Any) -> dict[str, int] | None:
    """The config entries that express the structure, or None where they cannot.

    Layers can be fewer, and feed-forward networks of a stack uniformly narrower; nothing else.
    """
    sizes: dict[str, int] = {}
    if structure.embedding is not None:
        return None
    for stack in architecture.stacks:
        dimensions = stack.dimensions(config)
        layers = structure.stacks[stack.name].layers
        if any(replace(layer, base_layer=0, ffn_widths={}) != LayerStructure(0) for layer in layers):
            return None
        widths = {layer.ffn_widths.get(ffn.name, dimensions.ffn) for layer in layers for ffn in stack.feed_forwards}
        if len(widths) != 1:
            return None
        sizes[stack.ffn] = widths.pop()
    return sizes


def verify(recognizer: Recognizer, folder: Path) -> None:
    """Raises SottoError unless the checkpoint in `folder` computes what the model in memory computes."""
    saved = load(folder, device=recognizer.model.device)
    dtype = DTYPES[str(load_config(folder).dtype).removeprefix("torch.")]
    expected, found = (probe(each) for each in (recognizer, saved))
    difference = (expected - found).abs().max() / expected.abs().max().clamp(min=1e-6)
    if not difference <= TOLERANCE[dtype]:
        raise SottoError(
            f"the saved checkpoint differs from the model in memory by {difference:.2g} of its largest output; "
            "it was removed"
        )


@torch.no_grad()
def probe(recognizer: Recognizer) -> torch.Tensor:
    """Outputs (float32) for fixed noise: what two equal models agree on."""
    with evaluating(recognizer.model), floating_products(recognizer.model):
        return recognizer.family.probe().float()


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is; a checkpoint that was there goes only once the new one is in place.

    Where `folder` is empty, a mount, or the one that the user is in, what is in it is replaced and it stays: a mount
    cannot be moved, and a user should not be left in a folder that is no more.
    """
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if not any(folder.iterdir()) or folder.is_mount() or Path.cwd() == folder:
        replace_contents(new, folder, old)
    else:
        swap(new, folder, old)
    shutil.rmtree(old, ignore_errors=True)


def swap(new: Path, folder: Path, old: Path) -> None:
    try:
        folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def replace_contents(new: Path, folder: Path, old: Path) -> None:
    """Move what is in `folder` to `old`, and what is in `new` to `folder`; where that fails, all is put back."""
    come: list[Path] = []
    old.mkdir()
    try:
        for path in sorted(folder.iterdir()):
            shutil.move(path, old / path.name)
        for path in sorted(new.iterdir()):
            come.append(folder / path.name)
            shutil.move(path, come[-1])
    except BaseException:
        for path in come:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in sorted(old.iterdir()):
            if not (folder / path.name).exists():
                shutil.move(path, folder / path.name)
        old.rmdir()
        raise
