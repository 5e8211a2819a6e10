"""Evidence of an ordinary adult head, to be made odd in one way at a time; phantoms brought as far as the checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from synthseg.inference.config import InferenceConfig
from synthseg.inference.configuration import CENTRES, Fit
from synthseg.inference.prepare import Prepared, prepare
from synthseg.inference.scan_findings import PAIRS, Evidence
from synthseg.inference.signs import BrainSigns, ImageSigns
from synthseg.volumes import Volume, Window

IMAGE = ImageSigns(
    spacing_mm=(1.0, 1.0, 1.0),
    roughness=0.03,
    flatness=0.05,
    distinct=1500,
    lowest=0.0,
    high=900.0,
    hounsfield=False,
    content=Window((0, 0, 0), (10, 10, 10), (10, 10, 10)),
)
TOUCHING = dict.fromkeys(("left", "right", "back", "front", "bottom", "top"), 0.0)
BRAIN = BrainSigns(
    touching_mm2=TOUCHING,
    centres_mm={value: (30 * x, 30 * y, 30 * z) for value, (x, y, z) in CENTRES.items()},
    brightness={2: (0.9, 0.05), 41: (0.9, 0.05), 3: (0.6, 0.1), 42: (0.6, 0.1), 4: (0.2, 0.1), 43: (0.2, 0.1)},
    rim=0.0,
)


def ordinary() -> Evidence:
    """1.4 litres, symmetric, a quarter of it CSF."""
    sides = [value for left, (right, _) in PAIRS.items() for value in (left, right)]
    volumes = {**dict.fromkeys(sides, 1_050_000 / len(sides)), 24: 350_000.0}
    return Evidence(
        image=IMAGE,
        brain=BRAIN,
        fit=Fit(5.0, 0.07),
        volumes_mm3=volumes,
        total_mm3=1_400_000.0,
        adult=True,
        trained_mm=(8.0, 4.0),
        ct=None,
    )


def with_image(**changes: Any) -> Evidence:
    return replace(ordinary(), image=replace(IMAGE, **changes))


def with_brain(**changes: Any) -> Evidence:
    return replace(ordinary(), brain=replace(BRAIN, **changes))


def with_volumes(changes: dict[int, float]) -> Evidence:
    volumes = {**ordinary().volumes_mm3, **changes}
    return replace(ordinary(), volumes_mm3=volumes, total_mm3=sum(volumes.values()))


def prepared_of(data: np.ndarray, spacing_mm: float = 1.0) -> Prepared:
    """Data [X, Y, Z] in RAS order, as networks at 1 mm are given it."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    return prepare(Volume(data.astype(np.float32), affine), spacing_mm=1.0, multiple=4, config=InferenceConfig())
