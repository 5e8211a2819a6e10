"""The original's prior and class files (``.npy``) in a recipe's ``[generation.mixture]``.

The files' numbers take their place when a recipe is read, so that checkpoints and draws need no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import ConfigError
from synthseg.labels.arrays import read_npy, whole_numbers

# Half widths are given around these, as in the original: with none given, U(0, 250) and U(0, 30) (reference 2.3).
_CENTRES = {"means": 125.0, "stds": 15.0}
_RANGES = {"means": "mean_range", "stds": "std_range"}


def read_mixture(mixture: Mapping[str, Any], *, kind: str, folder: str | Path, where: str) -> dict[str, Any]:
    """Put numbers in the place of ``means``, ``stds`` and ``classes`` that name the original's files.

    Args:
        mixture: the table as a recipe has it. ``means`` and ``stds`` are what the original's ``prior_means`` and
            ``prior_stds`` may be: a ``.npy`` file, a list of two numbers for all classes, or one number (uniform: the
            half width around 125, 15). Arrays are [2, K]: lowest and highest value of each class (uniform), mean and
            standard deviation (normal); of [2 m, K] each draw takes two rows that belong together. ``classes`` may be
            a ``.npy`` file of class lists aligned with the labels.
        kind: "uniform" or "normal", which ``prior_distributions`` is.
        folder: what relative paths start from.
        where: the table's place for messages.
    Returns: a new table with ``class_means``, ``class_stds``, ``mean_range``, ``std_range`` and ``label_classes`` in
        the place of those keys; None leaves the preset's.
    Raises: ConfigError or LabelError naming the file, or the key, and what is wrong there.
    """
    table = dict(mixture)
    for key, range_key in _RANGES.items():
        if key not in table:
            continue
        given = table.pop(key)
        taken = next((other for other in (f"class_{key}", range_key) if other in table), None)
        if taken is not None:
            fix = f"give {key} or {taken}, not both"
            raise ConfigError(f"{where}.{key}", found=f"{given!r} beside {taken}", fix=fix)
        if given is not None:
            found = _priors(given, key, kind, Path(folder), f"{where}.{key}")
            # what is mixed with the preset's range must not replace it
            pair = found.get(range_key) if table.get("mix_probability") else None
            table |= found if pair is None else {f"class_{key}": [pair]}
    classes = table.get("classes")
    if isinstance(classes, str) and classes.lower().endswith(".npy"):
        path = Path(folder) / classes
        del table["classes"]
        table["label_classes"] = list(whole_numbers(read_npy(path, error=ConfigError), path))
    return table


def _priors(given: Any, key: str, kind: str, folder: Path, where: str) -> dict[str, Any]:
    subject: str | Path = where
    if isinstance(given, str):
        subject = folder / given
        values = read_npy(subject, error=ConfigError)
    elif isinstance(given, int | float | list | tuple) and not isinstance(given, bool):
        values = _plain_array(given, where)
    else:
        raise ConfigError(where, found=repr(given), fix="give a .npy file, two numbers, or one")
    if values.dtype.kind not in "iuf":
        raise ConfigError(subject, found=f"values of type {values.dtype}", fix="give numbers")
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ConfigError(subject, found=f"{values[tuple(place)]} at {place}", fix="give finite numbers")
    if values.ndim == 0:
        return _half_width(float(values), key, kind, subject)
    if values.shape == (2,):
        pair = [float(value) for value in values]
        return {f"class_{key}": [pair]} if kind == "normal" else {_RANGES[key]: pair, f"class_{key}": []}
    if values.ndim != 2 or not values.size or len(values) % 2:
        fix = "give [2, K] values: two rows for K classes, or 2 m rows of which two at a time belong together"
        raise ConfigError(subject, found=f"an array of shape {list(values.shape)}", fix=fix)
    _check_rows(values, kind, subject)
    blocks = values.reshape(len(values) // 2, 2, -1).swapaxes(1, 2).tolist()
    return {f"class_{key}": blocks if len(blocks) > 1 else blocks[0]}


def _plain_array(given: Any, where: str) -> np.ndarray:
    try:
        return np.array(given)
    except ValueError as error:
        raise ConfigError(where, found=repr(given), fix="give rows of the same length") from error


def _half_width(width: float, key: str, kind: str, subject: str | Path) -> dict[str, Any]:
    centre = _CENTRES[key]
    if kind == "normal":
        fix = "give a mean and a standard deviation, or [2, K] of them"
        raise ConfigError(subject, found=f"the single number {width:g} for normal distributions", fix=fix)
    if not 0 <= width <= centre:
        fix = f"give 0 to {centre:g}, or lowest and highest value"
        raise ConfigError(subject, found=f"{width:g}, a half width around {centre:g}", fix=fix)
    return {_RANGES[key]: [centre - width, centre + width], f"class_{key}": []}


def _check_rows(values: np.ndarray, kind: str, subject: str | Path) -> None:
    first, second = values[::2], values[1::2]
    if kind == "normal":
        wrong, fix = (first < 0) | (second < 0), "give means (first row) and standard deviations (second) of at least 0"
    else:
        wrong, fix = second < first, "give lowest values in the first row and highest in the second"
    if wrong.any():
        block, column = (int(index) for index in np.argwhere(wrong)[0])
        found = f"{first[block, column]:g} and {second[block, column]:g} in rows {2 * block} and {2 * block + 1}"
        fix += "" if kind == "normal" else '; means and standard deviations need kind = "normal"'
        raise ConfigError(subject, found=f"class {column}: {found}", fix=fix)
