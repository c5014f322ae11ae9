"""Terms added to the training loss. Importing this package registers those that belong to no method."""

from sotto.objectives.ctc import CtcObjective, EncoderCtc
from sotto.objectives.frame_distillation import FrameDistillation, FrameDistillationObjective
from sotto.objectives.objective import Objective, ParameterGroup, Setting, built, check_training, objectives

__all__ = [
    "CtcObjective",
    "EncoderCtc",
    "FrameDistillation",
    "FrameDistillationObjective",
    "Objective",
    "ParameterGroup",
    "Setting",
    "built",
    "check_training",
    "objectives",
]
