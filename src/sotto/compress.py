"""Compression from Python: a recogniser and methods in, a smaller recogniser out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.distribution import scratch_folder
from sotto.errors import SottoError
from sotto.measurement import evaluate
from sotto.methods import StepContext, methods
from sotto.text import get_normalizer

Data = str | Path | DataConfig


def compress(
    recognizer: Recognizer | str | Path,
    *steps: Any,
    calibration: Data | None = None,
    train: Data | Sequence[Data] | None = None,
    validation: Data | None = None,
    language: str | None = None,
    normalizer: str | None = None,
    seed: int = 0,
) -> Recognizer:
    """Apply methods one after the other to a copy of `recognizer`, and return the copy.

    `steps` are method configurations such as `sotto.LowRank(attention=0.99, mlp=0.999)`; the data roles are folders,
    hub ids or DataConfigs, `train` also a list of them. Where several processes train together (`accelerate launch`, on
    one machine), all of them call this with the same arguments, and each gets the same model. Raises SottoError on what
    is no method, and where a method lacks the data it needs.
    """
    for step in steps:
        if type(step) not in methods.handlers:
            raise SottoError(f"{step!r} is no method; known: {', '.join(methods.types)}")
    model = load(recognizer) if isinstance(recognizer, str | Path) else recognizer.copy()
    model.language = language
    with scratch_folder() as folder:
        context = StepContext(
            folder=folder,
            calibration=opened(calibration, model),
            train=tuple(open_one(each, model) for each in listed(train)),
            validation=opened(validation, model),
            language=language,
            normalizer=get_normalizer(normalizer, language),
            seed=seed,
        )
        if context.validation is not None:
            context = replace(context, validation_wer=lambda tried: validation_wer(tried, context))
        for index, step in enumerate(steps, start=1):
            methods.handler(step)(model, step, replace(context, folder=folder / str(index)))
    return model


def validation_wer(recognizer: Recognizer, context: StepContext) -> float:
    assert context.validation is not None
    return evaluate(recognizer, context.validation, Decoding(language=context.language), context.normalizer).wer


def opened(data: Data | None, recognizer: Recognizer) -> ClipSource | None:
    return None if data is None else open_one(data, recognizer)


def open_one(data: Data, recognizer: Recognizer) -> ClipSource:
    config = data if isinstance(data, DataConfig) else DataConfig(str(data))
    return open_data(config, sampling_rate=recognizer.sampling_rate)


def listed(data: Data | Sequence[Data] | None) -> Sequence[Data]:
    if data is None:
        return ()
    return (data,) if isinstance(data, str | Path | DataConfig) else data
