"""The runtimes that Sotto writes for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from sotto.checkpoint import Recognizer
from sotto.configuration import nearest, parse
from sotto.data import Clip
from sotto.errors import SottoError


@dataclass(frozen=True)
class Target:
    """Module and names of the two functions of a runtime, in which precisions it is written, and what it needs.

    The module is imported only when it is asked for: not every user has every runtime.
    """

    module: str
    precisions: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """modules that the extra of the target's name installs"""
    in_torch: bool = False
    """what is written is computed by torch, on any device and in any precision"""
    files: str = "*.safetensors"
    """pattern of the files that hold the model"""
    calibrated: tuple[str, ...] = ()
    """the precisions whose scales are taken from clips"""
    computed_in: Mapping[str, str] = field(default_factory=dict)
    """precision -> a coarser one in which the runtime may compute it"""
    fits_windows: bool = False
    """what is written hears windows of any length, up to the model's own"""

    def write(self, recognizer: Recognizer, folder: Path, precision: str, clips: Sequence[Clip]) -> tuple[str, ...]:
        """Write `recognizer`, in floats on the CPU, to the empty `folder`, without looking at what was written.

        Returns what a user should know of it, a line each. Raises SottoError, or OSError, where that fails.
        """
        heard = (clips,) if precision in self.calibrated else ()
        try:
            return tuple(self.function("write")(recognizer, folder, precision, *heard) or ())
        except (SottoError, OSError):
            raise
        except Exception as error:  # every runtime has kinds of its own
            name = self.module.rpartition(".")[2].removesuffix("_folder").replace("_", "-")
            raise SottoError(f"{name}: cannot be written ({reason_of(error)})") from error

    def open(self, folder: Path, precision: str) -> Recognizer:
        """What was written, as a recogniser that the runtime computes. Raises SottoError where it is damaged."""
        try:
            return self.read(folder, precision)
        except SottoError:
            raise
        except Exception as error:  # every runtime has kinds of its own
            raise damaged(folder, error) from error

    def read(self, folder: Path, precision: str) -> Recognizer:
        """As `open`. Raises what the runtime raises."""
        return cast(Recognizer, self.function("read")(folder, precision))

    def function(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(import_module(self.module), name)
        return found


def damaged(folder: Path, error: Exception) -> SottoError:
    return SottoError(f"{folder}: cannot be opened ({reason_of(error)}); export the model again")


def reason_of(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


CALIBRATED = "int8-calibrated"
FLOATS = ("float32", "float16", "bfloat16")
ONNX = ("onnx", "onnxruntime", "onnxscript")
TARGETS: Mapping[str, Target] = {
    "onnx": Target("sotto.exports.onnx_folder", ("float32", "float16", "int8"), needs=ONNX, files="onnx/*"),
    "openvino": Target(
        "sotto.exports.openvino_folder",
        (*FLOATS, "int8", CALIBRATED),
        needs=("openvino", "openvino_genai", "openvino_tokenizers", "nncf", *ONNX),
        files="openvino_*",
        calibrated=(CALIBRATED,),
        computed_in={"float16": "bfloat16"},
        fits_windows=True,
    ),
    "sherpa-onnx": Target("sotto.exports.sherpa_onnx_folder", ("float32", "int8"), needs=ONNX, files="*.onnx*"),
    "ctranslate2": Target(
        "sotto.exports.ctranslate2_folder",
        ("float32", "float16", "int8"),
        needs=("ctranslate2",),
        files="model.bin",
    ),
    "lite-whisper": Target("sotto.exports.lite_whisper_folder", FLOATS, in_torch=True, fits_windows=True),
    "transformers": Target("sotto.exports.transformers_folder", FLOATS, in_torch=True, fits_windows=True),
}


def target_named(name: str, precision: str) -> Target:
    """Raises SottoError for a runtime that is not known, not in that precision, or not installed."""
    if name not in TARGETS:
        raise SottoError(f"unknown target '{name}'{nearest(name, TARGETS)}")
    found = TARGETS[name]
    if precision not in found.precisions:
        raise SottoError(f"{name} is written in {', '.join(found.precisions)}; found precision '{precision}'")
    for module in found.needs:
        if find_spec(module) is None:
            raise SottoError(f"{name} needs {module}, which is not installed; pip install 'sotto[{name}]'")
    return found


@dataclass(frozen=True)
class Export:
    """An entry of a recipe's `export`: a target, and in which precision."""

    to: str
    precision: str = "float32"

    def __post_init__(self) -> None:
        target_named(self.to, self.precision)

    @property
    def name(self) -> str:
        """Of its folder in a run."""
        return f"{self.to}-{self.precision}"

    @property
    def needs_calibration(self) -> bool:
        return self.precision in TARGETS[self.to].calibrated


def parse_export(entry: object, where: str) -> Export:
    """`onnx`, or `{onnx: {precision: int8}}`. Raises SottoError for anything else."""
    if isinstance(entry, str):
        return Export(entry)
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise SottoError(f"{where}: expected one target with its settings, found {entry!r}")
    ((name, settings),) = entry.items()
    values = {} if settings is None else settings
    if not isinstance(values, Mapping) or "to" in values:
        raise SottoError(f"{where}: expected settings of {name}, such as precision, found {settings!r}")
    return parse(Export, {"to": name, **values}, where)
