"""Which of the hierarchy's networks are there, and the segmenters that can be made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from synthseg.errors import WeightsError
from synthseg.inference import Model, Segmenter
from synthseg.inference.model import load_model
from synthseg.inference.modes import add_on_weights, find_mode

T = TypeVar("T")
ADD_ONS = ("parcels", "quality")


@dataclass
class Networks:
    """Loads what is asked for once; what is missing is remembered in ``missing`` as a sentence, not raised."""

    given: Mapping[str, str]  # role -> name or path, in place of those of modes.toml
    threads: int | None = None
    device: str = "auto"
    missing: list[str] = field(default_factory=list)

    def segmenter(self, mode: str, *, parcels: bool = False, quality: bool = False) -> Segmenter | None:
        """A segmenter of a mode with add-ons, or None."""
        roles = find_mode(mode).weights.by_role()
        weights = {role: _place(self.given[role]) for role in roles if role in self.given}
        wanted = {"parcels": parcels, "quality": quality}
        add_ons = {role: self._add_on(role) if wanted[role] else False for role in ADD_ONS}
        return self._try(
            f"mode {mode}" + "".join(f" with {role}" for role in ADD_ONS if wanted[role]),
            lambda: Segmenter(weights, mode, **add_ons, threads=self.threads, device=self.device),  # type: ignore[arg-type]
        )

    def model(self, mode: str, role: str) -> Model | None:
        """One network of a mode by its role, or None."""
        name = self.given.get(role) or find_mode(mode).weights.by_role()[role]
        return self._try(f"the network of role {role}", lambda: load_model(_place(name), role=role))

    def _add_on(self, role: str) -> str | Path:
        return _place(self.given.get(role) or add_on_weights(role))

    def _try(self, what: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except WeightsError as error:
            self.missing.append(f"{what}: {error.subject}: {error.found}")
            return None


def _place(name: str) -> str | Path:
    return Path(name) if "/" in name else name


def hash_of(*models: Model) -> str:
    """A folder's name for results of these networks."""
    return "-".join(model.sha256[:8] or model.name for model in models)
