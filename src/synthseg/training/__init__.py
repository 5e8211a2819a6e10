"""Training: one loop for every task. Imports torch, numpy and safetensors only."""

from synthseg.training.chain import Chain, load_training
from synthseg.training.loop import RunOptions, RunResult, train
from synthseg.training.recipe import Recipe, load_recipe, recipe_from_dict
from synthseg.training.stages import ChainResult, train_chain
from synthseg.training.task import SegmentationTask, Task

__all__ = [
    "Chain",
    "ChainResult",
    "Recipe",
    "RunOptions",
    "RunResult",
    "SegmentationTask",
    "Task",
    "load_recipe",
    "load_training",
    "recipe_from_dict",
    "train",
    "train_chain",
]
