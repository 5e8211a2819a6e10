"""How the structures of a head lie to each other: by it a scan is told whose header mixes up directions or axes.

A segmentation of such a scan is not the same brain turned round: networks have seen heads turned by 15 degrees at
most, and put structures where they would be in an upright one, or where intensities fit. Their centres then fit no
turned head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST_STRUCTURES = 8  # fewer say nothing

# Centres of mass by label value: right, front, up, from their common centre, in units of their root mean square
# distance from it (30.3 to 33.7 mm). Mean over the 20 label maps that the shipped weights were trained on, each turned
# to fit the others, left and right made mirror images. No cortex: its centre hardly depends on how a head lies.
CENTRES: Mapping[int, tuple[float, float, float]] = {
    2: (-0.84, -0.14, 0.70),
    41: (0.84, -0.14, 0.70),
    4: (-0.43, 0.02, 0.63),
    43: (0.43, 0.02, 0.63),
    7: (-0.52, -0.87, -0.90),
    46: (0.52, -0.87, -0.90),
    8: (-0.71, -1.12, -1.06),
    47: (0.71, -1.12, -1.06),
    10: (-0.39, -0.04, 0.36),
    49: (0.39, -0.04, 0.36),
    11: (-0.47, 0.72, 0.61),
    50: (0.47, 0.72, 0.61),
    12: (-0.80, 0.54, 0.30),
    51: (0.80, 0.54, 0.30),
    13: (-0.64, 0.43, 0.23),
    52: (0.64, 0.43, 0.23),
    16: (0.00, -0.22, -0.73),
    17: (-0.77, -0.04, -0.21),
    53: (0.77, -0.04, -0.21),
    18: (-0.73, 0.50, -0.25),
    54: (0.73, 0.50, -0.25),
    28: (-0.34, 0.12, -0.04),
    60: (0.34, 0.12, -0.04),
}


@dataclass(frozen=True)
class Fit:
    """How well centres agree with those of label maps, once turned, scaled and moved onto them.

    Attributes:
        turned_deg: the angle of that turn.
        misfit: root mean square distance that is left, in units of the structures' distance from their centre.
    """

    turned_deg: float
    misfit: float


def fit_centres(centres_mm: Mapping[int, tuple[float, float, float]]) -> Fit | None:
    """Compare centres of mass (world millimetres: right, front, up), by label value, with :data:`CENTRES`.

    Left and right are never exchanged: who labels a mirrored head by where things are sees nothing wrong with it.

    Returns: None for fewer than :data:`LEAST_STRUCTURES` structures, or if all are in one place.
    Source: Umeyama 1991, least-squares similarity between two point sets, without reflection.
    """
    known = [value for value in CENTRES if value in centres_mm]
    if len(known) < LEAST_STRUCTURES:
        return None
    found = _normalised(np.array([centres_mm[value] for value in known], dtype=np.float64))
    wanted = _normalised(np.array([CENTRES[value] for value in known]))
    if found is None or wanted is None:
        return None
    left, singular, right = np.linalg.svd(found.T @ wanted)
    proper = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = (right.T * proper) @ left.T
    scale = float((singular * proper).sum() / np.square(found).sum())
    misfit = scale * found @ turn.T - wanted
    cosine = float(np.clip((np.trace(turn) - 1) / 2, -1, 1))
    return Fit(float(np.degrees(np.arccos(cosine))), float(np.sqrt(np.square(misfit).sum(axis=1).mean())))


def _normalised(points: np.ndarray) -> np.ndarray | None:
    """[n, 3] around their centre, root mean square distance 1; None where all are the same."""
    centred = points - points.mean(axis=0)
    size = float(np.sqrt(np.square(centred).sum(axis=1).mean()))
    return centred / size if size > 1e-9 else None
