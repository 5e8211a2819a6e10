"""The corpus callosum: found by where it lies, where it has no label of its own, and thinned or taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt, label

from synthseg.anatomies.shapes.roles import ShapeRoles
from synthseg.anatomies.shapes.tidy import filled
from synthseg.errors import LabelError

_HALF_WIDTH = 0.06  # of the brain's width: how far from the midline the callosum is taken to reach
_BELOW = 0.16  # of the brain's height: a ventricle lies that close beneath the callosum, above the deep grey matter
_ENDS = 0.1  # of the brain's height: how far its ends go on where no ventricle lies beneath


def distance_from_midline(brain: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Signed distance of each voxel from the plane between the hemispheres, in mm, positive on the right.

    The plane through the middles of the brain's left-to-right lines, by least squares weighted with the lines' length:
    no labels of sides are needed.

    Args:
        brain: [X, Y, Z] bool, axes in RAS+ order.
    """
    lines = brain.any(axis=0)
    first, last = brain.argmax(axis=0)[lines], brain.shape[0] - 1 - brain[::-1].argmax(axis=0)[lines]
    row, column = np.nonzero(lines)
    middle = (first + last) / 2 * spacing_mm[0]
    weight = np.sqrt(last - first + 1.0)
    design = np.stack([np.ones(len(row)), row * spacing_mm[1], column * spacing_mm[2]], axis=1)
    (at, by_y, by_z), *_ = np.linalg.lstsq(design * weight[:, None], middle * weight, rcond=None)
    x, y, z = (np.arange(n) * float(s) for n, s in zip(brain.shape, spacing_mm, strict=True))
    plane = at + by_y * y[None, :, None] + by_z * z[None, None, :]
    return np.asarray((x[:, None, None] - plane) / np.sqrt(1 + by_y**2 + by_z**2), dtype=np.float32)


def find_callosum(labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles) -> np.ndarray:
    """The corpus callosum near the midline.

    Its label where the protocol has one and the map holds it. Otherwise white matter that bridges the hemispheres:
    close to the midline, with a ventricle close beneath it, and its ends, which bend down before and behind that.

    Args:
        labels: [X, Y, Z] values, axes in RAS+ order.
    Returns: [X, Y, Z] bool; empty where nothing of the kind is found (agenesis, or a map that ends below it).
    """
    brain = roles.brain(labels)
    named = roles.mask(labels, "callosum")
    if named.any() or not brain.any():
        return named
    away = np.abs(distance_from_midline(brain, spacing_mm))
    size_mm = [np.ptp(at) * float(s) for at, s in zip(np.nonzero(brain), spacing_mm, strict=True)]
    core = away <= max(float(spacing_mm[0]), 1.0)
    slab = away <= _HALF_WIDTH * size_mm[0]
    white = roles.mask(labels, "white") & slab
    reach = max(1, round(_BELOW * size_mm[2] / float(spacing_mm[2])))
    above = _just_above(roles.mask(labels, "ventricle") & slab, reach)
    candidates = white & above
    pieces, count = label(candidates, structure=np.ones((3, 3, 3)))
    if not count:
        return np.zeros(labels.shape, dtype=bool)
    crossing = np.bincount(pieces[core], minlength=count + 1)
    crossing[0] = 0
    if not crossing.any():
        return np.zeros(labels.shape, dtype=bool)
    bridge = _with_its_ends(pieces == crossing.argmax(), white & core, round(_ENDS * size_mm[2] / min(spacing_mm)))
    # What has none of the bridge beside it at the midline is the hemispheres' inner wall.
    seen = binary_dilation((bridge & core).any(axis=0))
    return np.asarray(white & seen[None])


def thin_callosum(
    labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, factor: float, *, rng: torch.Generator
) -> np.ndarray:
    """Leave a share of the callosum near the midline: thinner, shorter from behind, or none at all.

    What goes becomes the fluid nearest to it, most of it ventricle: without a callosum the third ventricle rides high.
    How much is taken from the back (as in partial agenesis) and how much from its surfaces (thinning) is random.

    Args:
        labels: [X, Y, Z] values, axes in RAS+ order.
        factor: share of its volume that is left, 0 (agenesis) to 1.
    Raises: LabelError if no callosum is found, or nothing fluid to put in its place.
    """
    callosum = find_callosum(labels, spacing_mm, roles)
    fluid = roles.mask(labels, "ventricle", "csf")
    if not callosum.any() or not fluid.any():
        what = "no callosum: no white matter above a ventricle between the hemispheres"
        fix = "leave the kind 'callosum' out for this map"
        raise LabelError("shapes: callosum", found=what if fluid.any() else "neither ventricles nor CSF", fix=fix)
    keep = round(factor * int(np.count_nonzero(callosum)))
    depth = distance_transform_edt(callosum, sampling=[float(s) for s in spacing_mm])[callosum]
    front = np.nonzero(callosum)[1].astype(np.float64)
    share = float(torch.rand((), generator=rng, device=rng.device))
    order = share * _ranked(front) + (1 - share) * _ranked(depth)
    holes = np.zeros(labels.shape, dtype=bool)
    gone = np.zeros(len(order), dtype=bool)
    gone[np.argsort(order, kind="stable")[: len(order) - keep]] = True
    holes[callosum] = gone
    return filled(labels, holes, fluid)


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 to 1, equal values alike."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts / 2)[place] / len(values))


def _with_its_ends(bridge: np.ndarray, midline: np.ndarray, steps: int) -> np.ndarray:
    """The bridge and the white matter of the midline that goes on from it: genu and splenium, which bend down."""
    grown = binary_dilation(bridge & midline, iterations=max(steps, 1), mask=midline)
    return np.asarray(bridge | grown)


def _just_above(mask: np.ndarray, reach: int) -> np.ndarray:
    """Voxels with the mask at most ``reach`` voxels beneath them (towards lower z)."""
    found = np.zeros_like(mask)
    for step in range(1, min(reach, mask.shape[2] - 1) + 1):
        found[:, :, step:] |= mask[:, :, :-step]
    return found
