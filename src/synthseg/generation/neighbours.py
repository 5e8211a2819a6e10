"""Masks and their neighbourhoods: bounding boxes, and majority votes among 27 voxels. numpy only."""

from __future__ import annotations

import numpy as np


def box_of(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box with one voxel around it, where there is one."""
    box = []
    for axis, size in enumerate(mask.shape):
        present = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(present[0]) - 1, 0), min(int(present[-1]) + 2, size)))
    return tuple(box)


def majority(parts: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """The part that most of the 27 voxels around each voxel belong to, those outside the mask left out; ties stay."""
    votes = np.zeros(parts.shape, dtype=np.uint8)
    winner = parts
    for part in range(count):
        members = (parts == part) & mask
        # twice the count, and one more for the voxel's own part: no other part wins a tie
        own = 2 * _sum_of_27(members) + (parts == part)
        better = own > votes
        winner = np.where(better, np.uint8(part), winner)
        votes = np.where(better, own, votes)
    return winner


def _sum_of_27(members: np.ndarray) -> np.ndarray:
    summed = np.pad(members.astype(np.uint8), 1)
    for axis in range(3):
        size = summed.shape[axis]
        first, middle, last = (summed.take(np.arange(s, size - 2 + s), axis=axis) for s in range(3))
        summed = first + middle + last
    return summed
