"""The training tasks: what a recipe's ``[task]`` chooses. The loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable

import torch

from synthseg.training.recipe import Recipe
from synthseg.training.task import SegmentationTask, Task
from synthseg.training.tasks.groups import DenoiserTask, GuidedTask, TissuesTask
from synthseg.training.tasks.parcels import ParcelsTask
from synthseg.training.tasks.quality import QualityTask

TASKS: dict[str, Callable[[Recipe, torch.device], Task]] = {
    "structures": SegmentationTask,
    "tissues": TissuesTask,
    "denoiser": DenoiserTask,
    "guided": GuidedTask,
    "parcels": ParcelsTask,
    "quality": QualityTask,
}


def make_task(recipe: Recipe, device: torch.device) -> Task:
    """The task that the recipe names in ``[task] kind``.

    Raises: ConfigError or TrainingError where recipe, bank and the networks it starts from do not fit each other.
    """
    return TASKS[recipe.task.kind](recipe, device)
