"""A chain of training runs from one TOML file: each stage trained in its turn, from the weights of earlier ones.

A chain recipe::

    [[stages]]
    name = "tissues"                  # also the stage's folder, inside the chain's
    recipe = "tissues.toml"           # relative to the chain's file, like every path in it
    init = "compact"                  # weights to start from: a name, a path, or "stage:NAME" (optional)

    [[stages]]
    name = "denoiser"
    recipe = "denoiser.toml"
    weights = { tissues = "stage:tissues" }      # in place of the recipe's [task.weights] (optional)
    changes = { optimizer = { steps = 500 } }    # in place of other values of the recipe (optional)

How it is run: ``synthseg.training.stages``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from synthseg.configs import config_from_dict, config_to_dict, flatten, told_at
from synthseg.errors import ConfigError, WeightsError
from synthseg.files import at_home
from synthseg.reading import exists, is_file, real_path
from synthseg.training.recipe import Recipe, overlay, read_toml, recipe_from_dict
from synthseg.training.task_config import FrozenNetworks
from synthseg.weights.store import find_weights, is_path

STAGE = "stage:"  # before the name of an earlier stage, where weights are meant
COLLECTED = "weights"  # the folder beside the stages' that holds a copy of every finished stage's weights
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class _StageTable:
    """One ``[[stages]]`` table, without ``changes``."""

    name: str
    recipe: str
    init: str | None = None
    weights: FrozenNetworks = field(default_factory=FrozenNetworks)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == COLLECTED:
            fix = f"letters, digits, '.', '_' and '-' only, and not {COLLECTED!r}: it becomes a folder"
            raise ConfigError("stages.name", found=repr(self.name), fix=fix)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a chain. ``recipe`` and ``init`` may name weights as "stage:NAME" until the chain is run."""

    name: str
    recipe: Recipe
    source: Path  # the recipe's file
    init: str | None
    changed: frozenset[str]  # dotted keys of the recipe that the chain's file sets

    @property
    def needs(self) -> dict[str, str]:
        """The earlier stages whose weights this one uses: stage name by key ("init" or a role)."""
        named = {"init": self.init, **_roles(self.recipe)}
        return {key: text.removeprefix(STAGE) for key, text in named.items() if text and text.startswith(STAGE)}


@dataclass(frozen=True)
class Chain:
    """Stages in the order they are trained in."""

    path: Path
    stages: tuple[Stage, ...]


def load_training(path: str | Path) -> Recipe | Chain:
    """A recipe or a chain of them, told apart by the key ``stages``.

    Raises: ConfigError naming the file and the key for anything unknown, missing or out of range.
    """
    path = Path(path)
    values = read_toml(path)
    if "stages" in values:
        return chain_from_dict(values, path)
    return recipe_from_dict(values, where=path.name, folder=str(path.parent))


def chain_from_dict(values: Mapping[str, Any], path: Path) -> Chain:
    """Build a chain from the tables of its file; every stage's recipe is read and checked.

    Raises: ConfigError for unknown keys, a name twice, a missing recipe, and a stage that refers
        to one that is unknown or not before it.
    """
    unknown = sorted(set(values) - {"stages"})
    if unknown:
        fix = "write [[stages]] only; what a stage trains is in its recipe"
        raise ConfigError(path.name, found=f"unknown key {unknown[0]!r} in a chain", fix=fix)
    tables = values["stages"]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigError(f"{path.name}: stages", found=repr(tables)[:80], fix="write one [[stages]] table a stage")
    stages: list[Stage] = []
    for number, table in enumerate(tables):
        where = f"{path.name}: stages.{str(table.get('name', number))[:80]}"
        stage = _read_stage(table, path, where)
        _check_references(stage, [other.name for other in stages], tables, where)
        if stage.recipe.output.name in [other.recipe.output.name for other in stages]:
            found = f"{stage.recipe.output.name!r}, the name of an earlier stage's weights"
            raise ConfigError(f"{stage.source.name}: output.name", found=found, fix="give each network its own")
        stages.append(stage)
    return Chain(path, tuple(stages))


