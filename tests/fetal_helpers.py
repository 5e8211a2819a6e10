"""Small fetal heads that the tests of their preparation share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from synthseg.volumes import Volume, write_volume


def fetal_head(shape: tuple[int, int, int] = (30, 34, 32), *, fluid: bool = True) -> np.ndarray:
    """[X, Y, Z] int32 of FeTA's values: nested balls (fluid, grey, white matter, ventricle), a cerebellum, a stem."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) - np.reshape(shape, (3, 1, 1, 1)) / 2.0
    radius = np.sqrt((grid**2).sum(0))
    labels = np.zeros(shape, dtype=np.int32)
    for value, size in ((1, 10.0 if fluid else 0.0), (2, 8.5), (3, 7.0), (6, 4.5), (4, 3.0)):
        labels[radius < size] = value
    for value, center in ((5, (0, -5, -8)), (7, (0, 0, -9))):
        labels[np.sqrt(((grid - np.reshape(center, (3, 1, 1, 1))) ** 2).sum(0)) < 2.5] = value
    return labels


def save_map(path: Path, data: np.ndarray, spacing_mm: float = 2.0, *, turned: bool = False) -> Path:
    """Write a map; ``turned`` stores the first axis from right to left instead, the same head in space."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = [-20.0, 5.0, 11.0]
    if turned:
        affine[0, 3] += spacing_mm * (data.shape[0] - 1)
        affine[0, 0] = -spacing_mm
        data = data[::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(np.ascontiguousarray(data), affine), path)
    return path
