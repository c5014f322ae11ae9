"""Write clean synthetic speech by voices of espeak-ng, flite and festival, as audio folders for training and test.

    python benchmarks/synthetic.py CORPUS OUTPUT --train 6000 --validation 150 --test 300 --seed 0

CORPUS holds audio folders NAME/SPLIT; their English transcripts give the sentences (`synthetic_text.py`).
OUTPUT/test, OUTPUT/validation and OUTPUT/train are made in this order. A clip that is there is not made again, and
metadata.csv always lists what is there: a run may be broken off, repeated, or asked for more, and the folders can be
used meanwhile. The same seed gives the same texts, voices and rates, and a larger set begins with the smaller one. No
voice is in two roles.

On Debian, as root, missing programs and voices are installed with apt-get.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import soxr

from sotto.data.audio import header_seconds
from sotto.errors import SottoError
from synthetic_text import ROLES, Source, make_source, read_transcripts, sentences

RATE = 16_000
PEAK = 0.7
CHUNK = 100  # clips between two writings of metadata.csv
OPUS = "OPUS" in soundfile.available_subtypes("OGG")
SUFFIX = ".opus" if OPUS else ".flac"

SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.2)
PITCHES = (35, 42, 50, 58, 65)  # of espeak-ng, whose scale is 0 to 99 with 50 in the middle
WORDS_A_MINUTE = 175  # of espeak-ng at speed 1

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
VARIANTS = ("f1", "f2", "f3", "f5", "m1", "m2", "m4", "m5", "m6", "m7")

# One speaker lent a voice to both flite and festival (kal, slt): both are for training. The variants f4 and m3 of
# espeak-ng are kept out of training in every accent.
VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "test": {"espeak-ng": ("en-us+f4",), "flite": ("rms",)},
    "validation": {"espeak-ng": ("en-gb+m3",)},
    "train": {
        "espeak-ng": tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS),
        "flite": ("awb", "kal16", "slt"),
        "festival": ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"),
    },
}
PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite", "text2wave": "festival"}
FESTIVAL_PACKAGES = {
    "kal_diphone": "festvox-kallpc16k",
    "ked_diphone": "festvox-kdlpc16k",
    "cmu_us_slt_arctic_hts": "festvox-us-slt-hts",
}


@dataclass(frozen=True)
class Reading:
    """A sentence, and how it is read."""

    text: str
    engine: str
    voice: str
    speed: float
    pitch: int = 50
    """of espeak-ng; the other voices have their own"""
    language: str = "en"

    @property
    def speaker(self) -> str:
        return f"{self.engine}-{self.voice.replace('+', '-')}-{self.speed:g}"

    @property
    def file_name(self) -> str:
        """Made from everything that is heard, so that a file that is there is the right one."""
        heard = f"{self.text}|{self.engine}|{self.voice}|{self.speed:g}|{self.pitch}"
        return f"audio/{hashlib.sha256(heard.encode()).hexdigest()[:16]}{SUFFIX}"


def plan(source: Source, role: str, clips: int, seed: int) -> list[Reading]:
    """The readings of a role, the same for the same seed; those of a larger number begin with those of a smaller one.

    Engines are drawn evenly, and so are the voices of an engine.
    """
    rng = np.random.default_rng([seed, ROLES.index(role), 1])
    return [draw_reading(text, role, rng) for text in islice(sentences(source, role, seed), clips)]


def draw_reading(text: str, role: str, rng: np.random.Generator) -> Reading:
    engines = tuple(VOICES[role])
    engine = engines[rng.integers(len(engines))]
    voices = VOICES[role][engine]
    voice = voices[rng.integers(len(voices))]
    speed, pitch = SPEEDS[rng.integers(len(SPEEDS))], PITCHES[rng.integers(len(PITCHES))]
    return Reading(text, engine, voice, speed, pitch if engine == "espeak-ng" else 50)


def command(reading: Reading, wav: Path) -> list[str]:
    """What has the reading written into the file; the text goes in by standard input, but flite takes it here."""
    stretch = f"{1 / reading.speed:.3f}"
    if reading.engine == "espeak-ng":
        words = str(round(WORDS_A_MINUTE * reading.speed))
        return ["espeak-ng", "-v", reading.voice, "-s", words, "-p", str(reading.pitch), "-w", str(wav), "--stdin"]
    if reading.engine == "flite":
        return ["flite", "-voice", reading.voice, "--setf", f"duration_stretch={stretch}", "-t", reading.text, str(wav)]
    pace = f"(Parameter.set 'Duration_Stretch {stretch})"
    if reading.voice.endswith("_hts"):
        pace = f"""(set! hts_engine_params (cons '("-r" {reading.speed:g}) hts_engine_params))"""
    return ["text2wave", "-eval", f"(voice_{reading.voice})", "-eval", pace, "-o", str(wav)]


def make_clip(folder: Path, reading: Reading) -> float:
    """Have the sentence read into its file, which is there whole or not at all; its seconds."""
    target = folder / reading.file_name
    with tempfile.TemporaryDirectory() as scratch:
        wav = Path(scratch) / "voice.wav"
        done = subprocess.run(command(reading, wav), input=reading.text, text=True, capture_output=True, check=False)
        if done.returncode != 0 or not wav.is_file():
            raise SottoError(f"{reading.speaker} did not read '{reading.text}': {done.stderr.strip()[-300:]}")
        audio, rate = soundfile.read(wav, dtype="float32")
    peak = float(np.abs(audio).max(initial=0.0))
    if peak < 1e-3:
        raise SottoError(f"{reading.speaker} read '{reading.text}' as silence; check the voice")
    audio = soxr.resample(audio * (PEAK / peak), rate, RATE)
    partial_file = target.with_suffix(".part")
    container, subtype = ("OGG", "OPUS") if OPUS else ("FLAC", "PCM_16")
    soundfile.write(partial_file, audio, RATE, format=container, subtype=subtype)
    os.replace(partial_file, target)
    return len(audio) / RATE


def make_folder(folder: Path, readings: Sequence[Reading], jobs: int) -> None:
    """Make the clips that are missing, CHUNK at a time, and write metadata.csv after each."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lengths = {reading: header_seconds(folder / reading.file_name) for reading in readings}
    seconds = {reading: length for reading, length in lengths.items() if length is not None}
    missing = [reading for reading in readings if reading not in seconds]
    start = time.perf_counter()
    if seconds:
        write_metadata(folder, readings, seconds)
    with ThreadPoolExecutor(jobs) as pool:  # the work is in the voices' own processes
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            seconds.update(zip(chunk, pool.map(partial(make_clip, folder), chunk), strict=True))
            write_metadata(folder, readings, seconds)
            rate = (first + len(chunk)) / (time.perf_counter() - start)
            print(f"{folder.name}: {len(seconds)} of {len(readings)} clips, {rate:.1f} a second", flush=True)
    size = sum((folder / reading.file_name).stat().st_size for reading in readings)
    print(f"{folder}: {len(readings)} clips, {sum(seconds.values()) / 60:.1f} minutes, {size / 1e6:.1f} MB", flush=True)


def write_metadata(folder: Path, readings: Sequence[Reading], seconds: dict[Reading, float]) -> None:
    """List the readings whose clips are there; the old list stays until the new one is whole."""
    rows = [
        (reading.file_name, reading.text, reading.speaker, reading.language, f"{seconds[reading]:.2f}")
        for reading in readings
        if reading in seconds
    ]
    partial_file = folder / "metadata.part"
    with partial_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("file_name", "text", "speaker", "language", "seconds"), *rows])
    os.replace(partial_file, folder / "metadata.csv")


def missing_packages() -> list[str]:
    """The Debian packages whose program or voice is not on this machine."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    installed = "" if "festival" in missing else festival_voices()
    return missing + [package for voice, package in FESTIVAL_PACKAGES.items() if voice not in installed.split()]


def festival_voices() -> str:
    """The names of festival's voices, apart by spaces."""
    asked = ["festival", "--batch", '(mapcar (lambda (voice) (format t "%s " voice)) (voice.list))']
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def install_voices() -> None:
    """Have apt-get install what is missing, if anything is. Raises SottoError where it cannot."""
    missing = missing_packages()
    if missing:
        install_packages(missing)
        if still := missing_packages():
            raise SottoError(f"apt-get installed {' '.join(missing)}, but these are still missing: {' '.join(still)}")


def install_packages(missing: Sequence[str]) -> None:
    """Have apt-get install Debian packages. Raises SottoError where it cannot."""
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise SottoError(f"no apt-get here to install {names}; install these programs and voices another way")
    if os.geteuid() != 0:
        raise SottoError(f"missing: {names}; run as root: apt-get install {names}")
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SottoError(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--validation", type=int, default=150)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="clips made at once")
    arguments = parser.parse_args()
    try:
        source = make_source(*read_transcripts(arguments.corpus))
        readings = {role: plan(source, role, getattr(arguments, role), arguments.seed) for role in ROLES}
        install_voices()
        for role in ROLES:
            make_folder(arguments.output / role, readings[role], arguments.jobs)
    except SottoError as error:
        raise SystemExit(f"synthetic.py: {error}") from error


if __name__ == "__main__":
    main()
