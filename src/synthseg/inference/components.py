"""Connected pieces of masks, given as arrays or as lists of voxels."""

from __future__ import annotations

import cc3d
import numpy as np

from synthseg.volumes import bounding_box


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected piece of a boolean mask; of equal ones, the first in scan order. Empty stays empty."""
    if not mask.any():
        return mask.copy()
    box = bounding_box(mask)
    pieces = cc3d.connected_components(box.crop(mask), connectivity=6)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return box.uncrop(pieces == _chosen(pieces.ravel(), sizes))


def in_largest_component(index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Which voxels of a list belong to its largest face-connected piece: bool [n]; of equal pieces the first counts.

    Args:
        index: [n] voxels as positions in the flattened grid, ascending.
        shape: of the grid.
    """
    if len(index) == 0:
        return np.zeros(0, dtype=bool)
    plane = shape[1] * shape[2]
    first, last = int(index[0]) // plane, int(index[-1]) // plane
    local = index - first * plane
    mask = np.zeros((last - first + 1, *shape[1:]), dtype=bool)
    mask.reshape(-1)[local] = True
    box = bounding_box(mask)
    pieces = np.zeros(mask.shape, dtype=np.uint32)
    x, y, z = (slice(s, s + n) for s, n in zip(box.start, box.shape, strict=True))
    pieces[x, y, z] = cc3d.connected_components(np.ascontiguousarray(mask[x, y, z]), connectivity=6)
    of_voxel = pieces.reshape(-1)[local]
    kept: np.ndarray = of_voxel == _chosen(of_voxel, np.bincount(of_voxel))
    return kept


def _chosen(pieces: np.ndarray, sizes: np.ndarray) -> int:
    """The largest piece; of equal ones the one whose voxel comes first."""
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) > 1:  # cc3d's numbering is its own affair
        return int(pieces[np.argmax(np.isin(pieces, largest))])
    return int(largest[0])
