"""Training: one loop for every task. Imports torch, numpy and safetensors only."""

from synthseg.training.loop import RunOptions, RunResult, train
from synthseg.training.recipe import Recipe, load_recipe, recipe_from_dict
from synthseg.training.task import SegmentationTask, Task

__all__ = [
    "Recipe",
    "RunOptions",
    "RunResult",
    "SegmentationTask",
    "Task",
    "load_recipe",
    "recipe_from_dict",
    "train",
]
