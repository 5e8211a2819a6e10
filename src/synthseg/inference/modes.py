"""Modes are data: ``modes.toml`` says which weights and which settings each of them stands for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from synthseg.configs import config_from_dict
from synthseg.errors import ConfigError
from synthseg.inference.config import InferenceConfig

FILE = "modes.toml"
ADD_ONS = ("parcels", "quality")
LOCATOR = "locator"  # the table of the network that finds the brain first
DEFAULT = InferenceConfig()


@dataclass(frozen=True, kw_only=True)
class RoleWeights:
    """Names or paths of weights by the role that the network plays."""

    structures: str | None = None
    tissues: str | None = None
    denoiser: str | None = None
    guided: str | None = None
    parcels: str | None = None
    quality: str | None = None

    def by_role(self) -> dict[str, str]:
        """The roles that are filled, in the order in which the networks run."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {role: name for role, name in given.items() if name is not None}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One table of ``modes.toml``: networks by role, and settings other than the defaults."""

    description: str
    weights: RoleWeights = RoleWeights()  # none: the caller must name the network of the structures
    inference: InferenceConfig = DEFAULT


# Every mode finds its structures in one of these ways, and an add-on is the one network of its name.
ONE_NETWORK = {"structures"}
HIERARCHY = {"tissues", "denoiser", "guided"}
EXTRAS = {**{name: {name} for name in ADD_ONS}, LOCATOR: {"tissues"}}  # tables other than modes, and their one role


def modes_from_tables(tables: Mapping[str, Any], *, where: str = FILE) -> tuple[dict[str, Mode], dict[str, Mode]]:
    """Modes, and from the other tables the add-ons and the locator, from parsed TOML.

    Raises: ConfigError naming the table and key: an unknown key, role or setting, or roles that make no whole.
    """
    modes: dict[str, Mode] = {}
    extras: dict[str, Mode] = {}
    for name, table in tables.items():
        mode = config_from_dict(Mode, table, where=f"{where}: {name}")
        roles = set(mode.weights.by_role())
        wholes = [EXTRAS[name]] if name in EXTRAS else [ONE_NETWORK, HIERARCHY]
        if roles not in wholes and (roles or name in EXTRAS):
            fix = "name weights for " + " or for ".join(", ".join(sorted(whole)) for whole in wholes)
            raise ConfigError(
                f"{where}: {name}.weights", found=f"weights for {', '.join(sorted(roles)) or 'no role'}", fix=fix
            )
        (extras if name in EXTRAS else modes)[name] = mode
    missing = [name for name in ("default", *EXTRAS) if name not in modes and name not in extras]
    if missing:
        raise ConfigError(where, found=f"no table for {', '.join(missing)}", fix="add it")
    return modes, extras


def _load() -> tuple[dict[str, Mode], dict[str, Mode]]:
    text = (resources.files("synthseg.inference") / FILE).read_text(encoding="utf-8")
    return modes_from_tables(tomllib.loads(text))


_MODES, _EXTRAS = _load()
MODES: dict[str, InferenceConfig] = {name: mode.inference for name, mode in _MODES.items()}


def find_mode(name: str) -> Mode:
    """A mode by its name. Raises: ConfigError naming the modes there are."""
    try:
        return _MODES[name]
    except KeyError:
        raise ConfigError("mode", found=repr(name), fix=f"use one of {', '.join(_MODES)}") from None


def mode_config(mode: str) -> InferenceConfig:
    """The settings of a mode by its name. Raises: ConfigError naming the modes there are."""
    return find_mode(mode).inference


def add_on_weights(role: str) -> str:
    """The weights that an add-on ("parcels" or "quality") uses unless told otherwise."""
    return _EXTRAS[role].weights.by_role()[role]


def locator_weights() -> str:
    """The weights of the network that finds the brain first, of role "tissues"."""
    return _EXTRAS[LOCATOR].weights.by_role()["tissues"]
