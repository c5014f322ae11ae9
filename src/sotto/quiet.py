"""What other libraries say of their own steps, held back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def only_errors(*names: str | None) -> Iterator[None]:
    """While this lasts the loggers of these names tell of errors only; None is the root's."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def import_quantizers() -> None:
    """What of transformers imports torchao, where that is installed, which tells of kernels for other machines."""
    with only_errors("torchao", "torch.utils._pytree"):
        import_module("transformers.quantizers.auto")
