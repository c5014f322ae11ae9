"""Write synthetic Malayalam speech by espeak-ng's voice in many variants, as an audio folder for training.

    python benchmarks/synthetic_malayalam.py CORPUS/msc_malayalam/train OUTPUT --clips 5000 --seed 0

The sentences are the transcripts of the audio folder, and the beginnings of some with the ends of others, so that more
words follow one another than anybody read. The audio is kept, repeated and extended as that of `synthetic.py` is.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from sotto.errors import SottoError
from synthetic import PITCHES, SPEEDS, VARIANTS, Reading, install_packages, make_folder

LONGEST = 8  # words of a sentence; those who read Malayalam took a second for one


def read_texts(folder: Path) -> list[str]:
    """The distinct transcripts of an audio folder, without punctuation, in the order in which they come.

    Raises SottoError where there are none that are short enough.
    """
    metadata = folder / "metadata.csv"
    if not metadata.is_file():
        raise SottoError(f"no {metadata}; give the audio folder of msc_malayalam's training split")
    with metadata.open(encoding="utf-8", newline="") as file:
        texts = dict.fromkeys(plain(row.get("text", "")) for row in csv.DictReader(file))
    short = [text for text in texts if 1 <= len(text.split()) <= LONGEST]
    if not short:
        raise SottoError(f"no text of 1 to {LONGEST} words in {metadata}; it should have the columns file_name,text")
    return short


def plain(text: str) -> str:
    """Words apart by one space; the marks that are kept are those of the script, joiners among them."""
    return " ".join("".join(mark if mark.isalnum() or is_malayalam(mark) else " " for mark in text).split())


def is_malayalam(mark: str) -> bool:
    return "\u0d00" <= mark <= "\u0d7f" or mark in "\u200c\u200d"


def sentences(texts: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """A text, or the beginning of one with the end of another, in turn and without end."""
    while True:
        yield texts[int(rng.integers(len(texts)))]
        head, tail = (texts[int(rng.integers(len(texts)))].split() for _ in range(2))
        yield " ".join([*head[: (len(head) + 1) // 2], *tail[len(tail) // 2 :]])


def plan(texts: Sequence[str], clips: int, seed: int) -> list[Reading]:
    """The readings, each once; those of a larger number begin with those of a smaller one.

    Raises SottoError where the texts do not give as many.
    """
    rng = np.random.default_rng(seed)
    drawn = (draw_reading(text, rng) for text in sentences(texts, rng))
    readings = list(islice(dict.fromkeys(islice(drawn, 2 * clips)), clips))
    if len(readings) < clips:
        raise SottoError(f"{len(texts)} texts give only {len(readings)} readings; ask for fewer")
    return readings


def draw_reading(text: str, rng: np.random.Generator) -> Reading:
    voice = f"ml+{VARIANTS[rng.integers(len(VARIANTS))]}"
    speed, pitch = SPEEDS[rng.integers(len(SPEEDS))], PITCHES[rng.integers(len(PITCHES))]
    return Reading(text, "espeak-ng", voice, speed, pitch, language="ml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="audio folder whose transcripts give the sentences")
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="clips made at once")
    arguments = parser.parse_args()
    try:
        readings = plan(read_texts(arguments.source), arguments.clips, arguments.seed)
        if shutil.which("espeak-ng") is None:
            install_packages(["espeak-ng"])
        make_folder(arguments.output, readings, arguments.jobs)
    except SottoError as error:
        raise SystemExit(f"synthetic_malayalam.py: {error}") from error


if __name__ == "__main__":
    main()
