"""What OpenVINO would report to a server."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import multiprocessing, sys
import {before}

started = []
multiprocessing.Process.start = lambda self: started.append(self)
from sotto.exports import openvino_folder

sys.stdout.write(f"{{len(started)}} {{'openvino.tools.ovc.telemetry_stub' in sys.modules}}")
"""


def said(before: str) -> str:
    code = CODE.format(before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_opening_an_export_reports_nothing() -> None:
    """And so starts no process, which would compute beside what is measured."""
    assert said("sotto.exports") == "0 True"


def test_a_program_that_imported_openvino_before_goes_on_as_it_was() -> None:
    assert said("openvino_telemetry").endswith("False")
