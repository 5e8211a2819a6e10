"""How well two label maps agree: overlap and surface distance, as pure functions on arrays.

``synthseg.metrics.overlap`` needs numpy only; ``synthseg.metrics.surface`` imports scipy inside its functions.
``measure`` computes any of :data:`METRICS` for all labels at once.
"""

from synthseg.metrics.measures import METRICS, SURFACE_METRICS, measure
from synthseg.metrics.overlap import Overlap, dice, overlap, volume_similarity
from synthseg.metrics.surface import (
    Separation,
    SurfaceDistances,
    nearest_distance,
    sd95,
    separation,
    surface_dice,
    surface_distances,
)

__all__ = [
    "METRICS",
    "SURFACE_METRICS",
    "Overlap",
    "Separation",
    "SurfaceDistances",
    "dice",
    "measure",
    "nearest_distance",
    "overlap",
    "sd95",
    "separation",
    "surface_dice",
    "surface_distances",
    "volume_similarity",
]
