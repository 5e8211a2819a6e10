"""Posteriors on the working grid become cleaned, normalised posteriors on the 1 mm grid, and labels on any grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from synthseg.inference.axes import AxisMap, axis_maps, box_of, mix
from synthseg.inference.collect import Collector
from synthseg.inference.components import largest_component
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.sparse import SparsePosteriors, labels_in_box
from synthseg.inference.structures import Channels
from synthseg.volumes import reslice

__all__ = ["clean_posteriors", "labels_on", "largest_component", "posteriors_on"]

Part = tuple[slice, slice, slice]
Found = tuple[int, Part, np.ndarray]  # a channel, where it is, and its posteriors there
NEGLIGIBLE = 1e-8  # posteriors that interpolation leaves out: six times smaller than the rounding of those near 1


def clean_posteriors(
    posteriors: np.ndarray, padded: Grid, fine: Grid, channels: Channels, config: InferenceConfig
) -> SparsePosteriors:
    """Bring posteriors to the 1 mm grid, keep the brain's connected pieces, normalise.

    1. The foreground is the largest piece of where all channels but background together exceed
       ``foreground_threshold``; outside it these channels become 0.
    2. With ``topology``: every topology group is kept in the largest piece of where any member exceeds
       ``class_threshold``; channels of group 0 (CSF) are left alone. Without: every channel is kept where it exceeds
       ``channel_threshold``.
    3. Every voxel is divided by its sum; where that is 0 it becomes background.

    Args:
        posteriors: [C, X, Y, Z] float32 on ``padded``.
        fine: the grid of the result.
    Raises: ShapeError for grids that are turned against each other.
    Source: reference 6.5. Interpolation comes first because the thresholds and components are defined at 1 mm.
    """
    collector = Collector(padded, fine, channels, config)
    collector.add(0, torch.from_numpy(posteriors).permute(1, 2, 3, 0))
    return collector.finish()


def labels_on(posteriors: SparsePosteriors, target: Grid, values: np.ndarray) -> np.ndarray:
    """``values`` [C] of the winning channel at every voxel of ``target``: int32 [X, Y, Z].

    On the posteriors' own grid the winner is their argmax; on any other grid they are interpolated (linear) first.
    """
    labels = np.full(target.shape, values[0], dtype=np.int32)
    if target.same_as(posteriors.grid):
        labels[posteriors.slices] = labels_in_box(posteriors, values)
        return labels
    slices, part = _reach(posteriors.box, target)
    reached = labels[slices]
    for where, found in _interpolated(posteriors, part):
        _write_winners(reached[where], found, values)
    return labels


def _write_winners(labels: np.ndarray, found: Iterable[Found], values: np.ndarray) -> None:
    """Write the winners' values into [x, y, z], where background's value is already."""
    best = np.zeros(labels.shape, dtype=np.float32)
    total = np.zeros(labels.shape, dtype=np.float32)
    for channel, where, some in found:
        total[where] += some
        np.copyto(labels[where], values[channel], where=some > best[where])
        np.maximum(best[where], some, out=best[where])
    # Background is what is left: it is 1 outside the box, where the box itself would be read as 0.
    np.subtract(1, total, out=total)
    np.copyto(labels, values[0], where=total >= best)


def posteriors_on(posteriors: SparsePosteriors, target: Grid) -> np.ndarray:
    """All posteriors at every voxel of ``target``: float32 [C, X, Y, Z]."""
    result = np.zeros((posteriors.count, *target.shape), dtype=np.float32)
    result[0] = 1
    if target.same_as(posteriors.grid):
        for channel, data in enumerate(result):
            data[posteriors.slices] = posteriors.channel(channel)
        return result
    slices, part = _reach(posteriors.box, target)
    for where, found in _interpolated(posteriors, part):
        for channel, window, some in found:
            result[channel][slices][where][window] = some
    total = np.zeros(target.shape, dtype=np.float32)
    for data in result[1:]:
        total += data
    np.maximum(np.subtract(1, total, out=total), 0, out=result[0])
    return result


def _interpolated(posteriors: SparsePosteriors, target: Grid) -> Iterator[tuple[Part, Iterable[Found]]]:
    """Channels but background on ``target``, in parts of it: where, and what is there, channels in ascending order.

    Every part comes once. Where a channel does not come, its posterior is 0. Read each part before the next one.
    """
    maps = axis_maps(posteriors.box, target)
    if maps is not None:
        yield from _plane_by_plane(posteriors, maps)
    else:
        yield (slice(None), slice(None), slice(None)), _at_an_angle(posteriors, target)


def _at_an_angle(posteriors: SparsePosteriors, target: Grid) -> Iterator[Found]:
    """Channels on a grid with other axes: each in the box where it is, a voxel of zeros around it."""
    for channel, index, _ in posteriors.by_channel():
        occupied = np.unravel_index(index, posteriors.shape)
        start = [max(0, int(axis.min()) - 1) for axis in occupied]
        stop = [min(n, int(axis.max()) + 2) for axis, n in zip(occupied, posteriors.shape, strict=True)]
        x, y, z = (slice(a, b) for a, b in zip(start, stop, strict=True))
        source = posteriors.box.window(start, [b - a for a, b in zip(start, stop, strict=True)])
        where, part = _reach(source, target)
        data = posteriors.channel(channel)[x, y, z]
        yield channel, where, reslice(data, source.affine, part.shape, part.affine, order=1)


def _plane_by_plane(
    posteriors: SparsePosteriors, maps: tuple[AxisMap, AxisMap, AxisMap]
) -> Iterator[tuple[Part, Iterable[Found]]]:
    """As :func:`_interpolated` between grids with the same axes: no channel is ever there as a whole."""
    channels = [_Planes(*found, posteriors.shape, maps[1], maps[2]) for found in posteriors.by_channel()]
    channels = [one for one in channels if one.is_seen]
    x = maps[0]
    for plane in range(x.first, x.stop):
        yield (slice(plane, plane + 1), slice(None), slice(None)), _between(channels, *x.at(plane))


def _between(channels: list[_Planes], low: int, high: int, rest: float, weight: float) -> Iterator[Found]:
    """What channels are between two planes of the box."""
    for one in channels:
        first, second = one.plane(low), one.plane(high)
        if first is not None and second is not None:
            values = mix(first, second, rest, weight)
        elif first is not None:
            values = first * rest
        elif second is not None:
            values = second * weight
        else:
            continue
        yield one.channel, (slice(None), one.y, one.z), values[None]


class _Planes:
    """One channel's planes, interpolated along y and z; asked for in ascending order, the last two are kept.

    ``y`` and ``z`` are the target's rows and columns where the channel may be.
    """

    def __init__(
        self, channel: int, index: np.ndarray, values: np.ndarray, box: tuple[int, int, int], y: AxisMap, z: AxisMap
    ) -> None:
        self.channel = channel
        seen = values > NEGLIGIBLE
        index, self._values = index[seen], values[seen]
        size = box[1] * box[2]
        self._begin = np.searchsorted(index, np.arange(box[0] + 1) * size).tolist()
        for plane, (begin, end) in enumerate(zip(self._begin, self._begin[1:], strict=False)):
            index[begin:end] -= plane * size
        self._index = index  # in the flattened plane
        self._box = box[1:]
        occupied = np.zeros(self._box, dtype=bool)
        occupied.reshape(-1)[index] = True
        self._maps = y, z
        rows, columns = box_of(occupied)
        self.y, self.z = y.reached(rows.start, rows.stop), z.reached(columns.start, columns.stop)
        self._made: dict[int, np.ndarray] = {}

    @property
    def is_seen(self) -> bool:
        """Whether the target has any voxel where the channel is."""
        return self.y.stop > self.y.start and self.z.stop > self.z.start

    def plane(self, x: int) -> np.ndarray | None:
        """Plane ``x`` of the box at the rows ``y`` and columns ``z``; None where the channel is not."""
        begin, end = self._begin[x], self._begin[x + 1]
        if begin == end:
            return None
        if x not in self._made:
            data = np.zeros(self._box, dtype=np.float32)
            data.reshape(-1)[self._index[begin:end]] = self._values[begin:end]
            y, z = self._maps
            rows, columns = y.read(self.y), z.read(self.z)
            along_z = z.along(data[rows, columns], 1, self.z, columns.start)
            self._made = {n: made for n, made in self._made.items() if n == x - 1}
            self._made[x] = y.along(along_z, 0, self.y, rows.start)
        return self._made[x]


def _reach(box: Grid, target: Grid) -> tuple[Part, Grid]:
    """The part of ``target`` that a box of voxels reaches, at least one voxel: its slices and its grid."""
    corners = np.array(np.meshgrid(*[(-1, n) for n in box.shape], indexing="ij")).reshape(3, -1)
    to_target = np.linalg.inv(target.affine) @ box.affine
    voxels = to_target[:3, :3] @ corners + to_target[:3, 3:]
    top = np.asarray(target.shape)
    low = np.clip(np.floor(voxels.min(axis=1)), 0, top - 1).astype(int)
    high = np.clip(np.ceil(voxels.max(axis=1)) + 1, low + 1, top).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (x, y, z), target.window(low.tolist(), (high - low).tolist())
