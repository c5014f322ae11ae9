"""transformers, imported without what torchao, where it is installed, then says of kernels for other machines."""

from __future__ import annotations

import logging
from importlib import import_module

NOISY = ("torchao", "torch.utils._pytree")


def import_quantizers() -> None:
    """What of transformers imports torchao; for so long only errors are told."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import_module("transformers.quantizers.auto")
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
