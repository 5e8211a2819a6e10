"""Every measure of agreement by name, for all labels of two maps at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from synthseg.errors import ConfigError
from synthseg.metrics.overlap import index_overlap, joint_indices
from synthseg.metrics.surface import Separation, index_separations, steps_of

# Name -> unit, "" for a ratio. Definitions: the functions of the same names, and docs/evaluate.md.
METRICS = {
    "dice": "",
    "sd95": "mm",
    "mean_distance": "mm",
    "hausdorff": "mm",
    "surface_dice": "",
    "volume_similarity": "",
    "volume_predicted": "mm3",
    "volume_truth": "mm3",
}
SURFACE_METRICS = frozenset({"sd95", "mean_distance", "hausdorff", "surface_dice"})  # most of the time is theirs


def measure(
    predicted: np.ndarray,
    truth: np.ndarray,
    values: Sequence[int] | np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    metrics: Collection[str] = tuple(METRICS),
    tolerance_mm: float = 1.0,
    ignore_value: int | None = None,
) -> dict[str, np.ndarray]:
    """Measure the agreement of two label maps, label by label.

    Args:
        predicted, truth: integer label maps of one shape.
        values: [n] distinct label values.
        spacing_mm: voxel sizes or steps, see :func:`synthseg.metrics.surface.surface_distances`.
        metrics: names of :data:`METRICS`; the surfaces are looked at only if one of them needs it.
        tolerance_mm: of ``surface_dice``.
        ignore_value: voxels where ``truth`` has this value belong to no label, in either map.
    Returns: by metric, in the order of :data:`METRICS`: [n] float64, ratios, mm or mm3.
    Raises: ConfigError for an unknown metric; ShapeError and LabelError as the functions for one metric.
    """
    check_metrics(metrics)
    steps = steps_of(predicted, truth, spacing_mm)
    first, second = joint_indices(predicted, truth, values, ignore_value=ignore_value)
    counts = index_overlap(first, second, values)
    voxel_mm3 = abs(float(np.linalg.det(steps)))
    found = {
        "dice": counts.dice(),
        "volume_similarity": counts.volume_similarity(),
        "volume_predicted": counts.predicted * voxel_mm3,
        "volume_truth": counts.truth * voxel_mm3,
    }
    if not SURFACE_METRICS.isdisjoint(metrics):
        apart = [_summed_up(each, tolerance_mm) for each in index_separations(first, second, len(values), steps)]
        table = np.array(apart, dtype=np.float64).reshape(len(values), 4)
        found |= dict(zip(("mean_distance", "sd95", "hausdorff", "surface_dice"), table.T, strict=True))
    return {name: found[name] for name in METRICS if name in metrics}


def check_metrics(names: Collection[str]) -> None:
    """Raises: ConfigError for an empty list of metrics, one named twice, and unknown ones."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names or len(set(names)) != len(names):
        fix = f"choose from {', '.join(METRICS)}, each once"
        raise ConfigError("metrics", found=", ".join(unknown or names) or "none", fix=fix)


def _summed_up(apart: Separation, tolerance_mm: float) -> tuple[float, ...]:
    return (*apart.distances(), apart.within(tolerance_mm))
