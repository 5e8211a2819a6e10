"""What of the posteriors can survive their clean-up, gathered plane by plane, and the clean-up itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from synthseg.inference.components import in_largest_component
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.sparse import Piece, SparsePosteriors
from synthseg.inference.structures import Channels

BOX_MARGIN_VOX = 2  # one would do for linear interpolation beyond the box; two leave room for rounding


@dataclass
class Group:
    """Channels that survive in the same voxels, where any of them exceeds ``threshold``.

    ``connected``: only in the largest piece of these voxels. ``index`` and ``values`` gather a plane's voxels [n] and
    posteriors [members, n] each; voxels are positions in the flattened fine grid.
    """

    members: list[int]
    threshold: float
    connected: bool
    index: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)


class Survivors:
    """What was kept of the planes so far."""

    def __init__(self, fine: Grid, channels: Channels, config: InferenceConfig) -> None:
        self.fine = fine
        self.count = len(channels)
        self.threshold = config.foreground_threshold
        topology = channels.topology.copy()
        topology[0] = 0  # background is what is left, whatever a protocol says of it
        if config.topology:
            self.free = np.flatnonzero(topology == 0).tolist()  # background and CSF: kept wherever there is foreground
            together = [np.flatnonzero(topology == group).tolist() for group in np.unique(topology[topology > 0])]
            self.groups = [Group(members, config.class_threshold, connected=True) for members in together]
        else:
            self.free = [0]
            self.groups = [Group([c], config.channel_threshold, connected=False) for c in range(1, self.count)]
        self.foreground = Group(self.free, config.foreground_threshold, connected=True)

    def keep(self, group: Group, plane: int, where: np.ndarray, values: np.ndarray) -> None:
        """``where`` [n] are positions in the flattened plane."""
        if len(where):
            x, y, z = self.fine.shape
            group.index.append((where + plane * (y * z)).astype(np.int32 if x * y * z < 2**31 else np.int64))
            group.values.append(values)

    def cleaned(self) -> SparsePosteriors:
        """Largest pieces of the foreground and of every group, in the foreground's box, normalised."""
        foreground = _joined(self.foreground)
        inside = in_largest_component(foreground.index, self.fine.shape)
        if not inside.any():
            return self._nothing()
        foreground = _chosen(foreground, inside)
        start, shape = _box(foreground.index, self.fine.shape)
        mask = np.zeros(int(np.prod(self.fine.shape)), dtype=bool)
        mask[foreground.index] = True
        pieces = [_in_box(foreground, self.fine.shape, start, shape)]
        for group in self.groups:
            piece = _joined(group)
            piece = _in_box(_chosen(piece, mask.take(piece.index)), self.fine.shape, start, shape)
            if group.connected:
                piece = _chosen(piece, in_largest_component(piece.index, shape))
            pieces.append(piece)
        normalise(pieces, shape)
        return SparsePosteriors(self.count, tuple(pieces), start, shape, self.fine)

    def _nothing(self) -> SparsePosteriors:
        nowhere = Piece((0,), np.zeros(0, np.int32), np.zeros((1, 0), np.float32))
        return SparsePosteriors(self.count, (nowhere,), (0, 0, 0), (1, 1, 1), self.fine)


def _joined(group: Group) -> Piece:
    """All planes of a group in one piece; what was gathered is given up."""
    if not group.index:
        return Piece(tuple(group.members), np.zeros(0, np.int32), np.zeros((len(group.members), 0), np.float32))
    piece = Piece(tuple(group.members), np.concatenate(group.index), np.concatenate(group.values, axis=1))
    group.index, group.values = [], []
    return piece


def _chosen(piece: Piece, chosen: np.ndarray) -> Piece:
    return piece if chosen.all() else Piece(piece.channels, piece.index[chosen], piece.values[:, chosen])


def _box(index: np.ndarray, shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and shape of the box around voxels (ascending), with its margin, within the grid."""
    row, z = index // shape[2], index % shape[2]
    y = row % shape[1]
    low = (int(row[0]) // shape[1], int(y.min()), int(z.min()))
    high = (int(row[-1]) // shape[1], int(y.max()), int(z.max()))
    start = [max(0, n - BOX_MARGIN_VOX) for n in low]
    stop = [min(s, n + 1 + BOX_MARGIN_VOX) for n, s in zip(high, shape, strict=True)]
    return (start[0], start[1], start[2]), (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])


def _in_box(
    piece: Piece, full: tuple[int, int, int], start: tuple[int, int, int], shape: tuple[int, int, int]
) -> Piece:
    """Positions in the flattened box instead of the flattened grid; all voxels lie in the box."""
    x, y = np.divmod(np.arange(full[0] * full[1]), full[1])
    rows = ((x - start[0]) * shape[1] + y - start[1]) * shape[2] - start[2]  # where a grid's row begins in the box
    shift = (rows - np.arange(len(rows)) * full[2]).astype(piece.index.dtype)
    return Piece(piece.channels, (piece.index + shift.take(piece.index // full[2])).astype(np.int32), piece.values)


def normalise(pieces: list[Piece], shape: tuple[int, int, int]) -> None:
    """Divide by the sum over all channels, in place; where every channel is 0 the voxel becomes background.

    The first piece holds background, in row 0, and covers the others.
    """
    foreground, *others = pieces
    total = np.zeros(int(np.prod(shape)), dtype=np.float32)
    total[foreground.index] = foreground.values.sum(axis=0)
    for piece in others:
        total[piece.index] += piece.values.sum(axis=0)
    empty = foreground.index[~(total.take(foreground.index) > 0)]
    total[empty] = 1
    for piece in pieces:
        piece.values[:] /= total.take(piece.index)
    if len(empty):
        foreground.values[0][np.isin(foreground.index, empty)] = 1
