"""How benchmarks write what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sotto.metrics.speed import machine

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, values: dict[str, Any]) -> Path:
    """`values` with the machine and the versions beside them, in results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
