"""Sections 6.4 (smoothing, flips, quality window), 6.5, 6.6, 6.8 and 6.9: everything around the networks.

Posteriors are [X, Y, Z, L] here, single precision where the original's are.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from original_reference_labels import CORTEX, PARCEL_VALUES, PARCELS, QUALITY_NAMES, Table

Array = np.ndarray[Any, Any]
FOREGROUND_THRESHOLD = 0.25
FAST_THRESHOLD = 0.2
QC_WINDOW = 224
QC_IGNORED_CHANNELS = (0, 24)  # channels, not labels: the original's slip, kept


def smoothing_kernel(sigma: float = 0.5) -> Array:
    """1-D weights of the posterior smoothing: [0.106507, 0.786986, 0.106507]."""
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def smooth(posteriors: Array) -> Array:
    """[L, X, Y, Z] -> the same, each channel filtered with zeros beyond the border (the dense kernel is separable)."""
    side, centre, _ = smoothing_kernel().astype(posteriors.dtype)
    for axis in (1, 2, 3):
        x = np.moveaxis(posteriors, axis, 0)
        out = x * centre
        out[1:] += side * x[:-1]
        out[:-1] += side * x[1:]
        posteriors = np.moveaxis(out, 0, axis)
    return posteriors


def flip_average(posteriors: Array, of_flipped: Array, partners: Array) -> Array:
    """[L, X, Y, Z] of the input and of the input flipped along its first axis -> their mean."""
    half = posteriors.dtype.type(0.5)
    return half * posteriors + half * of_flipped[:, ::-1][partners]


def one_hot(indices: Array, n: int) -> Array:
    """[X, Y, Z] -> [n, X, Y, Z]."""
    return np.stack([indices == i for i in range(n)])


def largest_component(mask: Array) -> Array:
    """Face connectivity; of equal ones the first in scan order; an empty mask stays empty."""
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def _foreground_only(posteriors: Array) -> None:
    """Step 1 of section 6.5, in place."""
    mask = largest_component(posteriors[..., 1:].sum(-1) > FOREGROUND_THRESHOLD)
    posteriors[..., 1:] *= mask[..., None]


def _renormalised(posteriors: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 -> NaN, as the original
        return posteriors / posteriors.sum(-1, keepdims=True)


def clean_default(posteriors: Array, topology: Array, pad_box: tuple[slice, ...]) -> Array:
    """[X, Y, Z, L] padded -> cleaned, un-padded, renormalised (section 6.5, with topological classes)."""
    posteriors = posteriors.copy()
    _foreground_only(posteriors)
    above = posteriors > FOREGROUND_THRESHOLD
    for kind in np.unique(topology)[1:]:
        members = np.flatnonzero(topology == kind)
        keep = largest_component(above[..., members].any(-1))
        for k in members:
            posteriors[..., k] *= keep
    return _renormalised(posteriors[pad_box])


def clean_fast(posteriors: Array, pad_box: tuple[slice, ...]) -> Array:
    """[X, Y, Z, L] padded -> cleaned, un-padded, renormalised (section 6.5, fast and robust)."""
    posteriors = posteriors[pad_box].copy()
    _foreground_only(posteriors)
    posteriors[..., 1:] *= posteriors[..., 1:] > FAST_THRESHOLD
    return _renormalised(posteriors)


def parcels(segmentation: Array, parcel_posteriors: Array, pad_box: tuple[slice, ...]) -> tuple[Array, Array]:
    """(segmentation with the cortex replaced, renormalised parcel posteriors [X, Y, Z, 69]) (section 6.6)."""
    posteriors = parcel_posteriors[pad_box].copy()
    cortex = np.isin(segmentation, CORTEX)
    posteriors[..., 0] = ~cortex
    posteriors = _renormalised(posteriors)
    return np.where(cortex, PARCEL_VALUES[posteriors.argmax(-1)], segmentation), posteriors


def qc_bounds(channels: Array, target: int = QC_WINDOW) -> list[tuple[int, int]]:
    """(lo, hi) per axis, possibly beyond the volume (section 6.4)."""
    foreground = ~np.isin(channels, QC_IGNORED_CHANNELS)
    bounds = []
    for axis, size in enumerate(channels.shape):
        found = np.flatnonzero(foreground.any(tuple(a for a in range(3) if a != axis)))
        if found.size == 0:
            bounds.append((0, min(size, target)))
            continue
        lo, hi = int(found[0]), int(found[-1]) + 1
        room = (target - (hi - lo)) / 2
        bounds.append((lo - math.ceil(room), hi + math.floor(room)))
    return bounds


def qc_window(channels: Array, target: int = QC_WINDOW) -> Array:
    """Channel indices [X, Y, Z] -> [target]^3, 0 where the window leaves the volume."""
    out = np.zeros((target,) * 3, channels.dtype)
    source, there = [], []
    for (lo, hi), size in zip(qc_bounds(channels, target), channels.shape, strict=True):
        first, last = max(lo, 0), min(hi, size)
        source.append(slice(first, last))
        there.append(slice(first - lo, last - lo))
    out[tuple(there)] = channels[tuple(source)]
    return out


def qc_scores(raw: Array) -> Array:
    """Nine network outputs -> eight scores in [0, 1], four decimals."""
    return np.around(raw.clip(0, 1)[1:], 4)


def _sequential_sums(posteriors: Array) -> Array:
    """Per channel >= 1, voxel by voxel in C order, in the posteriors' own precision."""
    return np.array(
        [np.add.accumulate(posteriors[..., k].ravel())[-1] for k in range(1, posteriors.shape[3])], posteriors.dtype
    )


