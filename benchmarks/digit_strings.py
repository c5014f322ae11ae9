"""Write strings of connected digits, spliced from single recordings, as an audio folder.

    python benchmarks/digit_strings.py RECORDINGS OUTPUT --strings 500 --seed 1

RECORDINGS is an audio folder of single digits (free-spoken-digit-dataset, CC BY-SA 4.0). Pauses, gain and noise are
drawn as in the demo's training recipe. The demo's own clips were made with:

    python benchmarks/digit_strings.py CORPUS/fsdd/test src/sotto/demo/clips/test --strings 60 --seed 1
    python benchmarks/digit_strings.py CORPUS/fsdd/train src/sotto/demo/clips/calibration --strings 24 --seed 2
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

from sotto.augmentation import Augmentation, Splicer, Splicing, augment
from sotto.data import DataConfig, open_data

RATE = 16_000
WINDOW_SECONDS = 6.0
SPLICING = Splicing(minimum=1, maximum=7, pause_seconds=(0.0, 0.4), lead_seconds=(0.0, 0.6))
AUGMENTATION = Augmentation(gain_db=8, noise_snr_db=(10, 35))


def write_strings(recordings: Path, folder: Path, strings: int, seed: int) -> None:
    """`strings` Opus files with a metadata.csv in `folder`."""
    splicer = Splicer(list(open_data(DataConfig(str(recordings)), sampling_rate=RATE)), SPLICING, WINDOW_SECONDS)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file_name", "text", "speaker", "language", "seconds"])
        for index in range(strings):
            rng = np.random.default_rng([seed, index])
            string = splicer.draw(rng)
            audio, _ = augment(string.audio, AUGMENTATION, RATE, rng)
            name = f"audio/{index:04d}.opus"
            soundfile.write(folder / name, audio, RATE, format="OGG", subtype="OPUS")
            rows.writerow([name, string.text, string.speaker, "en", f"{len(audio) / RATE:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--strings", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_strings(arguments.recordings, arguments.output, arguments.strings, arguments.seed)


if __name__ == "__main__":
    main()
