"""Distances within label maps, in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

from synthseg.errors import ShapeError


def distance_inside(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """How far each voxel of a mask lies from the nearest voxel centre outside it.

    Args:
        mask: [X, Y, Z] bool. What is beyond the array counts as inside: a structure that the field of view cuts has no
            border there.
        spacing_mm: three voxel sizes.
    Returns: [X, Y, Z] float32 in mm, 0 outside the mask; infinite everywhere if nothing lies outside.
    Raises: ShapeError for a mask that is not three-dimensional.
    """
    if mask.ndim != 3:
        raise ShapeError("mask", found=f"shape {mask.shape}", fix="pass [X, Y, Z]")
    if mask.all():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    found: np.ndarray = distance_transform_edt(mask, sampling=[float(s) for s in spacing_mm])
    return found.astype(np.float32)