def _read_stage(table: Mapping[str, Any], path: Path, where: str) -> Stage:
    changes = table.get("changes", {})
    with told_at(where):
        given = config_from_dict(_StageTable, {k: v for k, v in table.items() if k != "changes"}, where=where)
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{where}.changes", found=repr(changes), fix="write tables of the recipe's keys here")
    source = path.parent / given.recipe
    if not is_file(source):
        raise ConfigError(f"{where}.recipe", found=f"no file {source}", fix="give the recipe's path from this file")
    values, folder = read_toml(source), str(source.parent)
    if "stages" in values:
        raise ConfigError(f"{where}.recipe", found=f"a chain, {source.name}", fix="give the recipe of one network")
    recipe_from_dict(values, where=source.name, folder=folder)  # its own mistakes are told with its own name
    roles = {role: _from_here(text, path.parent) for role, text in config_to_dict(given.weights).items()}
    ours = overlay(changes, {"task": {"weights": roles}}) if roles else dict(changes)
    recipe = recipe_from_dict(overlay(values, ours), where=f"{where}.changes", folder=folder)
    init = None if given.init is None else _from_here(given.init, path.parent)
    return Stage(name=given.name, recipe=recipe, source=source, init=init, changed=frozenset(flatten(ours)))


def _check_references(stage: Stage, earlier: list[str], tables: list[Mapping[str, Any]], where: str) -> None:
    names = [str(table.get("name")) for table in tables]
    if stage.name in earlier:
        raise ConfigError(where, found=f"a second stage of the name {stage.name!r}", fix="give each its own name")
    if stage.init in names:
        fix = f'write init = "{STAGE}{stage.init}" for the stage of that name'
        raise ConfigError(f"{where}.init", found=repr(stage.init), fix=fix)
    for key, name in stage.needs.items():
        place = f"{where}.init" if key == "init" else f"{where}.weights.{key}"
        if name not in names:
            raise ConfigError(place, found=f"an unknown stage {name!r}", fix=f"use one of {', '.join(names)}")
        if name not in earlier:
            raise ConfigError(place, found=f"the stage {name!r}, which is not before it", fix="change their order")


def require_files(chain: Chain) -> None:
    """What is missing is told before the first stage, not after days of training.

    Raises: ConfigError naming the stage and key whose bank, validation set or weights are not there.
    """
    for stage in chain.stages:
        recipe = stage.recipe
        for key in ("bank", "validation"):
            text = getattr(recipe.data, key)
            if text is not None and not exists(recipe.path(text)):
                found, fix = f"no file {recipe.path(text)}", "pack it with `synthseg bank`, or mend the path"
                raise ConfigError(place_of(chain, stage, f"data.{key}"), found=found, fix=fix)
        for key, text in {"init": stage.init, **_roles(recipe)}.items():
            if text is None or text.startswith(STAGE):
                continue
            try:
                find_weights(recipe.path(text) if _looks_like_a_path(text) else text)
            except WeightsError as error:
                key = "init" if key == "init" else f"task.weights.{key}"
                raise ConfigError(
                    place_of(chain, stage, key), found=f"{text!r}: {error.found}", fix=error.fix
                ) from error


def place_of(chain: Chain, stage: Stage, key: str) -> str:
    """File and key of a recipe's value, for messages: the chain's file where that sets it, else the recipe's."""
    if key in stage.changed or key == "init":
        return f"{chain.path.name}: stages.{stage.name}.{key.removeprefix('task.')}"
    return f"{stage.source.name}: {key}"


def with_weights(recipe: Recipe, paths: Mapping[str, Path]) -> Recipe:
    """The recipe with the weights of some roles at these files."""
    absolute = {role: str(path.resolve()) for role, path in paths.items()}
    return replace(recipe, task=replace(recipe.task, weights=replace(recipe.task.weights, **absolute)))


def _roles(recipe: Recipe) -> dict[str, str | None]:
    weights = recipe.task.weights
    return {each.name: getattr(weights, each.name) for each in fields(weights)}


def _from_here(text: str, folder: Path) -> str:
    """A path of the chain's file made absolute, since recipes count theirs from their own folder; a name as it is."""
    return str(real_path(folder / at_home(text))) if _looks_like_a_path(text) else text


def _looks_like_a_path(text: str) -> bool:
    return not text.startswith(STAGE) and is_path(text)
