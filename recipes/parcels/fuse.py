"""Parcels of several atlases, gathered in a template and read off again at another brain's cortex.

Every atlas gives points of its cortex: where they lie in the template, which way the cortex faces there, and their
parcel. A point of another brain asks its nearest ones. The direction tells the two banks of a sulcus apart, which lie
closer together than the registration is exact; asking several atlases evens out the habits of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from maps import CORTICAL, GREY, NOTHING, WITHIN, CerebrumMap
from merge import CORTEX, parcels_of_side
from register import Correspondence
from scipy import ndimage
from scipy.spatial import cKDTree

# Chosen on three atlases, each left out in turn (docs/parcels.md).
DIRECTION_MM = 6.0  # a direction off by one radian counts as this distance
SIGMA_MM = 4.0  # of a vote's weight over distance
POINTS = 15_000  # of an atlas and side
VOTERS = 10  # nearest points of every atlas, on average
SMOOTH_MM = 1.5  # of the tissue before directions are taken


@dataclass(frozen=True)
class CortexPoints:
    """Points of one hemisphere's cortex: [N, 6] places (template mm, direction times 6 mm) and [N] parcels."""

    places: np.ndarray
    parcels: np.ndarray


def cortex_voxels(brain: CerebrumMap, side: str) -> np.ndarray:
    """[N, 3] voxel indices of one side's cortex."""
    return np.argwhere(np.isin(brain.parcels, [CORTEX[side], *parcels_of_side()[side]]))


def places(brain: CerebrumMap, voxels: np.ndarray, to_template: Correspondence | None) -> np.ndarray:
    """[N, 6] template position and weighted direction (from white matter outwards) of voxels [N, 3] of a map.

    Args:
        to_template: None for the template itself.
    """
    outwards = np.zeros(4, dtype=np.float32)
    outwards[[NOTHING, CORTICAL, WITHIN, GREY]] = 1, 0, -1, -1
    tissue = ndimage.gaussian_filter(outwards[brain.tissue], SMOOTH_MM / brain.spacing_mm, truncate=2.5)
    direction = np.empty(voxels.shape)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        after, before = (np.clip(voxels + sign * step, 0, np.array(tissue.shape) - 1) for sign in (1, -1))
        direction[:, axis] = (tissue[tuple(after.T)] - tissue[tuple(before.T)]) / brain.spacing_mm[axis]
    where = brain.origin_mm + voxels * brain.spacing_mm
    if to_template is not None:
        where = to_template(where)
        direction = direction @ np.linalg.inv(to_template.affine[:, :3])  # as a surface's normal turns
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    return np.concatenate([where, DIRECTION_MM * direction], axis=1)


def cortex_points(brain: CerebrumMap, side: str, to_template: Correspondence | None, count: int) -> CortexPoints:
    """Up to ``count`` points, with known parcels, of one side's cortex; the same ones every time."""
    voxels = cortex_voxels(brain, side)
    voxels = voxels[brain.parcels[tuple(voxels.T)] > max(CORTEX.values())]
    voxels = voxels[np.random.default_rng(0).permutation(len(voxels))[:count]]
    return CortexPoints(places(brain, voxels, to_template), brain.parcels[tuple(voxels.T)])


class Vote:
    """Several atlases' points of one hemisphere, ready to be asked.

    Args:
        side: "left" or "right".
        atlases: one or more atlases' points of that side.
    """

    def __init__(self, side: str, atlases: Sequence[CortexPoints]) -> None:
        self.side = side
        self.values = parcels_of_side()[side]
        self._tree = cKDTree(np.concatenate([atlas.places for atlas in atlases]))
        self._channels = np.searchsorted(self.values, np.concatenate([atlas.parcels for atlas in atlases]))
        self._voters = min(VOTERS * len(atlases), len(self._channels))

    def __call__(self, asked: np.ndarray) -> np.ndarray:
        """[N] parcel with the largest weight of votes at places [N, 6]."""
        distance, voter = self._tree.query(asked, k=np.arange(1, self._voters + 1), eps=0.3)
        weight = np.exp(-0.5 * (distance / SIGMA_MM) ** 2) + 1e-9  # far from all, the nearest still count
        cell = np.arange(len(asked))[:, None] * len(self.values) + self._channels[voter]
        votes = np.bincount(cell.ravel(), weight.ravel(), minlength=len(asked) * len(self.values))
        parcels: np.ndarray = self.values[votes.reshape(len(asked), -1).argmax(1)]
        return parcels


def label_cortex(brain: CerebrumMap, to_template: Correspondence | None, votes: Sequence[Vote]) -> np.ndarray:
    """[X, Y, Z] int16: a parcel on every cortex voxel. Every second voxel along each axis asks, the others follow."""
    labels = np.zeros(brain.tissue.shape, dtype=np.int16)
    for vote in votes:
        voxels = cortex_voxels(brain, vote.side)
        asking = voxels[(voxels % 2 == 0).all(1)]
        known = np.zeros(brain.tissue.shape, dtype=np.int16)
        known[tuple(asking.T)] = vote(places(brain, asking, to_template))
        cortex = np.zeros(brain.tissue.shape, dtype=bool)
        cortex[tuple(voxels.T)] = True
        labels += without_islands(filled(known, cortex, brain.spacing_mm), brain.spacing_mm)
    return labels


def filled(labels: np.ndarray, where: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Labels on every voxel of a mask: its own where it has one, else that of the nearest voxel with one."""
    full = np.zeros_like(labels)
    box = ndimage.find_objects(where.astype(np.uint8))[0]
    nearest = ndimage.distance_transform_edt(
        labels[box] == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    full[box][where[box]] = labels[box][tuple(nearest)][where[box]]
    return full


def without_islands(labels: np.ndarray, spacing_mm: np.ndarray, smallest: float = 0.1) -> np.ndarray:
    """Pieces of a parcel smaller than a tenth of its largest piece take the nearest other parcel's label."""
    kept = labels.copy()
    whole = np.ones((3, 3, 3), dtype=bool)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(labels[box] == value, whole)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        small = np.flatnonzero(sizes < smallest * sizes.max()) + 1
        kept[box][np.isin(pieces, small)] = 0
    return filled(kept, labels > 0, spacing_mm)
