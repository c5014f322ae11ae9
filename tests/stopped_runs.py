"""Runs as a stop leaves them."""

import shutil
from pathlib import Path


def stopped_in_training(run: Path, copied: Path, checkpoint: int) -> None:
    """A copy of a finished run whose first step is `fine_tuning`, as if it had been stopped before that checkpoint."""
    shutil.copytree(run, copied)
    step = copied / "steps" / "1-fine_tuning"
    for done in (
        copied / "model",
        step / "model",
        step / "work" / f"checkpoint-{checkpoint}",
        *copied.glob("steps/2-*"),
    ):
        shutil.rmtree(done)
    (step / "numbers.json").unlink()
