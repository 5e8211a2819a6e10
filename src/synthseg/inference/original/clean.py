"""Clean-up of the structures' posteriors and their labels, as the original does it (reference 6.5). All in place."""

from __future__ import annotations

import numpy as np

from synthseg.inference.components import in_largest_component, largest_component
from synthseg.inference.structures import Channels

FOREGROUND = 0.25  # that the posteriors of all structures together exceed
CLASS = 0.25  # that one member of a topological class exceeds
CHANNEL = 0.2  # that a structure exceeds, where topology is left out


def keep_foreground(posteriors: np.ndarray) -> None:
    """Set all structures to 0 outside the largest face-connected piece of where together they exceed 0.25.

    Args:
        posteriors: [X, Y, Z, C] float32, overwritten; background (channel 0) is left as it is.
    Of pieces of one size the first in scan order counts. Source: reference 6.5, step 1.
    """
    mask = np.empty(posteriors.shape[:3], dtype=bool)
    for plane, there in zip(posteriors, mask, strict=True):
        np.greater(plane[..., 1:].sum(axis=-1), FOREGROUND, out=there)
    mask = largest_component(mask)
    for plane, there in zip(posteriors, mask, strict=True):
        plane[..., 1:] *= there[..., None]


def keep_topology(posteriors: np.ndarray, channels: Channels) -> None:
    """Set a class's structures to 0 outside the largest face-connected piece of where any of them exceeds 0.25.

    All masks are those before any class was cleaned. Class 0 (background, CSF) is left as it is.

    Source: reference 6.5, step 2.
    """
    classes = [int(group) for group in np.unique(channels.topology) if group > 0]
    members = [np.flatnonzero(channels.topology == group) for group in classes]
    found: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in classes]
    shape, area = posteriors.shape[:3], posteriors.shape[1] * posteriors.shape[2]
    for number, plane in enumerate(posteriors):
        voxels, over = np.nonzero((plane.reshape(area, -1) > CLASS) & (channels.topology > 0))
        groups = channels.topology[over]
        for pieces, group in zip(found, classes, strict=True):
            own = voxels[groups == group]
            first = np.diff(own, prepend=-1) > 0  # two members may exceed it in one voxel
            pieces.append(own[first] + number * area)
    kept: list[np.ndarray] = []
    for pieces in found:
        index = np.concatenate(pieces)
        pieces.clear()
        kept.append(index[in_largest_component(index, (shape[0], shape[1], shape[2]))])
    factor = np.empty((area, len(channels)), dtype=bool)
    for number, plane in enumerate(posteriors):
        factor[:] = channels.topology == 0
        for index, columns in zip(kept, members, strict=True):
            first, last = np.searchsorted(index, (number * area, (number + 1) * area))
            factor[(index[first:last] - number * area)[:, None], columns] = True
        plane *= factor.reshape(plane.shape)


def keep_channels(posteriors: np.ndarray) -> None:
    """Set every structure to 0 where it does not exceed 0.2. Source: reference 6.5, "Fast / robust"."""
    for plane in posteriors:
        plane[..., 1:] *= plane[..., 1:] > CHANNEL


def clean(posteriors: np.ndarray, inside: tuple[slice, slice, slice], channels: Channels, *, topology: bool) -> None:
    """Keep what the original keeps: connected pieces of the padded image, or, without topology, of what is inside.

    Args:
        posteriors: [X, Y, Z, C] float32 in the padded image, overwritten; outside ``inside`` they are then of no use.
    """
    if topology:
        keep_foreground(posteriors)
        keep_topology(posteriors, channels)
    else:
        keep_foreground(posteriors[inside])
        keep_channels(posteriors[inside])


def normalise(posteriors: np.ndarray) -> int:
    """Divide every voxel of [..., C] by its sum, in place. Returns: how many voxels had nothing left, not even
    background.

    These become background. In the original they are 0 / 0: its posteriors there are NaN, its label is background all
    the same (the first of all maxima), and every volume of the scan is NaN; here they count as nothing in the volumes.

    Source: reference 6.5, step 4.
    """
    total = posteriors.sum(axis=-1)
    empty = total == 0
    if (count := int(np.count_nonzero(empty))) > 0:
        posteriors[empty, 0] = 1
        total[empty] = 1
    posteriors /= total[..., None]
    return count
