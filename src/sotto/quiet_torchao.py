"""transformers, imported without what torchao, where it is installed, then says of kernels for other machines."""

import logging

loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
levels = [logger.level for logger in loggers]
for logger in loggers:
    logger.setLevel(logging.ERROR)

import transformers.quantizers.auto  # noqa: E402, F401

for logger, level in zip(loggers, levels, strict=True):
    logger.setLevel(level)
