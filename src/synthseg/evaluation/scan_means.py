"""Means of scans over their structures, and of conditions over scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from synthseg.errors import UsageError
from synthseg.evaluation.measurements import MEAN, Measurement, unique, value_of
from synthseg.evaluation.statistics import BootstrapConfig, Interval, mean_interval


@dataclass(frozen=True)
class CurvePoint:
    """A method under one condition: the mean over scans."""

    x: str  # the condition's value
    line: str  # what tells this curve from others of the method, "" for nothing
    method: str
    n_scans: int
    n_infinite: int  # scans whose mean is infinite, left out
    mean: float
    interval: Interval


def scan_means(rows: Sequence[Measurement], columns: Sequence[str] = ()) -> list[Measurement]:
    """Each scan's mean over its structures, for each method, metric and combination of ``columns``.

    Undefined values (nan) are left out; infinite ones make the mean infinite. What occurs several times under the same
    columns (three slice directions of one scan, say) is averaged too.
    """
    found: dict[tuple[str, ...], list[Measurement]] = {}
    for row in rows:
        key = (row.method, row.metric, *(value_of(row, column) for column in columns), row.scan)
        if not np.isnan(row.value):
            found.setdefault(key, []).append(row)
    means = []
    for group in found.values():
        kept = {column: value_of(group[0], column) for column in columns}
        value = float(np.mean([row.value for row in group]))
        means.append(replace(group[0], label="", structure=MEAN, value=value, columns=kept))
    return means


def curve_points(
    rows: Sequence[Measurement], x: str, line: str | None = None, config: BootstrapConfig | None = None
) -> list[CurvePoint]:
    """Mean over scans of the scans' means, with a bootstrap interval over scans, by method and value of ``x``.

    A scan that occurs several times at one ``x`` counts once, with its mean.

    Args:
        rows: one metric.
        x, line: columns; ``line`` None: one curve a method.
    Raises: UsageError for a column that the tables lack.
    """
    columns = (x,) if line is None else (x, line)
    means = scan_means(rows, columns)
    points = []
    for name in unique(means, line) if line else [""]:
        for method in unique(means, "method"):
            of_line = [row for row in means if row.method == method and (not line or value_of(row, line) == name)]
            for value in sorted(unique(of_line, x), key=by_size):
                values = np.array([row.value for row in of_line if value_of(row, x) == value])
                finite = values[np.isfinite(values)]
                mean = float(finite.mean()) if len(finite) else float("nan")
                interval = mean_interval(finite, config or BootstrapConfig())
                points.append(CurvePoint(value, name, method, len(finite), len(values) - len(finite), mean, interval))
    return points


def with_condition(rows: Sequence[Measurement], x: str) -> list[Measurement]:
    """The rows that have a value in column ``x``: not those where it is empty or n/a."""
    return [row for row in rows if value_of(row, x).lower() not in ("", "n/a", "na", "nan")]


def common_scans(rows: Sequence[Measurement], x: str, line: str | None = None) -> list[Measurement]:
    """The rows of scans that every method has at every value of ``x`` (within each value of ``line``).

    Raises: UsageError when there is no such scan.
    """
    found: dict[str, dict[tuple[str, str], set[str]]] = {}
    for row in rows:
        name = value_of(row, line) if line else ""
        found.setdefault(name, {}).setdefault((row.method, value_of(row, x)), set()).add(row.scan)
    everywhere = {name: set.intersection(*points.values()) for name, points in found.items()}
    kept = [row for row in rows if row.scan in everywhere[value_of(row, line) if line else ""]]
    if not kept:
        nothing = f"no scan that every method has at every {x}"
        raise UsageError("--common", found=nothing, fix="leave it out, or choose values with --where")
    return kept


def uneven_scans(rows: Sequence[Measurement], x: str, line: str | None = None) -> list[str]:
    """Curves whose points are not of the same scans, in sentences: a trend there may be one of scans."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in rows:
        key = (row.method, value_of(row, line) if line else "")
        found.setdefault(key, {}).setdefault(value_of(row, x), set()).add(row.scan)
    return [
        f"{method}{f', {name}' if name else ''}: not the same scans at every {x} "
        f"({min(map(len, scans.values()))} to {max(map(len, scans.values()))} of {len(set().union(*scans.values()))})"
        for (method, name), scans in found.items()
        if len({frozenset(group) for group in scans.values()}) > 1
    ]


def by_size(text: str) -> tuple[int, float, str]:
    """Sorting key: numbers by size, then other words in the alphabet."""
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)
