"""The bundled recogniser and its clips, for tests where accuracy matters."""

import csv
import shutil
from pathlib import Path

from sotto.demo import DEMO_RECIPE

MODEL = DEMO_RECIPE.parent / "model"
CLIPS = DEMO_RECIPE.parent / "clips"


def some_clips(role: str, folder: Path, count: int) -> Path:
    """An audio folder with the first `count` clips of a role."""
    (folder / "audio").mkdir(parents=True)
    with (CLIPS / role / "metadata.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows[:count]])
    for row in rows[:count]:
        shutil.copy(CLIPS / role / row[0], folder / row[0])
    return folder
