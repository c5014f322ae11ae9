"""Made-up recordings for tests: each word is a square wave of its own pitch, so that audio shows what was said."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from sotto.data import Clip, ClipSource, DataConfig, open_data
from sotto.new_models.whisper import NewWhisper, new_model, new_processor

RATE = 16_000
PITCHES = {"one": 300, "two": 700, "three": 1500, "four": 3100}
LOUDNESS = 0.5


def square_wave(pitch: float, seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    """Loud from the first sample to the last: where it starts and ends can be told exactly."""
    times = np.arange(round(seconds * rate)) / rate
    wave = np.where(np.cos(2 * np.pi * pitch * times + 0.1) >= 0, LOUDNESS, -LOUDNESS)
    return wave.astype(np.float32)


def pitch_of(audio: NDArray[np.float32], rate: int = RATE) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(np.argmax(spectrum) * rate / len(audio))


def nearest_word(audio: NDArray[np.float32]) -> str:
    pitch = pitch_of(audio)
    return min(PITCHES, key=lambda word: abs(PITCHES[word] - pitch))


def clip(word: str, seconds: float, speaker: str = "a") -> Clip:
    return Clip(f"{speaker}-{word}", square_wave(PITCHES[word], seconds), RATE, word, speaker)


def write_folder(folder: Path, words: Sequence[str], seconds: Sequence[float], columns: bool = True) -> Path:
    """An audio folder of one clip a word; `columns` leaves out the lengths where False."""
    folder.mkdir(parents=True)
    rows = [("file_name", "text", "speaker", *(["seconds"] if columns else []))]
    for number, (word, length) in enumerate(zip(words, seconds, strict=True)):
        wave = square_wave(PITCHES[word], length) * (1 - 0.05 * number)  # no two files alike
        soundfile.write(folder / f"{number}.wav", wave, RATE)
        rows.append((f"{number}.wav", word, "a", *([f"{length:.2f}"] if columns else [])))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def open_folder(folder: Path) -> ClipSource:
    return open_data(DataConfig(path=str(folder)), sampling_rate=RATE)


def tiny_whisper(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(model, processor) of a Whisper with one layer a stack and a window of one second."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2}
    frame = {"vocabulary": 300, "window_seconds": 1.0, "maximum_tokens": 8}
    config = NewWhisper(**(sizes | frame | changes))
    processor = new_processor(config, PITCHES)
    return new_model(config, processor.tokenizer, seed), processor


def forbid_special_tokens(model: Any, processor: Any) -> None:
    """As published checkpoints do: what clients make of special tokens that random weights write differs."""
    end = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.generation_config.suppress_tokens = list(range(end + 1, model.config.vocab_size))
