"""Parcels of the cortex as the original divides it: label and volume sums, slab by slab (reference 6.6 and 6.8)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from synthseg.inference.original.clean import normalise
from synthseg.inference.original.sums import RunningSums
from synthseg.inference.structures import CORTEX_VALUES


def divide_cortex(
    labels: np.ndarray,
    slabs: Iterable[tuple[int, np.ndarray]],
    inside: tuple[slice, slice, slice],
    values: np.ndarray,
    dtype: type[np.float32] | type[np.float64],
) -> tuple[np.ndarray, int]:
    """Replace 3 and 42 by the most probable parcel of either side, in place, and add the parcels up.

    Args:
        labels: [x, y, z] label values of the patch, after clean-up.
        slabs: (first plane, posteriors [n, Y, Z, C] float32) of the padded image, in ascending order; overwritten.
        inside: where the patch lies in the image.
        values: [C] label values of the parcels, background first.
        dtype: of the sums.
    Outside the cortex background is 1 before the posteriors are divided by their sum: what the parcels have there still
    counts in their volumes. The hemisphere of a parcel need not be that of the cortex, as in the original.

    Returns: sums [C - 1] in voxels; how many voxels of cortex no parcel has anything of: they become background, and in
        the original make every parcel's volume NaN.
    Source: reference 6.6 and 6.8.
    """
    sums = RunningSums(len(values) - 1, dtype)
    first, last = inside[0].start, inside[0].stop
    empty = 0
    for start, slab in slabs:
        low, high = max(start, first), min(start + len(slab), last)
        for number in range(low, high):
            plane = np.ascontiguousarray(slab[number - start, inside[1], inside[2]])
            found = labels[number - first]
            cortex = np.isin(found, list(CORTEX_VALUES.values()))
            plane[..., 0] = ~cortex
            empty += normalise(plane)
            sums.add(plane[..., 1:])
            found[cortex] = values[plane[cortex].argmax(axis=-1)]
    return sums.sums, empty
