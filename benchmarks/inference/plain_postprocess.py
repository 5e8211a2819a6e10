"""The clean-up as it was before it became sparse, word for word: yardstick of the benchmarks, reference of the tests.

Posteriors on the working grid become cleaned, normalised posteriors on the 1 mm grid, and labels on any grid. Every
channel is interpolated to the 1 mm grid in one dense array.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.structures import Channels
from synthseg.volumes import bounding_box, reslice

BOX_MARGIN_VOX = 2  # one would do for linear interpolation beyond the box; two leave room for rounding


@dataclass(frozen=True)
class Posteriors:
    """Normalised posteriors, kept only in a box around the brain: outside it background is 1 and the rest 0.

    ``data`` is [C, x, y, z] float32, ``start`` the box's first voxel on ``grid``.
    """

    data: np.ndarray
    start: tuple[int, int, int]
    grid: Grid

    @property
    def box(self) -> Grid:
        return self.grid.window(self.start, self.data.shape[1:])

    @property
    def foreground_mm3(self) -> float:
        """The volume of all that is not background, from the background's channel alone."""
        background = self.data[0].sum(dtype=np.float64)
        return float(self.data[0].size - background) * self.grid.voxel_volume_mm3

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the box lies in an array of the whole grid."""
        x, y, z = (slice(s, s + n) for s, n in zip(self.start, self.data.shape[1:], strict=True))
        return x, y, z


def clean_posteriors(
    posteriors: np.ndarray, padded: Grid, fine: Grid, channels: Channels, config: InferenceConfig
) -> Posteriors:
    """Bring posteriors to the 1 mm grid, keep the brain's connected pieces, normalise.

    Args:
        posteriors: [C, X, Y, Z] float32 on ``padded``.
        fine: the grid of the result.
    Source: reference 6.5. Interpolation comes first because the thresholds and components are defined at 1 mm. Only a
    box around the foreground is interpolated: everything outside is background by step 1.
    """
    foreground = bring_to(posteriors[1:].sum(axis=0, keepdims=True), padded, fine)[0]
    mask = largest_component(foreground > config.foreground_threshold)
    if not mask.any():
        nothing = np.zeros((len(channels), 1, 1, 1), dtype=np.float32)
        nothing[0] = 1
        return Posteriors(nothing, (0, 0, 0), fine)
    box = bounding_box(mask, BOX_MARGIN_VOX)
    data = bring_to(posteriors, padded, fine.window(box.start, box.shape))
    result = Posteriors(data, box.start, fine)
    data[1:] *= mask[result.slices]
    if config.topology:
        keep_topology(data, channels.topology, config.class_threshold)
    else:
        for channel in data[1:]:
            channel *= channel > config.channel_threshold
    normalise(data)
    return result


def bring_to(data: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """``data`` [C, ...] on ``target``: cut out exactly where voxels coincide, interpolated elsewhere. A new array."""
    move = np.linalg.inv(source.affine) @ target.affine
    start = move[:3, 3].round()
    aligned = np.allclose(move[:3, :3], np.eye(3), rtol=0, atol=1e-6) and np.allclose(move[:3, 3], start, atol=1e-4)
    if aligned and np.all(start >= 0) and np.all(start + target.shape <= source.shape):
        x, y, z = (slice(int(s), int(s) + n) for s, n in zip(start, target.shape, strict=True))
        return data[:, x, y, z].copy()
    return reslice(data, source.affine, target.shape, target.affine, order=1)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected piece of a boolean mask; of equal ones, the first in scan order. Empty stays empty."""
    if not mask.any():
        return mask.copy()
    box = bounding_box(mask)
    pieces = cc3d.connected_components(box.crop(mask), connectivity=6)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest = np.flatnonzero(sizes == sizes.max())
    chosen = largest[0]
    if len(largest) > 1:  # cc3d's numbering is its own affair
        chosen = pieces.ravel()[np.argmax(np.isin(pieces.ravel(), largest))]
    return box.uncrop(pieces == chosen)


