"""Posteriors of a cleaned segmentation, kept where they are not 0: nearly everywhere only one or two structures are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from synthseg.inference.grids import Grid


@dataclass(frozen=True)
class Piece:
    """Channels that are not 0 in the same voxels.

    ``channels`` are ascending; ``index`` [n] int32 the voxels, as positions in the flattened box, ascending; ``values``
    [len(channels), n] float32.
    """

    channels: tuple[int, ...]
    index: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class SparsePosteriors:
    """Normalised posteriors of ``count`` channels in a box around the brain: outside it background is 1, the rest 0.

    The first piece covers the foreground and holds channel 0, background, among others; in the box's other voxels
    background is 1. The pieces after it lie inside the foreground. Every channel is in one piece at most; one in none
    is 0. The box is ``shape`` voxels from voxel ``start`` of ``grid``.
    """

    count: int
    pieces: tuple[Piece, ...]
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    grid: Grid

    @property
    def box(self) -> Grid:
        return self.grid.window(self.start, self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the box lies in an array of the whole grid."""
        x, y, z = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return x, y, z

    @property
    def foreground_mm3(self) -> float:
        """The volume of all that is not background, from the background's channel alone."""
        foreground = self.pieces[0]
        background = foreground.values[0].sum(dtype=np.float64)
        return float(len(foreground.index) - background) * self.grid.voxel_volume_mm3

    @property
    def voxels(self) -> np.ndarray:
        """Sum of every channel's posteriors over the box: [count] float64, in voxels."""
        # float64: the original's single-precision running sums come out up to 7e-4 too small (reference 6.8).
        sums = np.zeros(self.count)
        for piece in self.pieces:
            sums[list(piece.channels)] = piece.values.sum(axis=1, dtype=np.float64)
        sums[0] += np.prod(self.shape) - len(self.pieces[0].index)
        return sums

    def by_channel(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Channel, index [n] and values [n] of every channel but background that is somewhere, in ascending order."""
        rows = [(c, p.index, v) for p in self.pieces for c, v in zip(p.channels, p.values, strict=True)]
        yield from sorted((row for row in rows if row[0] > 0 and len(row[1]) > 0), key=lambda row: row[0])

    def channel(self, channel: int) -> np.ndarray:
        """One channel in the box: [x, y, z] float32."""
        data = np.full(self.shape, 1 if channel == 0 else 0, dtype=np.float32)
        for piece in self.pieces:
            if channel in piece.channels:
                data.reshape(-1)[piece.index] = piece.values[piece.channels.index(channel)]
        return data

    def dense(self) -> np.ndarray:
        """All channels in the box: [count, x, y, z] float32."""
        return np.stack([self.channel(channel) for channel in range(self.count)])


def labels_in_box(posteriors: SparsePosteriors, values: np.ndarray) -> np.ndarray:
    """``values`` [C] of the channel with the largest posterior, the lowest of equals: int32 [x, y, z] of the box."""
    labels = np.full(posteriors.shape, values[0], dtype=np.int32)
    foreground = posteriors.pieces[0]
    best = np.ones(labels.size, dtype=np.float32)
    best[foreground.index] = foreground.values[0]
    flat = labels.reshape(-1)
    for channel, index, some in posteriors.by_channel():  # ascending, and only what is larger wins: ties as promised
        better = some > best.take(index)
        won = index[better]
        flat[won] = values[channel]
        best[won] = some[better]
    return labels
