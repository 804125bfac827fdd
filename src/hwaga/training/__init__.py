"""The one training loop, and what hangs on it: a System's stages, its data and a score function are handed in.

loop.py       Trainer: what a step is
session.py    Session: a run in its folder, from its newest checkpoint to its end
"""

from .config import EmaConfig, OptimizerConfig, TrainingConfig
from .distributed import World
from .loop import StepDraw, Trainer
from .progress import Progress
from .session import Session

__all__ = ["EmaConfig", "OptimizerConfig", "Progress", "Session", "StepDraw", "Trainer", "TrainingConfig", "World"]
