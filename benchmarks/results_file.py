"""How benchmarks write what they measured, and know again what they made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from sotto.metrics.speed import machine
from sotto.run_folder import write_text

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, values: dict[str, Any]) -> Path:
    """`values` with the machine and the versions beside them, in results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Raises SystemExit where `folder` holds what was made in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings, indent=1)
    with FileLock(folder / "settings.lock"):
        if not path.is_file():
            write_text(path, text)
        if path.read_text() != text:
            raise SystemExit(f"{folder} holds what was made with other settings; name another folder")
