"""Specks: pieces of a label too small to mean anything, which reading labels elsewhere may leave behind."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label

SPECK_MM3 = 5.0  # pieces below are specks: ten voxels of a fetal map
_TOUCHING = np.ones((3, 3, 3), dtype=bool)


def without_specks(labels: np.ndarray, before: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Give each new speck to the labels around it; what was a speck before and did not change may stay one.

    A label's largest piece always stays. Pieces touch by faces, edges or corners.

    Args:
        labels, before: [X, Y, Z] after and before a change.
    """
    changed = labels != before
    least = SPECK_MM3 / float(np.prod(spacing_mm))
    specks = np.zeros(labels.shape, dtype=bool)
    boxes = find_objects(labels)
    for value in np.unique(labels[changed]):
        box = boxes[int(value) - 1] if value else tuple(slice(None) for _ in range(3))
        pieces, count = label(labels[box] == value, structure=_TOUCHING)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        small = sizes < least
        small[0] = False
        if count:
            small[1 + int(sizes[1:].argmax())] = False
        moved = np.bincount(pieces[changed[box]].ravel(), minlength=count + 1) > 0
        specks[box] |= (small & moved)[pieces]
    if not specks.any():
        return labels
    return filled(labels, specks)


def filled(labels: np.ndarray, holes: np.ndarray, sources: np.ndarray | None = None) -> np.ndarray:
    """Give voxels the label of the nearest voxel outside the holes, or of the nearest source.

    Args:
        holes: [X, Y, Z] bool. sources: [X, Y, Z] bool, where labels may come from; None: everywhere but the holes.
    """
    if not holes.any():
        return labels
    from_ = ~holes if sources is None else sources
    if not from_.any():
        return labels
    box = tuple(slice(max(int(at.min()) - 12, 0), int(at.max()) + 13) for at in np.nonzero(holes))
    if not from_[box].any():
        box = tuple(slice(None) for _ in range(3))
    nearest = distance_transform_edt(~from_[box], return_distances=False, return_indices=True)
    result = labels.copy()
    part = result[box]
    part[holes[box]] = labels[box][tuple(nearest)][holes[box]]
    return result
