"""A training recipe: one TOML file, read with the standard library into frozen configs.

Relative paths in a recipe are relative to the recipe's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from synthseg import reading
from synthseg.configs import config_from_dict, config_to_dict, told_at
from synthseg.errors import ConfigError
from synthseg.generation.config import PRESETS, GenerationConfig
from synthseg.generation.map_weights import match_weights, read_map_weights, table_sha256
from synthseg.generation.priors.arrays import read_mixture
from synthseg.networks import UNetConfig
from synthseg.networks.encoder import EncoderConfig
from synthseg.training.losses import LossName
from synthseg.training.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where label maps and real scans to validate on come from."""

    bank: str  # packed label bank: synthseg bank LABELS -o bank.safetensors
    # Relative probability of each map: a list in the bank's order, or a table of `synthseg sampler` (by name)
    map_weights: tuple[float, ...] | str | None = None
    map_choice: Literal["independent", "stratified"] = "independent"  # stratified: spread evenly over the steps
    validation: str | None = None  # folder of scans and label maps, or their packed file
    validate_every: int = 1000  # steps

    def __post_init__(self) -> None:
        _at_least("data", self, 1, "validate_every")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its schedule. The paper: Adam, 1e-4, constant, 300,000 steps, batch 1 (section 3.2)."""

    optimizer: Literal["adam", "muon"] = "adam"

    steps: int = 300_000
    batch: int = 1  # elements a process and micro-step
    accumulate: int = 1  # micro-steps whose gradients are averaged
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the rate grows linearly from 0
    schedule: Literal["constant", "cosine", "decay"] = "constant"
    decay_steps: int = 0  # "decay": constant, then linearly to 0 over the last so many steps
    clip_norm: float | None = None  # of the whole gradient
    loss: LossName = "dice"
    absent: Literal["count", "skip"] = "count"  # labels missing from a crop: penalised (original) or left out
    wl2_steps: int = 0  # the original's warm-up loss first, then a fresh optimiser
    ema_decay: float = 0.0  # 0 = no average of weights
    # A window's mean loss so many times the smoothed one: back to the last good state (``spikes.py``); 0 turns it off
    spike_factor: float = 2.0
    spike_window: int = 100  # steps whose mean loss is judged
    freeze_norm_step: int | None = None  # from this step on batch norm uses its running statistics, as inference does
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False  # fuse the network's operations with torch.compile: minutes at the start, faster steps after
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("optimizer", self, 1, "steps", "batch", "accumulate")
        _at_least("optimizer", self, 0, "warmup_steps", "wl2_steps")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError("optimizer.clip_norm", found=repr(self.clip_norm), fix="give a positive norm, or none")
        if not self.learning_rate > 0:
            raise ConfigError("optimizer.learning_rate", found=repr(self.learning_rate), fix="give a positive rate")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("optimizer.ema_decay", found=repr(self.ema_decay), fix="give a decay in [0, 1)")
        _at_least("optimizer", self, 2, "spike_window")
        if not (self.spike_factor == 0 or 1 < self.spike_factor < math.inf):
            fix = "give a factor above 1, e.g. 2, or 0 to turn it off"
            raise ConfigError("optimizer.spike_factor", found=repr(self.spike_factor), fix=fix)
        if self.schedule == "decay" and not 0 < self.decay_steps <= self.steps:
            raise ConfigError("optimizer.decay_steps", found=repr(self.decay_steps), fix="give 1 to `steps` steps")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What a run leaves behind, and how often."""

    name: str = "synthseg"  # of the weights
    checkpoint_minutes: float = 2.0
    keep: int = 2  # checkpoints
    log_every: int = 20  # steps
    tensorboard: bool = False
    licence: str = "Apache-2.0"
    description: str = ""
    organ: str = "brain"  # in the maps; for another, inference uses neither the brain's locator nor its CT window
    ct_window: tuple[float, float] | None = None  # Hounsfield units that inference clips CT to; none: the brain's

    def __post_init__(self) -> None:
        _at_least("output", self, 1, "keep", "log_every")
        _at_least("output", self, 0, "checkpoint_minutes")
        if not self.organ:
            raise ConfigError("output.organ", found="no name", fix='give one word, e.g. "heart"')
        if self.ct_window is not None and not self.ct_window[0] < self.ct_window[1]:
            raise ConfigError(
                "output.ct_window", found=repr(self.ct_window), fix="give two numbers, the lower one first"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run needs."""

    data: DataConfig
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    network: UNetConfig = field(default_factory=UNetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # the network of [task] kind = "quality"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    folder: str = "."  # what relative paths start from
    map_weights_sha256: str | None = None  # of the table's file: a changed one is a changed recipe

    def path(self, text: str) -> Path:
        """A path of the recipe, made absolute or relative to the working directory."""
        return Path(self.folder) / text

    def weights_of(self, names: Sequence[str]) -> tuple[float, ...] | None:
        """The weights of a bank's maps in its order; None: uniform.

        Raises: ConfigError for a table that is missing or damaged, or that does not name just these maps.
        """
        given = self.data.map_weights
        if isinstance(given, str):
            path = self.path(given)
            return match_weights(read_map_weights(path), names, subject=path)
        return given

    def to_dict(self) -> dict[str, Any]:
        """Plain values for logs and checkpoints."""
        return config_to_dict(self)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe. ``preset`` in [generation] ("paper", "original" or "t1") sets the values the other keys change.

    Raises: ConfigError naming the file and the key for anything unknown, missing or out of range.
    """
    path = Path(path)
    return recipe_from_dict(read_toml(path), where=path.name, folder=str(path.parent))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises: ConfigError if it is not there or no usable TOML."""
    return reading.read_toml(path, error=ConfigError, fix="give the path of a recipe, e.g. recipes/adult-1mm.toml")


def recipe_from_dict(values: Mapping[str, Any], *, where: str, folder: str = ".") -> Recipe:
    """Build a recipe from the tables of a TOML file."""
    with told_at(where):
        return _recipe(values, where, folder)


def _recipe(values: Mapping[str, Any], where: str, folder: str) -> Recipe:
    tables = dict(values)
    tables["generation"] = generation_config(tables.get("generation", {}), where=where, folder=folder)
    for key, why in (("folder", "paths start from the recipe's folder"), ("map_weights_sha256", "it is found out")):
        if key in tables:
            raise ConfigError(where, found=f"unknown key '{key}'", fix=f"remove it: {why}")
    recipe = config_from_dict(Recipe, {**tables, "folder": folder}, where=where)
    table = recipe.data.map_weights
    return replace(recipe, map_weights_sha256=table_sha256(recipe.path(table))) if isinstance(table, str) else recipe


def generation_config(
    values: Mapping[str, Any], *, where: str = "generation", folder: str | Path = "."
) -> GenerationConfig:
    """A preset with changes: ``{"preset": "original", "bias": {"max_std": 0.5}}``.

    ``means``, ``stds`` and ``classes`` of its mixture may be files of the original's, with paths from ``folder``: their
    numbers are read here (``generation/priors/arrays.py``).
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: generation", found=repr(values), fix="write a table of keys here")
    changes = dict(values)
    preset = changes.pop("preset", "paper")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{where}: generation.preset", found=repr(preset), fix=f"choose one of {', '.join(PRESETS)}")
    base = config_to_dict(PRESETS[preset]())
    mixture = changes.get("mixture")
    if isinstance(mixture, Mapping):
        kind = str(mixture.get("kind", base["mixture"]["kind"]))
        place = f"{where}: generation.mixture"
        changes["mixture"] = read_mixture(mixture, kind=kind, folder=folder, where=place)
    merged = overlay(base, changes)
    return config_from_dict(GenerationConfig, merged, where=f"{where}: generation")


def _at_least(table: str, config: object, least: int, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) >= least:
            raise ConfigError(f"{table}.{key}", found=repr(getattr(config, key)), fix=f"give at least {least}")


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with some of their keys changed or added; neither argument is."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = value
    return merged