def keep_topology(data: np.ndarray, topology: np.ndarray, threshold: float) -> None:
    """Keep, in place, the largest component of every topology group of ``data`` [C, x, y, z].

    A group's mask is where any member exceeds ``threshold``; outside its largest component all its members become 0.
    Group 0 (background, CSF) is left alone. Source: reference 6.5, step 2.
    """
    for group in np.unique(topology[topology > 0]):
        members = np.flatnonzero(topology == group)
        union = np.zeros(data.shape[1:], dtype=bool)
        for member in members:
            union |= data[member] > threshold
        kept = largest_component(union)
        for member in members:
            data[member] *= kept


def normalise(data: np.ndarray) -> None:
    """Divide [C, x, y, z] by its sum over C, in place; where every channel is 0 the voxel becomes background."""
    total = data.sum(axis=0)
    empty = ~(total > 0)
    total[empty] = 1
    data /= total
    data[0][empty] = 1


def argmax_channels(data: np.ndarray) -> np.ndarray:
    """Channel of the largest value of [C, x, y, z], the lowest one of equals. int32."""
    best = data[0].copy()
    winner = np.zeros(data.shape[1:], dtype=np.int32)
    for channel in range(1, len(data)):
        better = data[channel] > best
        winner[better] = channel
        best[better] = data[channel][better]
    return winner


def channels_on(posteriors: Posteriors, target: Grid) -> np.ndarray:
    """Winning channel at every voxel of ``target``: int32 [X, Y, Z].

    On the posteriors' own grid this is their argmax; on any other grid they are interpolated (linear) first.
    """
    winner = np.zeros(target.shape, dtype=np.int32)
    if target.same_as(posteriors.grid):
        winner[posteriors.slices] = argmax_channels(posteriors.data)
        return winner
    slices, part = _reach(posteriors, target)
    # Background is what is left: it is 1 outside the box, where the box itself would be read as 0.
    region = np.zeros(part.shape, dtype=np.int32)
    best = np.zeros(part.shape, dtype=np.float32)
    total = np.zeros(part.shape, dtype=np.float32)
    for channel in range(1, len(posteriors.data)):  # one at a time: never all posteriors on the target grid
        values = _interpolated(posteriors, channel, part)
        total += values
        better = values > best
        region[better] = channel
        best[better] = values[better]
    region[1 - total >= best] = 0
    winner[slices] = region
    return winner


def posteriors_on(posteriors: Posteriors, target: Grid) -> np.ndarray:
    """All posteriors at every voxel of ``target``: float32 [C, X, Y, Z]."""
    result = np.zeros((len(posteriors.data), *target.shape), dtype=np.float32)
    result[0] = 1
    if target.same_as(posteriors.grid):
        result[(slice(None), *posteriors.slices)] = posteriors.data
        return result
    slices, part = _reach(posteriors, target)
    for channel in range(1, len(result)):
        result[channel][slices] = _interpolated(posteriors, channel, part)
    result[0] = np.maximum(1 - result[1:].sum(axis=0), 0)
    return result


def _interpolated(posteriors: Posteriors, channel: int, target: Grid) -> np.ndarray:
    return reslice(posteriors.data[channel], posteriors.box.affine, target.shape, target.affine, order=1)


def _reach(posteriors: Posteriors, target: Grid) -> tuple[tuple[slice, slice, slice], Grid]:
    """The part of ``target`` that the posteriors' box reaches, at least one voxel: its slices and its grid."""
    box = posteriors.box
    corners = np.array(np.meshgrid(*[(-1, n) for n in box.shape], indexing="ij")).reshape(3, -1)
    to_target = np.linalg.inv(target.affine) @ box.affine
    voxels = to_target[:3, :3] @ corners + to_target[:3, 3:]
    top = np.asarray(target.shape)
    low = np.clip(np.floor(voxels.min(axis=1)), 0, top - 1).astype(int)
    high = np.clip(np.ceil(voxels.max(axis=1)) + 1, low + 1, top).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (x, y, z), target.window(low.tolist(), (high - low).tolist())
