"""Volumes as the original adds them up: voxel by voxel, in single precision (reference 6.8)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthseg.inference.structures import CORTEX_VALUES, CSF_VALUE, Channels, Structure

TOTAL = "total intracranial"
DECIMALS = 3


class RunningSums:
    """Sums by channel that grow by one voxel after the other, in scan order.

    In single precision these are not the sums that come of adding in pairs: they miss up to 7 parts in 10,000.

    Args:
        channels: how many.
        dtype: float32; float64 with a crop.
    """

    def __init__(self, channels: int, dtype: type[np.float32] | type[np.float64] = np.float32) -> None:
        self.sums = np.zeros(channels, dtype)

    def add(self, values: np.ndarray) -> None:
        """Add [..., C] in C order of its voxels."""
        rows = np.empty((1 + values[..., 0].size, len(self.sums)), self.sums.dtype)
        rows[0] = self.sums
        rows[1:] = values.reshape(-1, len(self.sums))
        if len(self.sums) == 1:  # along a single column numpy would add in pairs
            self.sums = np.add.accumulate(rows)[-1]
        else:
            self.sums = np.add.reduce(rows, axis=0)


def volume_table(
    sums: np.ndarray,
    channels: Channels,
    voxel_mm3: np.float32,
    parcel_sums: np.ndarray | None = None,
    parcels: Sequence[Structure] = (),
) -> dict[str, float | np.float32]:
    """Volumes in mm3 by column, rounded to 3 decimals: the total (where there is CSF), the structures, the parcels.

    Args:
        sums: [C - 1] of the structures, in voxels; their type is that of all that follows.
        parcel_sums: of the parcels, in voxels, scaled together so that they add up to the cortex of both sides.
    The total is numpy's sum of the structures' sums, in their type, before anything is multiplied by ``voxel_mm3`` or
    rounded. Values are numpy.float32, or float where the sums are in double precision.

    Source: reference 6.8 and 6.9.
    """
    names = [structure.name for structure in channels.structures[1:]]
    voxels = sums
    if parcel_sums is not None:
        cortex = sums[np.isin(channels.values[1:], list(CORTEX_VALUES.values()))].sum()
        whole = parcel_sums.sum()
        share = parcel_sums * (cortex / whole) if whole > 0 else np.zeros_like(parcel_sums)
        voxels = np.concatenate([voxels, share.astype(sums.dtype)])
        names += [structure.name for structure in parcels]
    if CSF_VALUE in channels.values:  # 1.0 has none, and no total
        voxels = np.concatenate([sums.sum(keepdims=True), voxels])
        names.insert(0, TOTAL)
    rounded = np.around(voxels * voxels.dtype.type(voxel_mm3), DECIMALS)
    values = list(rounded) if rounded.dtype == np.float32 else [float(value) for value in rounded]
    return dict(zip(names, values, strict=True))
