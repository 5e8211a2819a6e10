"""How well two label maps agree: overlap and surface distance, as pure functions on arrays.

``synthseg.metrics.overlap`` needs numpy only; ``synthseg.metrics.surface`` imports scipy inside its functions.
"""

from synthseg.metrics.overlap import Overlap, dice, overlap, volume_similarity
from synthseg.metrics.surface import SurfaceDistances, nearest_distance, sd95, surface_distances

__all__ = [
    "Overlap",
    "SurfaceDistances",
    "dice",
    "nearest_distance",
    "overlap",
    "sd95",
    "surface_distances",
    "volume_similarity",
]
