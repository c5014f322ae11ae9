"""One file per method. Importing this package registers them all."""

from sotto.methods.low_rank import LowRank
from sotto.methods.method import StepContext, methods

__all__ = ["LowRank", "StepContext", "methods"]
