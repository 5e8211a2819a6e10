"""Posteriors of the working grid, taken in slab by slab, become cleaned posteriors on the grid of the results.

What is kept of a slab is what can survive the clean-up: the foreground's voxels, background and CSF in them, and the
members of a topology group where one of them is above the threshold. All of it is a small part of all posteriors, and
where the grids' voxels do not coincide, only that part is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthseg.errors import ShapeError
from synthseg.inference.axes import AxisMap, axis_maps, box_of, ends, mix
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.sparse import SparsePosteriors
from synthseg.inference.structures import Channels
from synthseg.inference.survivors import Survivors

_CHUNK_BYTES = 8 << 20  # of a slab at a time on the CPU: what is cut out of it stays in the cache


class Collector:
    """Cleans up the posteriors of one scan; :func:`synthseg.inference.postprocess.clean_posteriors` says what that is.

    Args:
        padded: the working grid, on which the posteriors come.
        fine: the grid of the result, its axes along those of ``padded``.
    The work is done on the CPU; where voxels coincide, only the foreground's leave a GPU.
    Raises: ShapeError for grids that are turned against each other.
    """

    def __init__(self, padded: Grid, fine: Grid, channels: Channels, config: InferenceConfig) -> None:
        self._kept = Survivors(fine, channels, config)
        self._next = 0
        self._depth = padded.shape[0]
        self._of_plane = (*padded.shape[1:], len(channels))
        start = padded.start_of(fine)
        if start is not None:
            self._reader: _Cutter | _Interpolator = _Cutter(start, self._kept)
            return
        maps = axis_maps(padded, fine)
        if maps is None:
            found = "a working grid and a 1 mm grid that are turned against each other"
            raise ShapeError("posteriors", found=found, fix="use grids with the same axes")
        self._reader = _Interpolator(maps, self._kept)

    def add(self, start: int, slab: Tensor) -> None:
        """Take in planes ``start`` to ``start + n - 1`` of the working grid, each once, in ascending order.

        Args:
            slab: [n, Y, Z, C] float32 posteriors, smoothed; not kept and not changed. Any device.
        Raises: ShapeError if planes were left out or come twice, or are not those of the working grid.
        """
        if tuple(slab.shape[1:]) != self._of_plane:
            found = f"a slab of shape {tuple(slab.shape)}"
            raise ShapeError("posteriors", found=found, fix=f"add slabs whose planes are {self._of_plane}")
        if start != self._next:
            found = f"planes from {start} on after {self._next} planes"
            raise ShapeError("posteriors", found=found, fix="add slabs in ascending order, each once")
        self._next += len(slab)
        if len(slab):
            self._reader.add(start, slab.detach().float())

    def finish(self) -> SparsePosteriors:
        """The cleaned posteriors. Raises: ShapeError if planes are missing."""
        if self._next != self._depth:
            found = f"{self._next} of {self._depth} planes"
            raise ShapeError("posteriors", found=found, fix="add all slabs before finish()")
        return self._kept.cleaned()


class _Cutter:
    """Planes of a working grid whose voxels coincide with the fine grid's: nothing is interpolated."""

    def __init__(self, start: tuple[int, int, int], kept: Survivors) -> None:
        self._start = start
        self._kept = kept

    def add(self, start: int, slab: Tensor) -> None:
        x, y, z = self._start
        nx, ny, nz = self._kept.fine.shape
        begin, end = max(start, x), min(start + len(slab), x + nx)
        step = len(slab)
        if slab.device.type == "cpu":
            step = max(1, _CHUNK_BYTES // (slab[0].numel() * slab.element_size()))
        for first in range(begin, end, step):
            chunk = slab[first - start : min(first + step, end) - start].contiguous()
            masks = (_sums(chunk) > self._kept.threshold)[:, y : y + ny, z : z + nz]
            for plane, (voxels, mask) in enumerate(zip(chunk, masks, strict=True), start=first - x):
                where = np.flatnonzero(mask)
                if len(where):
                    source = (where // nz + y) * voxels.shape[1] + where % nz + z
                    self._reduce(plane, where, _columns(voxels.flatten(0, 1), source))

    def _reduce(self, plane: int, where: np.ndarray, columns: np.ndarray) -> None:
        """Keep what may survive of a plane's foreground: voxels [n], all posteriors [C, n]."""
        kept = self._kept
        kept.keep(kept.foreground, plane, where, columns[kept.free])
        for group in kept.groups:
            above = columns[group.members[0]] > group.threshold
            for member in group.members[1:]:
                above |= columns[member] > group.threshold
            chosen = np.flatnonzero(above)
            if len(chosen):
                kept.keep(group, plane, where[chosen], columns[group.members][:, chosen])


def _sums(slab: Tensor) -> np.ndarray:
    """Sum of all channels but background: [n, Y, Z, C] -> [n, Y, Z] on the CPU."""
    if slab.device.type != "cpu":
        return slab[..., 1:].sum(-1).cpu().numpy()
    structures = np.ones(slab.shape[-1], dtype=np.float32)
    structures[0] = 0
    # of all ways to sum a short last axis the fastest that needs no threads, which for so little work cost more
    sums: np.ndarray = np.einsum("nc,c->n", slab.flatten(0, 2).numpy(), structures)
    return sums.reshape(slab.shape[:3])


def _columns(rows: Tensor, where: np.ndarray) -> np.ndarray:
    """Some rows of [n, C], as columns: [C, len(where)] on the CPU."""
    if rows.device.type != "cpu":
        return rows[torch.from_numpy(where).to(rows.device)].t().contiguous().cpu().numpy()
    return np.ascontiguousarray(rows.numpy().take(where, axis=0).T)


@dataclass(frozen=True)
class _Plane:
    """A plane of the working grid: posteriors [C, Y, Z], the sum of all but background [1, Y, Z], and for every group
    the rows and columns [Y] and [Z] in which a member is above the threshold.
    """

    data: np.ndarray
    sums: np.ndarray
    rows: list[np.ndarray]
    columns: list[np.ndarray]


class _Interpolator:
    """Planes of a working grid of other voxels. A fine plane is made as soon as both its neighbours are there."""

    def __init__(self, maps: tuple[AxisMap, AxisMap, AxisMap], kept: Survivors) -> None:
        self._x, self._y, self._z = maps
        self._kept = kept
        self._plane = self._x.first
        met = all(axis.stop > axis.first for axis in maps)  # whether any fine voxel lies in the field of view
        self._last = int(self._x.high[self._x.stop - 1]) if met else -1
        self._before: _Plane | None = None

    def add(self, start: int, slab: Tensor) -> None:
        for number, plane in enumerate(slab, start=start):
            if number > self._last:
                return  # the fine grid ends before this plane
            current = self._read(plane.cpu())
            while self._plane < self._x.stop and self._x.high[self._plane] <= number:
                low, _, *shares = self._x.at(self._plane)
                first = current if low == number or self._before is None else self._before
                self._reduce(self._plane, first, current, shares)
                self._plane += 1
            self._before = current

    def _read(self, plane: Tensor) -> _Plane:
        # numpy, not torch: for so little work threads cost more than they bring
        data = np.array(plane.numpy().transpose(2, 0, 1), order="C")
        rows, columns = [], []
        for group in self._kept.groups:
            above = data[group.members[0]] > group.threshold
            for member in group.members[1:]:
                above |= data[member] > group.threshold
            rows.append(above.any(axis=1))
            columns.append(above.any(axis=0))
        return _Plane(data, data[1:].sum(axis=0, keepdims=True), rows, columns)

    def _reduce(self, plane: int, first: _Plane, second: _Plane, shares: list[float]) -> None:
        """Keep what may survive of a fine plane that lies between two planes of the working grid."""
        kept = self._kept
        foreground = np.zeros(kept.fine.shape[1:], dtype=bool)
        seen = slice(self._y.first, self._y.stop), slice(self._z.first, self._z.stop)
        foreground[seen] = self._between(first.sums, second.sums, [0], shares, *seen)[0] > kept.threshold
        where = np.flatnonzero(foreground)
        if len(where) == 0:
            return
        box = box_of(foreground)
        free = self._between(first.data, second.data, kept.free, shares, *box)
        kept.keep(kept.foreground, plane, where, free[:, foreground[box]])
        for number, group in enumerate(kept.groups):
            # Between voxels below the threshold nothing is above it: only what is next to one that is above counts.
            y = self._y.reached(*ends(first.rows[number] | second.rows[number]))
            z = self._z.reached(*ends(first.columns[number] | second.columns[number]))
            if y.start == y.stop or z.start == z.stop:
                continue
            found = self._between(first.data, second.data, group.members, shares, y, z)
            above = (found > group.threshold).any(axis=0)
            above &= foreground[y, z]
            r, c = np.nonzero(above)
            kept.keep(group, plane, (r + y.start) * foreground.shape[1] + c + z.start, found[:, r, c])

    def _between(
        self, first: np.ndarray, second: np.ndarray, members: list[int], shares: list[float], y: slice, z: slice
    ) -> np.ndarray:
        """Members [m, rows, columns] in a part of a fine plane, from its neighbours [C, Y, Z] on the working grid."""
        rows, columns = self._y.read(y), self._z.read(z)
        data = mix(first[members, rows, columns], second[members, rows, columns], *shares)
        return self._y.along(self._z.along(data, 2, z, columns.start), 1, y, rows.start)
