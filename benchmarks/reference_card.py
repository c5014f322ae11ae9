"""Put a trained reference model beside its recipe, with a card that says what it was trained on and how well it hears.

    python benchmarks/reference_card.py NAME runs/NAME-1 runs/NAME-2 --language en --normalizer english \\
        --on CORPUS/speechocean762/validation --on runs/synthetic/test

The folders are those that `sotto train` wrote, in the order of the recipe's parts; the last one's model is taken. Every
`--on` is measured with `sotto evaluate`, and the command and what it printed go into the card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sotto.checkpoint import load
from sotto.metrics.cost import count_parameters
from sotto.report.formats import rate

REFERENCE = Path(__file__).parent / "reference"
ROWS = 12  # of the curve
SOURCES = {  # by the end of the path in a recipe
    "speechocean762/train": "speechocean762 (OpenSLR 101), free for any use",
    "ljspeech/train": "LJSpeech 1.1, public domain",
    "lj_second_reader/train": "a second reader of LJSpeech texts (PhilippMatthes/dc_tts), Apache-2.0",
    "common_voice_en/train": "Mozilla Common Voice, CC0",
    "an4/train": "CMU AN4, BSD-like: Copyright (c) Carnegie Mellon University; the notice is to be kept",
    "msc_malayalam/train": "Swathanthra Malayalam Computing's MSC, CC BY-SA; of its clips for "
    "validation and test 98 % and 99 % have a text that was heard in training too, from other speakers",
    "synthetic/train": "read by espeak-ng, flite and festival with `benchmarks/synthetic.py`; "
    "texts from the English corpora",
    "synthetic-malayalam": "read by espeak-ng with `benchmarks/synthetic_malayalam.py`; texts from MSC, CC BY-SA",
}


def evaluated(model: Path, data: str, language: str, normalizer: str) -> tuple[str, str]:
    """The command of `sotto evaluate` on the data as a reader would type it, and what it printed."""
    place = "/".join(Path(data).parts[-2:])
    options = ["--language", language, "--normalizer", normalizer, "--worst", "0"]
    shown = shlex.join(["sotto", "evaluate", f"benchmarks/reference/{model.name}", place, *options])
    done = subprocess.run(
        [sys.executable, "-m", "sotto", "evaluate", str(model), data, *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    return shown, done.stdout.replace(str(model), model.name).rstrip()


def curve(runs: Sequence[Path]) -> list[str]:
    """Rows of a table: part, step, training loss since the row before, error rates on validation clips."""
    rows = []
    for part, run in enumerate(runs, 1):
        losses: list[float] = []
        for entry in json.loads((run / "log.json").read_text()):
            if "loss" in entry:
                losses.append(entry["loss"])
            if "eval_wer" in entry:
                loss = f"{sum(losses) / len(losses):.2f}" if losses else ""
                rates = f"{rate(entry['eval_wer'])} | {rate(entry['eval_cer'])}"
                rows.append(f"| {part} | {entry['step']:.0f} | {loss} | {rates} |")
                losses = []
    if not rows:
        raise SystemExit(f"reference_card.py: no validation in {runs[-1] / 'log.json'}")
    thinned = rows[:: -(-len(rows) // ROWS)]
    return thinned if thinned[-1] == rows[-1] else [*thinned, rows[-1]]


def sources(recipes: Sequence[Path]) -> list[str]:
    """Lines for the corpora that the recipes name. Raises SystemExit where one is unknown: cards leave none out."""
    paths = [entry["path"].rstrip("/") for plan in map(read, recipes) for entry in listed(plan["data"]["train"])]
    for path in paths:
        if not any(path.endswith(end) for end in SOURCES):
            raise SystemExit(f"reference_card.py: nothing is known of {path}; add its source and licence to SOURCES")
    return [f"- {line}" for end, line in SOURCES.items() if any(path.endswith(end) for path in paths)]


def read(recipe: Path) -> dict[str, Any]:
    plan: dict[str, Any] = yaml.safe_load(recipe.read_text())
    return plan


def listed(data: Any) -> list[dict[str, Any]]:
    return data if isinstance(data, list) else [data]


def layers_of(recipe: Path) -> str | None:
    """Path of the model whose layers a recipe begins with."""
    plan = read(recipe)
    return plan.get("weights_from") or plan.get("base")


def teachers(recipes: Sequence[Path]) -> list[str]:
    """Paths of the models that were listened to while training, in turn."""
    terms = [term for plan in map(read, recipes) for term in plan.get("objectives", []) if isinstance(term, dict)]
    settings = [values or {} for term in terms for values in term.values()]
    return [values["teacher"] for values in settings if values.get("teacher")]


def origin(recipes: Sequence[Path]) -> str:
    """Whose layers and whose answers the model had, in words."""
    layers, taught = layers_of(recipes[0]), dict.fromkeys(named(path)[0] for path in teachers(recipes))
    return ", ".join(
        [
            f"from the layers of {named(layers)[0]}" if layers else "from nothing",
            f"with {' and '.join(taught)} as its teacher" if taught else "without a teacher",
        ]
    )


def named(path: str) -> tuple[str, int | None]:
    """Name, and the number of the part whose weights they are: conformer-english and 2 of
    `../../../runs/conformer-english-2/model`; conformer-english and None, for its last part, of `../conformer-english`.
    """
    folder = Path(path).parent if Path(path).name == "model" else Path(path)
    found = re.fullmatch(r"(.+)-(\d+)", folder.name)
    return (found[1], int(found[2])) if found else (folder.name, None)


def forebears(recipes: Sequence[Path]) -> list[Path]:
    """The recipes of the reference models that these took layers from or were taught by, and of theirs.

    Raises SystemExit where a model is none of them: what it has heard is not known.
    """
    found: dict[Path, None] = {}
    waiting = list(recipes)
    while waiting:
        paths = [*teachers(waiting), *(path for path in map(layers_of, waiting) if path)]
        parts = [part for path in paths for part in parts_of(path)]
        waiting = [part for part in dict.fromkeys(parts) if part not in found and part not in recipes]
        found.update(dict.fromkeys(waiting))
    return list(found)


def parts_of(path: str) -> list[Path]:
    name, number = named(path)
    parts = sorted((REFERENCE / name).glob("train*.yaml"))
    if not parts:
        raise SystemExit(f"reference_card.py: {path} is no reference model; what it has heard is not known")
    return parts[:number]


def card(name: str, recognizer: Any, language: str, runs: Sequence[Path], outputs: Sequence[tuple[str, str]]) -> str:
    folder = REFERENCE / name
    parts = sorted(folder.glob("train*.yaml"))
    recipes = parts[: len(runs)]
    to_come = (
        "" if len(runs) == len(parts) else f" Still to come: {', '.join(path.name for path in parts[len(runs) :])}."
    )
    parameters = count_parameters(recognizer.model)
    own = sources(recipes)
    before = [line for line in sources(forebears(recipes)) if line not in own]
    heard = "\n".join(own) + ("\n\nHeard by the models that it comes from:\n\n" + "\n".join(before) if before else "")
    share_alike = "cc-by-sa-4.0" if any("MSC" in line for line in own + before) else "apache-2.0"
    printed = "\n".join(f"```\n$ {command}\n{output}\n```\n" for command, output in outputs)
    validation = ("part", "step", "training loss", "validation WER", "validation CER")
    return f"""---
language: {language}
license: {share_alike}
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [sotto]
---

# {name}

A small recogniser to measure compression on, trained with `sotto train` {origin(recipes)}:
{parameters.total:,} parameters, of which the encoder has {parameters.encoder:,}.
It is not meant for use: it has heard a few hours of speech only.

## Data

{heard}

## How it was trained

{", then ".join(f"[{path.name}]({path.name})" for path in recipes)}; the head of each recipe is the command.{to_come}

| {" | ".join(validation)} |
|{"---|" * len(validation)}
{chr(10).join(curve(runs))}

## How well it hears

{printed}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--language", required=True)
    parser.add_argument("--normalizer", required=True)
    parser.add_argument("--on", action="append", required=True, help="transcribed audio to measure on")
    arguments = parser.parse_args()
    folder = REFERENCE / arguments.name
    shutil.copytree(arguments.runs[-1] / "model", folder, dirs_exist_ok=True)
    outputs = [evaluated(folder, data, arguments.language, arguments.normalizer) for data in arguments.on]
    text = card(arguments.name, load(folder), arguments.language, arguments.runs, outputs)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
