"""The stack on which this thread handles signals, which OpenVINO replaces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Gives back the stack that there was before a model was compiled.

    On Linux OpenVINO 2026.4 sets one of its own with every model, and frees it with the model. Where models do not go
    in the opposite order of coming, the thread is left with one that is no more, and the next signal with a handler (an
    interrupt, a worker of a DataLoader that ends) is a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    library = ctypes.CDLL(None)
    before = SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
