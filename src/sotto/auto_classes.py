"""The classes that let transformers open a Sotto checkpoint by itself, once `import sotto` has registered them."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from sotto.structure import check, from_json
from sotto.surgery import apply_structure

MARK = "sotto:"


class SottoWhisperConfig(WhisperConfig):
    """WhisperConfig with a structure record under `sotto`.

    Two things on disk keep plain transformers from opening half of the weights. It does not know the model type, so
    that its Auto classes refuse; and its Whisper classes, which only warn of another type, do not know the marked
    activation.
    """

    model_type = "sotto_whisper"
    sotto: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.activation_function = self.activation_function.removeprefix(MARK)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        if self.sotto:
            values["activation_function"] = MARK + self.activation_function
        return values


class SottoWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """Whisper in the shapes that the record in its config describes."""

    config_class = SottoWhisperConfig

    def __init__(self, config: SottoWhisperConfig) -> None:
        structure = from_json(config.sotto) if config.sotto else None
        if structure is not None:
            check(structure, config)  # refused before anything is allocated
        super().__init__(config)
        # transformers' pipeline asks the instance for this name before it offers timestamps and long-form audio;
        # what is saved is the class's own name.
        setattr(self.config, "model_type", "whisper")  # noqa: B010
        if structure is not None:
            apply_structure(self, structure)


def register() -> None:
    """Make AutoConfig, AutoModelForSpeechSeq2Seq and pipelines know Sotto's classes."""
    AutoConfig.register(SottoWhisperConfig.model_type, SottoWhisperConfig, exist_ok=True)
    AutoModelForSpeechSeq2Seq.register(SottoWhisperConfig, SottoWhisperForConditionalGeneration, exist_ok=True)


def sotto_config(config: Any) -> SottoWhisperConfig:
    """A Whisper config of either class as Sotto's."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    return SottoWhisperConfig(**values, architectures=[SottoWhisperForConditionalGeneration.__name__])


def plain_config(config: Any, sizes: dict[str, int]) -> WhisperConfig:
    """A Whisper config of either class as transformers' own, with `sizes` changed."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    values["activation_function"] = config.activation_function
    return WhisperConfig(**(values | sizes), architectures=[WhisperForConditionalGeneration.__name__])
