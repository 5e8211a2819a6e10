"""Structures that grow or shrink at their neighbours' expense: small steps of flow until the volume is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from synthseg.anatomies.shapes.field import CoarseGrid, LabelReader, composed, largest_slope, smooth_noise
from synthseg.anatomies.shapes.kinds import Growth
from synthseg.anatomies.shapes.roles import BACKGROUND, ShapeRoles
from synthseg.anatomies.shapes.solver import velocity_of

CELL_MM = 1.6  # of the displacement's grid: two voxels of a fetal map
MARGIN_MM = 10.0  # beyond the brain what gives way may reach that far, never farther
_STEP = 0.25  # most of its logarithm that a volume changes by in a step
_SLOPE = 0.5  # of a step's displacement, at most: below 1 no step folds, nor do all together
_STEPS = 40
_LARGEST_COUNTED = 2**20  # label values below are counted in a table
_SMALL = 50  # voxels: a larger label must not vanish
_TURNS = 5  # from growing to shrinking and back, until the closest map is taken
_CLOSE = 0.015  # of the volume's logarithm: near enough
_UNEVEN_MM = 30.0  # standard deviation of the growth's unevenness


class Grown(NamedTuple):
    """A changed map."""

    labels: np.ndarray  # [X, Y, Z], as given
    displacement_mm: np.ndarray  # [3, x, y, z] from a cell of the box's coarse grid to where its label was read
    grid: CoarseGrid


def grow(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    roles: ShapeRoles,
    growth: Growth,
    factor: float,
    *,
    rng: torch.Generator,
) -> Grown:
    """Multiply a structure's volume, as far as its neighbours can give.

    Args:
        labels: [X, Y, Z] values, with room around the brain already.
        factor: on the structure's volume.
        rng: of where the structure grows more and where less.
    Returns: the map; its structure's volume falls short of ``factor`` where a guarded tissue would lose too much, a
        label would vanish or no tissue yields.
    """
    grid = CoarseGrid(labels.shape, spacing_mm, CELL_MM)
    displacement = np.zeros((3, *grid.shape), dtype=np.float32)
    current, start = labels, _volumes(labels, roles, growth)
    reader, sizes = LabelReader(labels), _sizes(labels)
    unevenness = _unevenness(grid, growth, rng)
    search = _Search(labels, displacement, math.log(factor), damping=1.0, turns=0, sign=0.0)
    for _ in range(_STEPS if start[0] else 0):
        missing = search.wanted - math.log(_volumes(current, roles, growth)[0] / start[0])
        search = search.after(current, displacement, missing)
        if search.closest < _CLOSE or search.turns > _TURNS:
            break
        velocity, rate = _velocity(current, roles, growth, grid, math.copysign(1.0, missing) * unevenness)
        if rate == 0:
            break
        length = search.damping * min(abs(missing), _STEP / rate)
        length = min(length, _SLOPE / max(largest_slope(velocity, grid.spacing_mm), 1e-6))
        moved = composed(displacement, length * velocity, grid.spacing_mm)
        read = reader.at(_positions(moved, grid, spacing_mm))
        if not _acceptable(read, sizes, start[1], roles, growth):
            break
        current, displacement = read, moved
    found = _with_all(search.labels, labels, _positions(search.displacement, grid, spacing_mm), sizes)
    return Grown(found, search.displacement, grid)


class _Search(NamedTuple):
    """The closest map so far. Volumes jump where a flat border passes voxel centres: steps shrink at every turn."""

    labels: np.ndarray
    displacement: np.ndarray
    wanted: float  # logarithm of the factor
    damping: float
    turns: int
    sign: float
    closest: float = math.inf

    def after(self, labels: np.ndarray, displacement: np.ndarray, missing: float) -> _Search:
        turned = self.sign * missing < 0
        found = self._replace(
            damping=self.damping / 2 if turned else self.damping,
            turns=self.turns + turned,
            sign=math.copysign(1.0, missing),
        )
        if abs(missing) >= self.closest:
            return found
        return found._replace(labels=labels, displacement=displacement, closest=abs(missing))


def _positions(displacement_mm: np.ndarray, grid: CoarseGrid, spacing_mm: Sequence[float]) -> list[np.ndarray]:
    found = []
    for axis, (part, s) in enumerate(zip(displacement_mm, spacing_mm, strict=True)):
        side = [-1 if a == axis else 1 for a in range(3)]
        index = np.arange(grid.fine[axis], dtype=np.float32).reshape(side)
        found.append(grid.refine(part) / np.float32(s) + index)
    return found


def _volumes(labels: np.ndarray, roles: ShapeRoles, growth: Growth) -> tuple[int, int]:
    """Voxels of the structure, and of what is guarded."""
    structure = int(np.count_nonzero(roles.mask(labels, *growth.structure)))
    return structure, int(np.count_nonzero(roles.mask(labels, *growth.guarded))) if growth.guarded else 0


def _sizes(labels: np.ndarray) -> dict[int, int]:
    """Voxels by label."""
    if labels.max() >= _LARGEST_COUNTED:
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    counts = np.bincount(labels.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _acceptable(labels: np.ndarray, sizes: dict[int, int], guarded: int, roles: ShapeRoles, growth: Growth) -> bool:
    left = _sizes(labels)
    if any(size > _SMALL and value not in left for value, size in sizes.items()):
        return False
    structure, kept = _volumes(labels, roles, growth)
    return structure > 0 and kept >= growth.least_share * guarded


def _with_all(labels: np.ndarray, before: np.ndarray, positions: list[np.ndarray], sizes: dict[int, int]) -> np.ndarray:
    """Labels of a few voxels may fall between the voxels: they get the voxel that reads closest to where they were."""
    left = _sizes(labels)
    lost = [value for value in sizes if value not in left]
    if not lost:
        return labels
    result = labels.copy()
    for value in lost:
        places = np.argwhere(before == value)
        middle = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
        apart = sum((at - float(m)) ** 2 for at, m in zip(positions, middle, strict=True))
        result.flat[int(np.argmin(apart))] = value
    return result


def _unevenness(grid: CoarseGrid, growth: Growth, rng: torch.Generator) -> np.ndarray:
    """A smooth random field around 1, by which some parts grow more than others."""
    return np.exp(growth.uneven * smooth_noise(grid.shape, _UNEVEN_MM / grid.spacing_mm, rng)).astype(np.float32)


def _velocity(
    labels: np.ndarray, roles: ShapeRoles, growth: Growth, grid: CoarseGrid, gain: np.ndarray
) -> tuple[np.ndarray, float]:
    """The flow under which the structure's volume changes at a rate of 1, and the largest rate of any tissue."""
    structure = grid.means(roles.mask(labels, *growth.structure))
    brain = grid.means(roles.brain(labels))
    near = _margin(brain > 0, grid)
    yielding = np.zeros(grid.shape, dtype=np.float32)
    outer = np.zeros(grid.shape, dtype=np.float32)
    skull = bool(roles.mask(labels, "outside").any())
    for role, weight in growth.yields.items():
        if role == BACKGROUND and skull:
            continue
        share = grid.means(roles.mask(labels, role))
        if role in (BACKGROUND, "outside"):
            share = share * near
            outer += share
        yielding += np.float32(weight) * share
    if growth.reach_mm is not None:
        away = distance_transform_edt(structure < 0.5, sampling=grid.spacing_mm)
        yielding *= np.exp(-0.5 * (away / growth.reach_mm) ** 2)
    total, room = float((structure * gain).sum()), float(yielding.sum())
    if room <= 0 or total == 0:
        return np.zeros((3, *grid.shape), dtype=np.float32), 0.0
    grow = structure * gain * (float(structure.sum()) / abs(total))
    give = yielding * (-float(grow.sum()) / room)
    rate = max(float(np.abs(grow).max()), float(np.abs(give).max()))
    return velocity_of(grow + give, np.clip(brain + outer, 0, 1), grid.spacing_mm), rate


def _margin(brain: np.ndarray, grid: CoarseGrid) -> np.ndarray:
    """1 within and close to the brain, 0 from ``MARGIN_MM`` on."""
    if not brain.any():
        return np.zeros(brain.shape, dtype=np.float32)
    away = distance_transform_edt(~brain, sampling=grid.spacing_mm)
    return np.asarray(away < MARGIN_MM - float(grid.spacing_mm.max()), dtype=np.float32)
