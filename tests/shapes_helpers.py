"""A brain of ellipsoids for tests of shapes: every tissue of FeTA's seven, and the same with sides."""

from __future__ import annotations

from functools import cache

import numpy as np

from synthseg.labels import load_protocol

FETA, ADULT = load_protocol("feta"), load_protocol("synthseg-generation")
SHAPE = (48, 54, 50)


@cache
def _brain() -> np.ndarray:
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in SHAPE], indexing="ij")

    def ball(at: tuple[float, float, float], size: tuple[float, float, float]) -> np.ndarray:
        return sum(((a - c) / s) ** 2 for a, c, s in zip((x, y, z), at, size, strict=True)) < 1

    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[ball((0, 0, 0), (18, 21, 18))] = 1
    labels[ball((0, 1, 2), (15.5, 18, 14))] = 2
    labels[ball((0, 1, 2), (12.5, 15, 11))] = 3
    labels[(np.abs(x) < 1.5) & (z > 6) & (labels == 3)] = 1  # between the hemispheres
    labels[(labels == 3) & (z < -5)] = 2
    for side in (-1, 1):
        labels[ball((side * 4, 0, 2), (3.5, 8, 3))] = 4
        labels[ball((side * 4.5, 1, -2.5), (3.5, 5, 2.5))] = 6
    labels[(np.abs(x) < 1.5) & (np.abs(y - 1) < 5) & (z > -4) & (z < 3)] = 4  # third ventricle
    labels[ball((0, -9, -11), (7, 5, 4))] = 5
    labels[(x**2 + (y + 1) ** 2 < 9) & (z < -4) & (z > -15)] = 7
    return labels


def fetal_brain() -> np.ndarray:
    """[48, 54, 50] int32, at 1.6 mm; a copy."""
    return _brain().copy()


def sided(labels: np.ndarray) -> np.ndarray:
    """The same in values of the adult protocol: left is towards index 0."""
    left = {0: 0, 1: 24, 2: 3, 3: 2, 4: 4, 5: 8, 6: 10, 7: 16}
    table = np.array([left[v] for v in range(8)])
    partner = np.array([ADULT.by_value(left[v]).partner for v in range(8)])
    right = (np.arange(labels.shape[0]) >= labels.shape[0] / 2)[:, None, None]
    return np.where(right, partner[labels], table[labels]).astype(np.int32)


def volumes(labels: np.ndarray) -> dict[int, int]:
    """Voxels by value."""
    return {int(v): int(n) for v, n in zip(*np.unique(labels, return_counts=True), strict=True)}
