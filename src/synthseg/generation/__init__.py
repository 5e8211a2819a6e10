"""Label map to (image, target): the generative model, one file a stage, one config."""

from synthseg.generation.bank import LabelBank
from synthseg.generation.config import PRESETS, GenerationConfig, original, paper, t1
from synthseg.generation.model import GenerativeModel, Pair, PairDraw
from synthseg.generation.priors import load_priors

__all__ = [
    "PRESETS",
    "GenerationConfig",
    "GenerativeModel",
    "LabelBank",
    "Pair",
    "PairDraw",
    "load_priors",
    "original",
    "paper",
    "t1",
]
