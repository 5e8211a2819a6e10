"""Cleaned posteriors of several networks become one: by the most confident network, or by majority, voxel by voxel.

Posteriors stay sparse: only chunks of the voxels where any network sees foreground are ever dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from synthseg.errors import ShapeError
from synthseg.inference.config import Merge
from synthseg.inference.sparse import Piece, SparsePosteriors

CHUNK_VOXELS = 1 << 16
# How much of the mean of the posteriors goes into shares of votes: enough to part equal numbers of votes, too little to
# overrule a vote (of up to 99 networks).
TIE_SHARE = 0.01


def most_confident(members: np.ndarray) -> np.ndarray:
    """The posteriors of the network that is surest: of its largest posterior, background's included.

    Args:
        members: [N, C, n] float, every network's posteriors in n voxels.
    Returns: [C, n], of one network in each voxel. Of equally sure ones the first; of two networks the second.
    Source: reference A.8, step 5, with the tie rules of both its routines.
    """
    confidence = members.max(axis=1)
    last_wins = len(members) == 2
    winner = 1 - confidence[::-1].argmax(axis=0) if last_wins else confidence.argmax(axis=0)
    chosen: np.ndarray = members[winner, :, np.arange(members.shape[2])].T
    return chosen


def majority(members: np.ndarray) -> np.ndarray:
    """Shares of the networks' votes, each for the label of its largest posterior.

    Args:
        members: [N, C, n] float, every network's posteriors in n voxels.
    Returns: [C, n], summing to 1 over C. With :data:`TIE_SHARE` of the mean posteriors in it: of labels with as many
        votes the one with the larger mean wins.
    """
    votes = np.zeros(members.shape[1:], dtype=np.float32)
    voxels = np.arange(members.shape[2])
    for member in members:
        votes[member.argmax(axis=0), voxels] += 1
    votes *= (1 - TIE_SHARE) / len(members)
    votes += np.float32(TIE_SHARE) * members.mean(axis=0)
    return votes


def merge_cleaned(members: Sequence[SparsePosteriors], rule: Merge) -> SparsePosteriors:
    """One result of several networks' cleaned posteriors on the same grid.

    Args:
        rule: "max" (:func:`most_confident`) or "vote" (:func:`majority`). No pieces are taken out afterwards.
    Raises: ShapeError for posteriors on different grids or of different numbers of channels.
    """
    first = members[0]
    for other in members[1:]:
        if other.count != first.count or not other.grid.same_as(first.grid):
            found = f"{other.count} channels on {other.grid.shape} beside {first.count} on {first.grid.shape}"
            raise ShapeError("posteriors", found=found, fix="merge networks of one protocol, on one grid")
    start, shape = _union(members)
    moved = [_moved(member, start, shape) for member in members]
    anywhere = np.zeros(int(np.prod(shape)), dtype=bool)
    for pieces in moved:
        anywhere[pieces[0].index] = True
    index = np.flatnonzero(anywhere).astype(np.int32)
    del anywhere
    merge = most_confident if rule == "max" else majority
    pieces = _collected(_merged_chunks(moved, index, first.count, merge), first.count)
    return replace(first, pieces=pieces, start=start, shape=shape)


def _merged_chunks(
    members: Sequence[Sequence[Piece]], index: np.ndarray, count: int, merge: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Voxels [n], and their merged posteriors [C, n]; all the voxels ``index`` in ascending order."""
    for begin in range(0, len(index), CHUNK_VOXELS):
        chunk = index[begin : begin + CHUNK_VOXELS]
        yield chunk, merge(np.stack([_dense(pieces, chunk, count) for pieces in members]))


def _dense(pieces: Sequence[Piece], chunk: np.ndarray, count: int) -> np.ndarray:
    """Posteriors [C, n] in voxels of the box [n], neighbours in the list of all voxels where any network has some."""
    dense = np.zeros((count, len(chunk)), dtype=np.float32)
    dense[0] = 1  # where this network sees no foreground
    for piece in pieces:
        low, high = np.searchsorted(piece.index, (chunk[0], chunk[-1] + 1))
        where = np.searchsorted(chunk, piece.index[low:high])
        for channel, values in zip(piece.channels, piece.values, strict=True):
            dense[channel, where] = values[low:high]
    return dense


def _collected(chunks: Iterator[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[Piece, ...]:
    """A piece a channel: background wherever any network saw foreground, the others where they are not 0."""
    where: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in range(count)]
    values: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] for _ in range(count)]
    for chunk, posteriors in chunks:
        for channel, row in enumerate(posteriors):
            there = slice(None) if channel == 0 else np.flatnonzero(row)
            where[channel].append(chunk[there])
            values[channel].append(row[there].copy())  # a view would keep all channels of its chunk
    joined = [(np.concatenate(where[c]), np.concatenate(values[c])[None]) for c in range(count)]
    return tuple(Piece((c,), index, row) for c, (index, row) in enumerate(joined) if c == 0 or len(index))


def _union(members: Sequence[SparsePosteriors]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and shape of the box around the boxes of all that hold anything; any box if none does."""
    boxes = [m for m in members if len(m.pieces[0].index)] or members[:1]
    low = np.min([m.start for m in boxes], axis=0)
    high = np.max([np.add(m.start, m.shape) for m in boxes], axis=0)
    (i, j, k), (x, y, z) = low.tolist(), (high - low).tolist()
    return (i, j, k), (x, y, z)


def _moved(posteriors: SparsePosteriors, start: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[Piece, ...]:
    """The pieces with positions in another box, which holds their own."""
    by = np.subtract(posteriors.start, start)
    moved = []
    for piece in posteriors.pieces:
        voxel = np.unravel_index(piece.index, posteriors.shape)
        there = np.ravel_multi_index(tuple(axis + step for axis, step in zip(voxel, by, strict=True)), shape)
        moved.append(replace(piece, index=there.astype(np.int32)))
    return tuple(moved)
