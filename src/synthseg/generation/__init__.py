"""Label map to (image, target): the generative model, one file a stage, one config."""

from synthseg.generation.bank import LabelBank
from synthseg.generation.config import PRESETS, GenerationConfig, original, paper
from synthseg.generation.model import GenerativeModel, Pair, PairDraw

__all__ = ["PRESETS", "GenerationConfig", "GenerativeModel", "LabelBank", "Pair", "PairDraw", "original", "paper"]
