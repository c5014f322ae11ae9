"""The methods, and what each of them is made of. Importing this package registers them all."""

from sotto.methods.low_rank import apply_low_rank
from sotto.methods.low_rank_config import LowRank
from sotto.methods.method import StepContext, methods
from sotto.methods.sparse_group_lasso import SparseGroupLasso

__all__ = ["LowRank", "SparseGroupLasso", "StepContext", "apply_low_rank", "methods"]
