"""What may change between a checkpoint and the run that goes on from it, and what may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthseg.configs import config_from_dict, config_to_dict, flatten
from synthseg.errors import ConfigError
from synthseg.generation.config import GenerationConfig
from synthseg.networks import UNetConfig
from synthseg.networks.encoder import EncoderConfig
from synthseg.training.recipe import DataConfig, OptimizerConfig, OutputConfig, Recipe
from synthseg.training.task_config import TaskConfig

_TABLES: dict[str, type] = {
    "data": DataConfig,
    "generation": GenerationConfig,
    "task": TaskConfig,
    "network": UNetConfig,
    "encoder": EncoderConfig,
    "optimizer": OptimizerConfig,
    "output": OutputConfig,
}
_SPACING = "generation.grid.spacing_mm"
_FIX = "set it back, or train in another folder, starting with --init from the weights of this run"


def compare_recipes(facts: Mapping[str, Any], recipe: Recipe, targets: list[int], *, where: str) -> list[str]:
    """Compare a checkpoint with the recipe that is to go on from it.

    Steps, schedule, priors and the like may change on purpose: they come back as a note for the log.

    Args:
        facts: the checkpoint's index.
        targets: label value of each output channel now.
        where: the checkpoint's name, for messages.
    Raises: ConfigError if the network, the label values of its channels, its spacing or the optimiser are other ones.
    """
    changed = changed_keys(facts, recipe)
    for key, (before, now) in changed.items():
        if key.startswith(("network.", "encoder.")) or key in (_SPACING, "optimizer.optimizer", "task.kind"):
            raise ConfigError(key, found=f"{now}, but {before} in {where}", fix=_FIX)
    notes = []
    if facts["targets"] != targets:
        found = f"a protocol with the targets {targets}, but {facts['targets']} in {where}"
        raise ConfigError("data.bank", found=found, fix=_FIX)
    if changed:
        each = (f"{key} {before} -> {now}" for key, (before, now) in changed.items())
        notes.append(f"recipe changed since {where}: {'; '.join(each)}")
    return notes


def means_other_losses(facts: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a change of the recipe lets losses differ from those before the checkpoint for its own sake."""
    harmless = ("output.", "optimizer.steps", "data.validat")
    return any(not key.startswith(harmless) for key in changed_keys(facts, recipe))


def changed_keys(facts: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[str, str]]:
    """What differs between a checkpoint's recipe and today's: (before, now) in words, by dotted key."""
    before, now = flatten(_completed(facts["recipe"])), flatten(recipe.to_dict())
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key) and key != "folder"]
    return {key: (_shown(before.get(key)), _shown(now.get(key))) for key in keys}


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored recipe with the defaults of keys that have come into being since, so that those are no change."""
    completed = dict(stored)
    for name, kind in _TABLES.items():
        try:
            completed[name] = config_to_dict(config_from_dict(kind, stored.get(name, {}), where=name))
        except ConfigError:  # a key that is no more, or a value no longer allowed: compared as it is written
            completed[name] = stored.get(name, {})
    return completed


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
