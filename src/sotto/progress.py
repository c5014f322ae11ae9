"""Progress of long work, on the terminal of the first process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sotto.distribution import processes

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar that shows how many have passed; silent where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = not (console.is_terminal and processes().is_main_process)
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        yield from progress.track(items, total=total, description=description)