def volumes(
    posteriors: Array, zooms: Array, table: Table, v1: bool = False, parcel_posteriors: Array | None = None
) -> Array:
    """mm^3 in CSV column order, rounded to three decimals, in the posteriors' own precision (section 6.8).

    Order: total intracranial (not 1.0), the structures but background, then the 68 parcels if given.
    """
    sums = _sequential_sums(posteriors)
    parts = [sums] if v1 else [sums.sum(keepdims=True), sums]
    if parcel_posteriors is not None:
        of_parcels = _sequential_sums(parcel_posteriors)
        cortex = sums[np.isin(table.values[1:], CORTEX)].sum()
        parts.append(of_parcels * (cortex / of_parcels.sum()))
    values = np.concatenate(parts)
    return np.around(values * values.dtype.type(np.prod(zooms)), 3)


def volumes_single(posteriors: Array, *args: Any, parcel_posteriors: Array | None = None, **kwargs: Any) -> Array:
    """Without --crop: single precision, running sums."""
    given = None if parcel_posteriors is None else parcel_posteriors.astype(np.float32)
    return volumes(posteriors.astype(np.float32), *args, parcel_posteriors=given, **kwargs)


def volumes_double(posteriors: Array, *args: Any, parcel_posteriors: Array | None = None, **kwargs: Any) -> Array:
    """With --crop: double precision."""
    given = None if parcel_posteriors is None else parcel_posteriors.astype(np.float64)
    return volumes(posteriors.astype(np.float64), *args, parcel_posteriors=given, **kwargs)


def volume_columns(table: Table, v1: bool = False, parc: bool = False) -> list[str]:
    """Column names after the subject's."""
    total = [] if v1 else ["total intracranial"]
    return [*total, *table.names[1:], *([name for _, name in PARCELS[1:]] if parc else [])]


def qc_columns() -> list[str]:
    return list(QUALITY_NAMES)


def subject_name(file_name: str) -> str:
    """Base name with `.nii.gz` removed; `.nii` and `.mgz` stay."""
    return file_name.replace(".nii.gz", "")


def printed(value: np.floating[Any]) -> str:
    """As Python prints a float, with the digits its own precision needs: 14575.553, 0.0, 1500000.1.

    Not `str`: recent numpy writes single-precision numbers from a million on as 1.5000001e+06.
    """
    return np.format_float_positional(value, unique=True, trim="0")


def csv_text(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], list_input: bool = False) -> str:
    """Header and data rows, CRLF (section 6.9)."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["" if list_input else "subject", *columns])
    for name, values in rows:
        writer.writerow([name, *map(printed, values)])
    return text.getvalue()
