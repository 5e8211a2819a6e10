"""Box plots of methods beside each other, by structure or condition, with stars (as the paper's figures 4 and 9)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation.measurements import MEAN, Measurement, unique, value_of
from synthseg.evaluation.paired import PairedRow, stars
from synthseg.evaluation.scan_means import scan_means
from synthseg.evaluation.statistics import BootstrapConfig, mean_interval
from synthseg.report.plotting import COLORS, COLUMN_MM, MARKERS, axis_name, figure_at, require_few

KINDS = ("box", "mean")
_UPRIGHT_GROUPS = 6  # more of them, or long names, lie: rows that grow downwards keep their names readable in a column
_UPRIGHT_NAME = 10  # letters
_ROW_MM = 2.6  # a lying box
_UNDER_MM = 16.0  # axis, its name, legend


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """What a box plot shows."""

    by: str = "structure"  # column whose values are the groups; another than structure: means over structures a scan
    kind: str = "box"  # "box", or "mean" with its bootstrap interval
    width_mm: float = COLUMN_MM
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("kind", found=repr(self.kind), fix=f"use one of {', '.join(KINDS)}")
        if not 40 <= self.width_mm <= 400:
            raise ConfigError("width_mm", found=f"{self.width_mm:g}", fix="a column is 85 mm, a page 180 mm")


@dataclass(frozen=True)
class _Box:
    """One method in one group."""

    values: np.ndarray  # finite
    n_infinite: int
    mark: str  # stars


def write_boxes(
    rows: Sequence[Measurement],
    path: str | Path,
    comparisons: Sequence[PairedRow] = (),
    options: BoxOptions | None = None,
) -> Path:
    """Draw one metric: a group of boxes for each structure (or value of ``options.by``), a box a method.

    Median, quartiles, whiskers to the last value within 1.5 interquartile ranges, diamonds beyond. Stars stand with a
    method that is significantly better than every other one of its group, for the largest of its corrected p-values:
    ``*`` below 0.05, ``**`` below 0.01, ``***`` below 0.001. Infinite values cannot be drawn: their number stands with
    the box.

    Args:
        rows: one metric.
        path: .png, .svg or .pdf.
        comparisons: of the same rows, by :func:`synthseg.evaluation.paired.compare_methods`; () draws no stars.
    Raises: UsageError for several metrics, nothing to draw, more methods than colours; OutputError.
    """
    options = options or BoxOptions()
    metrics = unique(rows, "metric")
    if len(metrics) != 1:
        found = f"the metrics {', '.join(metrics)}" if metrics else "no scores"
        raise UsageError("the figure", found=found, fix="choose one with --metric")
    methods = unique(rows, "method")
    require_few(methods, "methods")
    groups = _groups(rows, methods, comparisons, options)
    upright = len(groups) <= _UPRIGHT_GROUPS and max(map(len, groups)) <= _UPRIGHT_NAME
    height = 60.0 if upright else _UNDER_MM + len(groups) * (len(methods) * _ROW_MM + 1.2)
    with figure_at(path, options.width_mm, height) as figure:
        axes = figure.subplots()
        for place, boxes in enumerate(groups.values()):
            for index, method in enumerate(methods):
                _draw(axes, place, index, len(methods), boxes.get(method), upright, options)
        _dress(axes, list(groups), axis_name(metrics[0], rows[0].unit), upright)
        _legend(figure, methods, options.kind)
    return Path(path)


def _groups(
    rows: Sequence[Measurement], methods: Sequence[str], comparisons: Sequence[PairedRow], options: BoxOptions
) -> dict[str, dict[str, _Box]]:
    found: dict[str, dict[str, list[float]]] = {}
    drawn = rows if options.by == "structure" else scan_means(rows, (options.by,))
    for row in drawn:
        found.setdefault(value_of(row, options.by), {}).setdefault(row.method, []).append(row.value)
    groups = {}
    for group, of_methods in found.items():
        boxes = {}
        for method, listed in of_methods.items():
            values = np.array([value for value in listed if not math.isnan(value)])
            finite = values[np.isfinite(values)]
            mark = _mark(group, method, methods, comparisons, options)
            if len(values):
                boxes[method] = _Box(finite, len(values) - len(finite), mark)
        if boxes:
            groups[group] = boxes
    if not groups:
        raise UsageError("the figure", found="no defined value", fix="give scores that are not all nan")
    return groups


def _mark(
    group: str, method: str, methods: Sequence[str], comparisons: Sequence[PairedRow], options: BoxOptions
) -> str:
    """Stars of a method that beats all others here."""
    of_group = [
        row
        for row in comparisons
        if (row.structure == group if options.by == "structure" else row.by == group and row.structure == MEAN)
    ]
    won = {
        row.method_b if row.method_a == method else row.method_a: row.p_corrected
        for row in of_group
        if row.better == method
    }
    others = {name for name in methods if name != method}
    return stars(max(won.values())) if others and set(won) == others else ""


def _draw(
    axes: Any, place: int, index: int, n_methods: int, box: _Box | None, upright: bool, options: BoxOptions
) -> None:
    if box is None:
        return
    share = 0.8 / n_methods
    at = place + (index - (n_methods - 1) / 2) * share
    color = COLORS[index]
    if len(box.values) and options.kind == "box":
        _draw_box(axes, box.values, at, share, color, upright)
    elif len(box.values):
        _draw_mean(axes, box.values, at, index, upright, options.bootstrap)
    text = box.mark + (f" +{box.n_infinite} ∞" if box.n_infinite else "")
    if text:
        end = float(box.values.max()) if len(box.values) else 0.0
        where = (at, end) if upright else (end, at)
        offset = (0, 2) if upright else (3, 0)
        align = {"ha": "center", "va": "bottom"} if upright else {"ha": "left", "va": "center_baseline"}
        axes.annotate(text.strip(), where, offset, textcoords="offset points", fontsize=6, color="black", **align)


def _draw_box(axes: Any, values: np.ndarray, at: float, share: float, color: str, upright: bool) -> None:
    from matplotlib.cbook import boxplot_stats

    # matplotlib 3.10 renamed the argument.
    named = "orientation" in inspect.signature(axes.bxp).parameters
    lying: dict[str, Any] = {"orientation": "vertical" if upright else "horizontal"} if named else {"vert": upright}
    drawn = axes.bxp(
        boxplot_stats(values),
        positions=[at],
        widths=0.78 * share,
        **lying,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": color, "edgecolor": "black", "linewidth": 0.5},
        medianprops={"color": "black", "linewidth": 1.1},
        whiskerprops={"linewidth": 0.5},
        capprops={"linewidth": 0.5},
        flierprops={"marker": "d", "markersize": 1.8, "markerfacecolor": color, "markeredgewidth": 0.3},
    )
    for median in drawn["medians"]:
        median.set_solid_capstyle("butt")


def _draw_mean(axes: Any, values: np.ndarray, at: float, index: int, upright: bool, config: BootstrapConfig) -> None:
    mean, interval = float(values.mean()), mean_interval(values, config)
    style = {"marker": MARKERS[index], "markersize": 3.5, "color": COLORS[index], "elinewidth": 0.9, "capsize": 1.5}
    error = None
    if not math.isnan(interval.low):
        error = [[max(0.0, mean - interval.low)], [max(0.0, interval.high - mean)]]
    where = ([at], [mean]) if upright else ([mean], [at])
    axes.errorbar(*where, **{"yerr" if upright else "xerr": error}, linestyle="none", **style)


def _dress(axes: Any, groups: list[str], value_name: str, upright: bool) -> None:
    ticks = range(len(groups))
    if upright:
        axes.set_xticks(ticks, groups)
        axes.set_ylabel(value_name)
        axes.set_xlim(-0.6, len(groups) - 0.4)
    else:
        axes.set_yticks(ticks, groups)
        axes.set_xlabel(value_name)
        axes.set_ylim(len(groups) - 0.4, -0.6)  # the first on top
    axes.grid(axis="y" if upright else "x")
    axes.set_axisbelow(True)


def _legend(figure: Any, methods: Sequence[str], kind: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for color, marker, method in zip(COLORS, MARKERS, methods, strict=False):
        if kind == "box":
            handles.append(Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=method))
        else:
            handles.append(Line2D([], [], color=color, marker=marker, markersize=3.5, linestyle="none", label=method))
    if len(methods) > 1:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(methods)))
