"""The package's own sampler and shapes, as this study uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from experiments.fetal.config import Edit, FetalConfig

from synthseg.anatomies.settings import Scheme, preset
from synthseg.labels import LabelProtocol
from synthseg.volumes import Volume, strip_extension


def varied(labels: Volume, protocol: LabelProtocol, *, rng: torch.Generator) -> np.ndarray:
    """A training map in another shape, of kinds and severities drawn at random: [X, Y, Z]."""
    from synthseg.anatomies.shapes import ShapeSpec, vary

    return vary(labels.data, labels.spacing_mm.tolist(), protocol, ShapeSpec(), rng)[0]


def edited(labels: Volume, protocol: LabelProtocol, change: Edit, *, rng: torch.Generator) -> tuple[np.ndarray, float]:
    """A test map with one change, made as far as the map has room for it.

    Returns: [X, Y, Z], and the factor on the structure's volume that was reached.
    """
    from synthseg.anatomies.shapes import ShapeSpec, spec_with, vary

    only: dict[str, Any] = {change.kind.replace("-", "_"): (change.severity, change.severity)}
    spec = spec_with((change.kind,), ShapeSpec(**only))
    found, draw = vary(labels.data, labels.spacing_mm.tolist(), protocol, spec, rng)
    return found, draw.edits[0].reached


def map_weights(files: Sequence[Path], protocol: LabelProtocol, config: FetalConfig) -> dict[str, float]:
    """How often each map is drawn, by its name without extension; computed from these maps alone.

    Raises: UsageError without the extra packages of sampling; LabelError for maps that cannot be measured.
    """
    from synthseg.anatomies.sampler import weights_of

    settings = preset(cast(Scheme, config.scheme))
    if not config.siblings:
        settings = replace(settings, family=replace(settings.family, siblings=None))
    found = weights_of(list(files), settings, protocol=protocol).as_dict()
    return {strip_extension(Path(name)): weight for name, weight in found.items()}
