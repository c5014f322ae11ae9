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


def checkpoint_times(run: Path) -> set[tuple[str, int]]:
    """The files of the checkpoints of such a run's training, and when they were written."""
    files = (run / "steps" / "1-fine_tuning" / "work").glob("checkpoint-*/*")
    return {(str(file.relative_to(run)), file.stat().st_mtime_ns) for file in files}
