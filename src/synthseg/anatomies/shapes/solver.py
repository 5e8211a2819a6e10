"""Velocities of a given divergence: which way tissue moves so that each of its parts gains or loses a given share.

The velocity is a potential's gradient within a domain whose border nothing crosses: div(m grad u) = s, with the
conductance m between two cells the smaller of their shares of the domain (finite volumes). What a cell gains is then
exactly what flows in, whatever the shape of the domain; tissue without a source is moved, not stretched in volume.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

_LEAST_CONDUCTANCE = 0.05  # cells with less of the domain are left out: they would only slow the solution down


def velocity_of(
    source: np.ndarray, domain: np.ndarray, spacing_mm: np.ndarray, *, tolerance: float = 1e-2
) -> np.ndarray:
    """Solve for the velocity by conjugate gradients.

    Args:
        source: [X, Y, Z] relative gain of volume a unit of time; it is balanced first, so that its sum over the domain
            is 0 (what one tissue gains another must lose).
        domain: [X, Y, Z] share of each cell that may move, 0 to 1; of several pieces, only the largest one does.
        spacing_mm: [3].
    Returns: [3, X, Y, Z] float32 mm a unit of time at cell centres; 0 outside the domain.
    """
    inside = _largest_piece(domain >= _LEAST_CONDUCTANCE)
    domain = np.where(inside, domain, 0.0).astype(np.float32)
    right = np.where(inside, source, 0).astype(np.float32)
    right -= np.where(inside, domain * (right.sum(dtype=np.float64) / max(domain.sum(dtype=np.float64), 1e-9)), 0)
    right = right.astype(np.float32)
    faces = [_faces(domain, axis, float(spacing_mm[axis])) for axis in range(3)]
    potential = _conjugate_gradients(right, faces, tolerance)
    velocity = np.zeros((3, *source.shape), dtype=np.float32)
    for axis, face in enumerate(faces):
        # flow through a face, in mm a unit of time; cells take the mean of their two faces
        flow = -face * np.diff(potential, axis=axis) * float(spacing_mm[axis])
        velocity[axis][_part(axis, 0, -1)] += flow / 2
        velocity[axis][_part(axis, 1, None)] += flow / 2
    return velocity / np.maximum(domain, 0.5)


def _largest_piece(inside: np.ndarray) -> np.ndarray:
    """An island could not balance what it gains, and the solution would never end."""
    pieces, count = label(inside)
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()) if count > 1 else inside


def _part(axis: int, start: int, stop: int | None) -> tuple[slice, ...]:
    return tuple(slice(start, stop) if a == axis else slice(None) for a in range(3))


def _faces(domain: np.ndarray, axis: int, spacing_mm: float) -> np.ndarray:
    return np.asarray(np.minimum(domain[_part(axis, 0, -1)], domain[_part(axis, 1, None)]) / spacing_mm**2)


def _apply(u: np.ndarray, faces: list[np.ndarray]) -> np.ndarray:
    """Minus the divergence of the conductances times the gradient."""
    result = np.zeros_like(u)
    for axis, face in enumerate(faces):
        flow = face * np.diff(u, axis=axis)
        result[_part(axis, 0, -1)] -= flow
        result[_part(axis, 1, None)] += flow
    return result


def _conjugate_gradients(right: np.ndarray, faces: list[np.ndarray], tolerance: float) -> np.ndarray:
    diagonal = np.zeros_like(right)
    for axis, face in enumerate(faces):
        diagonal[_part(axis, 0, -1)] += face
        diagonal[_part(axis, 1, None)] += face
    scale = np.where(diagonal > 0, 1 / np.maximum(diagonal, 1e-12), 0).astype(np.float32)
    u = np.zeros_like(right)
    residual = np.where(scale > 0, right, 0).astype(np.float32)
    step = scale * residual
    direction = step.copy()
    energy = float(np.vdot(residual, step))
    goal = tolerance**2 * energy
    for _ in range(4 * sum(right.shape)):
        if energy <= goal or energy == 0:
            break
        applied = _apply(direction, faces)
        length = np.float32(energy / max(float(np.vdot(direction, applied)), 1e-30))
        u += length * direction
        residual -= length * applied
        step = scale * residual
        energy, before = float(np.vdot(residual, step)), energy
        direction = step + np.float32(energy / before) * direction
    return u
