"""Overlap of two label maps, for all labels at once from one joint histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.errors import LabelError, ShapeError

_TABLE_LIMIT = 1 << 20  # widest range of label values for which a look-up table is made


@dataclass(frozen=True)
class Overlap:
    """Voxel counts per label, ignored voxels left out; arrays [n] int64 in the order of ``values``."""

    values: np.ndarray
    both: np.ndarray  # voxels that carry the label in both maps
    predicted: np.ndarray
    truth: np.ndarray

    def dice(self) -> np.ndarray:
        """[n] float64; see :func:`dice`."""
        return _ratio(2 * self.both, self.predicted + self.truth)

    def volume_similarity(self) -> np.ndarray:
        """[n] float64; see :func:`volume_similarity`."""
        return 1 - _ratio(np.abs(self.predicted - self.truth), self.predicted + self.truth)


def overlap(
    predicted: np.ndarray, truth: np.ndarray, values: Sequence[int] | np.ndarray, *, ignore_value: int | None = None
) -> Overlap:
    """Count the voxels of each label in both maps and in each.

    Args:
        predicted, truth: integer label maps of one shape, any number of axes.
        values: [n] distinct label values, in any order; other values in the maps count as none of them.
        ignore_value: voxels where ``truth`` has this value are left out of both maps.
    Raises: ShapeError when the shapes differ; LabelError for non-integer maps and repeated values.
    """
    first, second = joint_indices(predicted, truth, values, ignore_value=ignore_value)
    return index_overlap(first, second, values)


def index_overlap(first: np.ndarray, second: np.ndarray, values: Sequence[int] | np.ndarray) -> Overlap:
    """:func:`overlap` of what :func:`joint_indices` returned for the same ``values``."""
    n = len(values)
    pairs = first.astype(np.int64, copy=False).ravel() * (n + 1) + second.ravel()
    histogram = np.bincount(pairs, minlength=(n + 1) ** 2).reshape(n + 1, n + 1)
    return Overlap(
        values=np.asarray(values, dtype=np.int64),
        both=histogram.diagonal()[1:].astype(np.int64),
        predicted=histogram.sum(axis=1)[1:].astype(np.int64),
        truth=histogram.sum(axis=0)[1:].astype(np.int64),
    )


def dice(
    predicted: np.ndarray, truth: np.ndarray, values: Sequence[int] | np.ndarray, *, ignore_value: int | None = None
) -> np.ndarray:
    """Dice coefficient 2 |A and B| / (|A| + |B|) per label, without any smoothing constant.

    A label absent from both maps gives NaN (there is nothing to compare); absent from one of them, 0.
    The original instead scored 0 for labels absent from both and added 1e-5 below (reference, section 7).

    Args and errors: as for :func:`overlap`.
    Returns: [n] float64 in 0..1 or NaN, in the order of ``values``.
    """
    return overlap(predicted, truth, values, ignore_value=ignore_value).dice()


def volume_similarity(
    predicted: np.ndarray, truth: np.ndarray, values: Sequence[int] | np.ndarray, *, ignore_value: int | None = None
) -> np.ndarray:
    """Volume similarity 1 - | |A| - |B| | / (|A| + |B|) per label: 1 for equal volumes wherever they lie.

    Absent from both maps: NaN; from one: 0.

    Args and errors: as for :func:`overlap`.
    Returns: [n] float64 in 0..1 or NaN.
    Source: Taha and Hanbury 2015, section 3.1.
    """
    return overlap(predicted, truth, values, ignore_value=ignore_value).volume_similarity()


def joint_indices(
    predicted: np.ndarray, truth: np.ndarray, values: Sequence[int] | np.ndarray, *, ignore_value: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both maps with each voxel's 1-based position in ``values``; 0 for other values and for ignored voxels.

    Raises: as :func:`overlap`.
    """
    if predicted.shape != truth.shape:
        fix = "bring both on one grid first (synthseg.volumes.resample.reslice)"
        raise ShapeError("label maps to compare", found=f"shapes {predicted.shape} and {truth.shape}", fix=fix)
    wanted = np.asarray(values, dtype=np.int64)
    if wanted.ndim != 1 or len(np.unique(wanted)) != len(wanted):
        raise LabelError("label values to compare", found=f"{wanted.tolist()}", fix="list each value once")
    first, second = _to_indices(predicted, wanted, "predicted"), _to_indices(truth, wanted, "truth")
    if ignore_value is not None:
        ignored = truth == ignore_value
        first[ignored], second[ignored] = 0, 0
    return first, second


def _to_indices(label_map: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    if label_map.dtype.kind not in "iub":
        found = f"an array of {label_map.dtype}"
        raise LabelError(f"{name} label map", found=found, fix="round it to integers first, knowing what you round")
    dtype = np.min_scalar_type(len(values))
    if not label_map.size or not len(values):
        return np.zeros(label_map.shape, dtype)
    low, high = int(label_map.min()), int(label_map.max())
    if high - low < _TABLE_LIMIT:
        table = np.zeros(high - low + 1, dtype)
        present = (values >= low) & (values <= high)
        table[values[present] - low] = np.flatnonzero(present) + 1
        # 64 bits before subtracting: int8 labels of -100 and 100 differ by more than int8 holds.
        return table[label_map.astype(np.int64) - low]
    order = np.argsort(values)
    place = np.searchsorted(values[order], label_map).clip(max=len(values) - 1)
    found_mask = values[order][place] == label_map
    return np.where(found_mask, order[place] + 1, 0).astype(dtype)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.full(len(denominator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
