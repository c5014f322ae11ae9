"""The processes of a distributed run, as `accelerate launch` or `torchrun` starts them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


def processes() -> PartialState:
    """Which process this is, out of how many; joins them at the first call.

    Without the word `cpu`, accelerate takes a machine that has no GPU for a single process, whatever the launcher says.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def found_by_main(find: Callable[[], Any]) -> Any:
    """What `find` gives in the main process, in all of them."""
    found = [find() if processes().is_main_process else None]
    broadcast_object_list(found)
    return found[0]


def found_once(path: Path, find: Callable[[], Any]) -> Any:
    """What `find` gives, as JSON: found by the main process alone, kept at `path`, and taken from there by all."""
    state = processes()
    if state.is_main_process and not path.is_file():
        found = find()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
        partial.replace(path)
    state.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))


def found_together(path: Path, find: Callable[[], list[Any]]) -> list[Any]:
    """What `find` gives in each process, in one list, as JSON: kept at `path`, and taken from there the next time."""
    missing = not path.is_file()
    processes().wait_for_everyone()  # nobody writes before all have looked
    found = gather_object(find()) if missing else []
    return list(found_once(path, lambda: found))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of all processes of one machine together, which goes when the last of them is done."""
    state = processes()
    with tempfile.TemporaryDirectory() as own:
        names = [own]
        broadcast_object_list(names)
        yield Path(names[0])
        state.wait_for_everyone()
