"""How good are painted pictures? Scores against real, held-out ones, each with the protocol card that it needs.

    scores = evaluate("samples/", open_data(config, "held-out"), training=open_data(config, "train"))
    scores.values["fid_over_floor"]     # 1.0: as good as other real pictures

Measures on features (numpy alone): `frechet_distance`, `kernel_distance`, `prdc`, `inception_score`, `memorisation`; on
pictures: `sharpness`. Features: `load_features`. The network behind the shipped ones is trained by `judge.py`.
"""

from .config import METRICS, EvaluationConfig
from .encoders import Features, load_features
from .evaluating import evaluate
from .frechet import (
    Statistics,
    frechet_distance,
    frechet_distance_of_features,
    load_statistics,
    save_statistics,
    statistics,
)
from .inception_score import InceptionScore, inception_score
from .intervals import Interval
from .kernel import KernelDistance, kernel_distance
from .memorisation import Memorisation, memorisation
from .prdc import PRDC, prdc
from .protocol import IDENTITY, Scores, cards_differ, compare
from .sharpness import high_frequency_energy, sharpness

__all__ = [
    "IDENTITY",
    "InceptionScore",
    "Interval",
    "EvaluationConfig",
    "Features",
    "KernelDistance",
    "METRICS",
    "Memorisation",
    "PRDC",
    "Scores",
    "Statistics",
    "cards_differ",
    "compare",
    "evaluate",
    "frechet_distance",
    "frechet_distance_of_features",
    "high_frequency_energy",
    "inception_score",
    "kernel_distance",
    "load_features",
    "load_statistics",
    "memorisation",
    "prdc",
    "save_statistics",
    "sharpness",
    "statistics",
]
