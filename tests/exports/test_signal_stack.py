"""Signals after OpenVINO has compiled models."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import signal
import sys
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13

from sotto.exports.openvino_models import OpenVinoGraph

x = opset13.parameter([-1, 4], np.float32)
openvino.save_model(openvino.Model([opset13.relu(x)], [x]), sys.argv[1])
graphs = [OpenVinoGraph(Path(sys.argv[1]), exact=True) for _ in range(2)]
del graphs[0], graphs[0]
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_where_models_go_in_the_order_of_coming(tmp_path: Path) -> None:
    call = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.xml")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
