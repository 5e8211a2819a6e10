"""A thicker cortex for maps that show hardly any: the outermost white matter becomes grey.

Atlas maps of young fetuses may have a ribbon one voxel thick, with gaps, where others of the same age label one of two
millimetres: how thick the cortex is at 22 weeks is a matter of convention. A network that has only seen the thin one
does not believe its image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthseg.anatomies.smooth import distance_to

CORTEX, WHITE, VENTRICLES, NUCLEI = 2, 3, 4, 6  # of FeTA
OUTSIDE = (0, 1)


def with_ribbon(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    thickness_mm: float | np.ndarray,
    *,
    reach_mm: float = 2.5,
    guard_mm: float = 2.0,
) -> np.ndarray:
    """Turn white matter at the brain's outer border into cortex, where the cortex is thinner than wanted.

    Args:
        labels: [X, Y, Z] values of FeTA, without extra-cerebral labels.
        thickness_mm: wanted, from the outermost voxel's outer face to the innermost one's inner face; may vary from
            voxel to voxel [X, Y, Z]. Cortex that is thicker stays.
        reach_mm: white matter farther from the cortex that there is stays: the brain's base has none.
        guard_mm: white matter nearer to ventricles and deep grey matter stays: the corpus callosum, a thin mantle.
    Returns: [X, Y, Z] int32; only white matter has changed, and only into cortex.
    """
    white = labels == WHITE
    # From the next voxel's centre outside to this one's: as much as from the outer face to this voxel's inner one.
    depth = distance_to(np.isin(labels, OUTSIDE), spacing_mm)
    near = distance_to(labels == CORTEX, spacing_mm) <= reach_mm
    free = distance_to(np.isin(labels, (VENTRICLES, NUCLEI)), spacing_mm) > guard_mm
    return np.where(white & (depth <= thickness_mm) & near & free, CORTEX, labels).astype(np.int32)
