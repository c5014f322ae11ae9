"""OpenVINO's reports of its use, which Sotto has it leave out."""

from __future__ import annotations

import sys


def refuse_telemetry() -> None:
    """Have OpenVINO and NNCF do without openvino_telemetry, as they do where it is not installed.

    `import openvino` sends a report to a server, from a process of its own. In a worker that was spawned, that process
    imports the whole program again, and takes one core of the machine for seconds, in which all speeds are too low.
    Nothing changes where it was imported before.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it is an ImportError then
