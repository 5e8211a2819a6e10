"""A truth as tissue groups on a coarser grid: what the denoiser's output is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from synthseg.evaluation.agreement import grouped
from synthseg.volumes import Volume, bounding_box, resample_to_spacing, reslice

_MARGIN_VOX = 8  # around the labels: more than the blur before resampling reaches


def groups_on(
    truth: Volume,
    mapping: Mapping[int, int],
    shape: tuple[int, int, int],
    affine: np.ndarray,
    *,
    spacing_mm: float,
    ignore_value: int = 255,
    fill: bool = False,
) -> np.ndarray:
    """The group that has the largest share of each voxel of another grid.

    Every group's mask is resampled like a scan is (blurred against aliasing, linear), and the largest one wins; of
    equals the lowest.

    Args:
        truth: label map with values of ``mapping`` (others are background) and ``ignore_value``.
        shape, affine: the wanted grid, its voxels of ``spacing_mm``.
        fill: give ignored voxels the nearest group, so that a network sees a whole brain; otherwise voxels that are
            mostly ignored come out as ``ignore_value``.
    Returns: [*shape] int32.
    """
    box = bounding_box(truth.data > 0, margin=_MARGIN_VOX)
    cut = replace(truth, data=box.crop(truth.data), affine=box.affine(truth.affine))
    groups = grouped(cut.data, mapping, keep=ignore_value)
    if fill:
        from scipy.ndimage import distance_transform_edt

        holes = groups == ignore_value
        nearest = distance_transform_edt(holes, return_distances=False, return_indices=True)
        groups = groups[tuple(nearest)]
    values = [value for value in np.unique(groups).tolist() if value != 0]
    winner, best, total = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for value in values:
        coarse = resample_to_spacing(replace(cut, data=(groups == value).astype(np.float32)), spacing_mm, order=1)
        share = reslice(coarse.data, coarse.affine, shape, affine, order=1)
        winner[share > best] = value
        best, total = np.maximum(best, share), total + share
    winner[1 - total >= best] = 0
    return winner
