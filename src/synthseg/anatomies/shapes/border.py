"""The fluid around the brain, and the size of the head: edits that move the outermost border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from synthseg.anatomies.shapes.field import LabelReader, smooth_noise
from synthseg.anatomies.shapes.roles import BACKGROUND, ShapeRoles
from synthseg.anatomies.shapes.tidy import filled

_SMOOTH_MM = 3.0  # of the distance by which the border moves: fissures are filled before bulges grow
_NOISE_MM, _WAVES_MM = 0.5, 12.0  # how unevenly it moves: standard deviation, and that of the noise's smoothing
_LEAST_CSF = 0.1  # share of the external CSF that stays


def move_border(
    labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, factor: float, *, rng: torch.Generator
) -> np.ndarray:
    """More or less CSF around the brain, the brain as it is.

    More: a layer of CSF replaces what lies around, also where a map shows none. Less: CSF gives way to what lies around
    it, from outside, until a tenth of it is left.

    Args:
        labels: [X, Y, Z] values.
        factor: on the volume of the brain and its CSF together.
    Raises: LabelError if the protocol has no CSF.
    """
    roles.require("csf", "external-csf")
    inner = roles.brain(labels)
    wanted = round(factor * int(np.count_nonzero(inner))) - int(np.count_nonzero(inner))
    if wanted == 0 or not inner.any():
        return labels
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    csf = roles.mask(labels, "csf")
    away = distance_transform_edt(~inner if wanted > 0 else inner, sampling=spacing)
    rank = gaussian_filter(away, _SMOOTH_MM / spacing) + _NOISE_MM * smooth_noise(
        labels.shape, _WAVES_MM / spacing, rng
    )
    if wanted > 0:
        chosen = _lowest(rank, ~inner, wanted)
        if csf.any():
            return filled(labels, chosen, csf)
        return np.where(chosen, np.asarray(roles.values["csf"][0], dtype=labels.dtype), labels)
    chosen = _lowest(rank, csf, min(-wanted, int((1 - _LEAST_CSF) * np.count_nonzero(csf))))
    return filled(labels, chosen, roles.mask(labels, BACKGROUND, "outside"))


def _lowest(rank: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` voxels of a mask with the lowest rank."""
    chosen = np.zeros(where.shape, dtype=bool)
    flags = np.zeros(int(np.count_nonzero(where)), dtype=bool)
    flags[np.argsort(rank[where], kind="stable")[: min(count, len(flags))]] = True
    chosen[where] = flags
    return chosen


def scale_head(labels: np.ndarray, factor: float) -> np.ndarray:
    """The whole map larger or smaller, about the middle of what it shows; nothing of it may leave the map.

    Args:
        labels: [X, Y, Z] values.
        factor: on every volume; at most :func:`largest_size`.
    """
    middle = [(int(at.min()) + int(at.max())) / 2 for at in np.nonzero(labels)]
    scale = factor ** (1 / 3)
    # What reaches the map's border ends half a voxel beyond the last voxel's centre.
    lines = [(np.arange(n) - m) / scale + m for n, m in zip(labels.shape, middle, strict=True)]
    outside = [(line < -0.5) | (line > n - 0.5) for line, n in zip(lines, labels.shape, strict=True)]
    result = LabelReader(labels).at([np.asarray(p, dtype=np.float32) for p in np.meshgrid(*lines, indexing="ij")])
    beyond = outside[0][:, None, None] | outside[1][None, :, None] | outside[2][None, None, :]
    return np.where(beyond, labels.dtype.type(0), result)


def largest_size(labels: np.ndarray) -> float:
    """The largest factor on volumes that keeps everything within the map, or 1 where it ends at the map's border."""
    room = []
    for at, n in zip(np.nonzero(labels), labels.shape, strict=True):
        low, high = int(at.min()), int(at.max())
        room.append((min((low + high) / 2, n - 1 - (low + high) / 2) + 0.5) / ((high - low + 1) / 2))
    return max(1.0, min(room) ** 3)
