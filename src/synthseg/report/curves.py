"""A score against a condition: resolution, number of training maps (as the paper's figures 7 and 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation.scan_means import CurvePoint, by_size
from synthseg.report.plotting import COLORS, COLUMN_MM, MARKERS, axis_name, figure_at, require_few

_LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """How curves are drawn."""

    x: str  # the column, as it is named on the axis: resolution_mm reads "resolution (mm)"
    metric: str = "dice"
    unit: str = ""
    log_x: bool = False
    width_mm: float = COLUMN_MM

    def __post_init__(self) -> None:
        if not 40 <= self.width_mm <= 400:
            raise ConfigError("width_mm", found=f"{self.width_mm:g}", fix="a column is 85 mm, a page 180 mm")


def write_curves(points: Sequence[CurvePoint], path: str | Path, options: CurveOptions) -> Path:
    """Draw means over scans with their intervals, points of a curve joined.

    Where there are several curves a method (``line``, such as the dataset), a colour is a line and a marker a method,
    as in figure 10; otherwise a colour is a method. If some values of x are no numbers ("all"), values stand at equal
    steps, numbers first.

    Args:
        points: by :func:`synthseg.evaluation.scan_means.curve_points`.
        path: .png, .svg or .pdf.
    Raises: UsageError for no points, more curves than colours, a logarithmic axis for values that have no logarithm.
    """
    places = _places(points, options)
    methods = list(dict.fromkeys(point.method for point in points))
    lines = list(dict.fromkeys(point.line for point in points))
    require_few(methods, "methods")
    require_few(lines, "curves")
    curves = [(line, method) for line in lines for method in methods]
    names = list(dict.fromkeys((*lines, *methods)))
    height = 55.0 + 3.2 * math.ceil(len(names) / 3)
    with figure_at(path, options.width_mm, height) as figure:
        axes = figure.subplots()
        for number, (line, method) in enumerate(curves):
            of_curve = [p for p in points if (p.line, p.method) == (line, method) and math.isfinite(p.mean)]
            # Curves are moved apart a little, so that intervals do not hide each other.
            shift = 0.0 if options.log_x else (number - (len(curves) - 1) / 2) * _step(places) * 0.15 / len(curves)
            several = len(lines) > 1
            color = COLORS[lines.index(line) if several else methods.index(method)]
            index = methods.index(method)
            _draw_curve(axes, of_curve, [places[p.x] + shift for p in of_curve], color, index)
        _dress(axes, places, options)
        _legend(figure, lines, methods)
    return Path(path)


def _places(points: Sequence[CurvePoint], options: CurveOptions) -> dict[str, float]:
    """Where each value of x stands."""
    values = sorted(dict.fromkeys(point.x for point in points), key=by_size)
    if not values:
        raise UsageError("the figure", found="no scores", fix="give scores that are not all nan")
    numbers = [by_size(value) for value in values]
    numeric = all(kind == 0 and math.isfinite(number) for kind, number, _ in numbers)
    if options.log_x and not (numeric and numbers[0][1] > 0):
        raise UsageError(
            f"column {options.x!r}", found=f"the value {values[0 if numeric else -1]!r}", fix="leave --log-x out"
        )
    return {value: (numbers[index][1] if numeric else float(index)) for index, value in enumerate(values)}


def _step(places: dict[str, float]) -> float:
    """The smallest distance between neighbours."""
    ordered = sorted(places.values())
    return min((b - a for a, b in pairwise(ordered) if b > a), default=1.0)


def _draw_curve(axes: Any, points: Sequence[CurvePoint], places: list[float], color: str, index: int) -> None:
    if not points:
        return
    means = [point.mean for point in points]
    below = [_distance(point.mean, point.interval.low) for point in points]
    above = [_distance(point.interval.high, point.mean) for point in points]
    axes.errorbar(
        places,
        means,
        yerr=[below, above],
        color=color,
        linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
        marker=MARKERS[index],
        markersize=3.5,
        elinewidth=0.7,
        capsize=1.5,
        capthick=0.7,
    )


def _distance(high: float, low: float) -> float:
    """Of an interval's bound; nothing where one scan gives none."""
    return max(0.0, high - low) if math.isfinite(high - low) else 0.0


def _dress(axes: Any, places: dict[str, float], options: CurveOptions) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    if options.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlabel(_words(options.x))
    axes.set_ylabel(axis_name(options.metric, options.unit))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _words(column: str) -> str:
    """``resolution_mm`` -> ``resolution (mm)``."""
    name, _, unit = column.rpartition("_")
    return f"{name.replace('_', ' ')} ({unit})" if name and unit in ("mm", "deg", "s") else column.replace("_", " ")


def _legend(figure: Any, lines: list[str], methods: list[str]) -> None:
    from matplotlib.lines import Line2D

    several = len(lines) > 1
    handles = []
    if several:
        handles += [Line2D([], [], color=color, label=name) for color, name in zip(COLORS, lines, strict=False)]
    if len(methods) > 1:
        for index, name in enumerate(methods):
            color = "black" if several else COLORS[index]
            style = _LINE_STYLES[index % len(_LINE_STYLES)]
            handles.append(
                Line2D([], [], color=color, linestyle=style, marker=MARKERS[index], markersize=3.5, label=name)
            )
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), handlelength=2.8)
