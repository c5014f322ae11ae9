"""The classes that let transformers open a Sotto checkpoint by itself, once `import sotto` has registered them.

Two things on disk keep plain transformers from opening half of the weights. It does not know the model type, so that
its Auto classes refuse; and its own model classes, which only warn of another type, do not know the marked activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    ParakeetCTCConfig,
    ParakeetForCTC,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from sotto.architectures import architecture_of, get_setting, set_setting
from sotto.structure import Structure, check, from_json
from sotto.surgery import apply_structure

MARK = "sotto:"


class SottoWhisperConfig(WhisperConfig):
    """WhisperConfig with a structure record under `sotto`."""

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
        structure = checked_structure(config)
        super().__init__(config)
        # transformers' pipeline asks the instance for this name before it offers timestamps and long-form audio;
        # what is saved is the class's own name.
        setattr(self.config, "model_type", "whisper")  # noqa: B010
        if structure is not None:
            apply_structure(self, structure)


class SottoParakeetCTCConfig(ParakeetCTCConfig):
    """ParakeetCTCConfig with a structure record under `sotto`."""

    model_type = "sotto_parakeet_ctc"
    sotto: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        encoder: Any = self.encoder_config
        encoder.hidden_act = encoder.hidden_act.removeprefix(MARK)

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        if self.sotto:
            values["encoder_config"]["hidden_act"] = MARK + values["encoder_config"]["hidden_act"]
        return values


class SottoParakeetForCTC(ParakeetForCTC):
    """Parakeet-CTC in the shapes that the record in its config describes."""

    config_class = SottoParakeetCTCConfig

    def __init__(self, config: SottoParakeetCTCConfig) -> None:
        structure = checked_structure(config)
        super().__init__(config)
        if structure is not None:
            apply_structure(self, structure)


class SottoWav2Vec2ConformerConfig(Wav2Vec2ConformerConfig):
    """Wav2Vec2ConformerConfig with a structure record under `sotto`."""

    model_type = "sotto_wav2vec2_conformer"
    sotto: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_act = self.hidden_act.removeprefix(MARK)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        if self.sotto:
            values["hidden_act"] = MARK + self.hidden_act
        return values


class SottoWav2Vec2ConformerForCTC(Wav2Vec2ConformerForCTC):
    """Wav2Vec2-Conformer with a CTC head in the shapes that the record in its config describes."""

    config_class = SottoWav2Vec2ConformerConfig

    def __init__(self, config: SottoWav2Vec2ConformerConfig) -> None:
        structure = checked_structure(config)
        super().__init__(config)
        if structure is not None:
            apply_structure(self, structure)


def checked_structure(config: Any) -> Structure | None:
    """The record in a config, refused before anything is allocated where it does not fit; None where there is none."""
    structure = from_json(config.sotto) if config.sotto else None
    if structure is not None:
        check(structure, config)
    return structure


@dataclass(frozen=True)
class Classes:
    """The classes of one architecture: Sotto's own, and those of plain transformers."""

    config: type[Any]
    model: type[Any]
    plain_config: type[Any]
    plain_model: type[Any]
    auto_model: type[Any]


CLASSES = (
    Classes(
        SottoWhisperConfig,
        SottoWhisperForConditionalGeneration,
        WhisperConfig,
        WhisperForConditionalGeneration,
        AutoModelForSpeechSeq2Seq,
    ),
    Classes(SottoParakeetCTCConfig, SottoParakeetForCTC, ParakeetCTCConfig, ParakeetForCTC, AutoModelForCTC),
    Classes(
        SottoWav2Vec2ConformerConfig,
        SottoWav2Vec2ConformerForCTC,
        Wav2Vec2ConformerConfig,
        Wav2Vec2ConformerForCTC,
        AutoModelForCTC,
    ),
)


def classes_of(config: Any) -> Classes:
    """The classes for a config of either kind. Raises SottoError on a family that Sotto does not know."""
    names = architecture_of(config).model_types
    return next(classes for classes in CLASSES if classes.config.model_type in names)


def register() -> None:
    """Make AutoConfig, the Auto models and pipelines know Sotto's classes."""
    for classes in CLASSES:
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        classes.auto_model.register(classes.config, classes.model, exist_ok=True)


def sotto_config(config: Any) -> Any:
    """A config of either kind as Sotto's."""
    classes = classes_of(config)
    return classes.config(**values_of(config), architectures=[classes.model.__name__])


def plain_config(config: Any, sizes: dict[str, int]) -> Any:
    """A config of either kind as transformers' own, with `sizes` (paths of settings) changed."""
    classes = classes_of(config)
    plain = classes.plain_config(**values_of(config), architectures=[classes.plain_model.__name__])
    activation = architecture_of(config).activation
    set_setting(plain, activation, get_setting(config, activation))  # without the mark
    for name, size in sizes.items():
        set_setting(plain, name, size)
    return plain


def values_of(config: Any) -> dict[str, Any]:
    """All entries but those that tell the class."""
    return {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
