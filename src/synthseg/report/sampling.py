"""The figure of the sampler: where each map lies among the shapes, and how often it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.anatomies.sampler import MapRow, MapWeights
from synthseg.report.plotting import COLORS, MARKERS, figure_at

_PAGE_MM = 180.0
_NAMED = 5  # heaviest anatomies that get their name
_BARS = 40  # beyond, a bar has no room for a name
_LETTERS = 24  # of a name


def write_sampling_figure(found: MapWeights, path: str | Path) -> Path:
    """Draw the anatomies in the first principal components, and their draws in 1,000 pairs beside a uniform choice's.

    Versions and edits of one map are one anatomy: a point and a bar for all of them. A point's area is its weight; its
    colour its cluster (its data set where there are no clusters, or too many for our colours); the heaviest are named,
    and a cross was not part of the density. Where there are no second or third components, their axis is 0.

    Args:
        path: .png, .svg or .pdf.
    Raises: UsageError for another suffix or without matplotlib; OutputError.
    """
    rows = _anatomies(found.rows)
    colors, legend = _colors(rows)
    with figure_at(path, _PAGE_MM, 66.0 if len(rows) <= _BARS else 60.0) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        names = _short_names([row.name for row in rows])
        for axes, component in ((left, 1), (middle, 2)):
            _scatter(axes, rows, component, colors, names if component == 1 else None)
            axes.set_xlabel(_axis(found, 0))
            axes.set_ylabel(_axis(found, component))
        _bars(right, rows, colors, names)
        if len(legend) > 1:
            _legend(figure, legend)
    return Path(path)


def _anatomies(rows: Sequence[MapRow]) -> list[MapRow]:
    """One row for each anatomy, with the weight of all its maps."""
    families: dict[tuple[str, str], MapRow] = {}
    for row in rows:
        first = families.get((row.dataset, row.family))
        weight = row.weight + (0.0 if first is None else first.weight)
        flags = (*(() if first is None else first.flags), *row.flags)
        families[row.dataset, row.family] = replace(row, name=row.family, weight=weight, flags=flags)
    return list(families.values())


def _colors(rows: Sequence[MapRow]) -> tuple[list[str], dict[str, str]]:
    """A colour for each map, and what the colours mean."""
    clusters = sorted({(row.dataset, row.cluster) for row in rows})
    several = len({row.dataset for row in rows}) > 1
    by_cluster = all(row.cluster >= 0 for row in rows) and len(clusters) <= len(COLORS)
    if by_cluster:
        keys: list[object] = [(row.dataset, row.cluster) for row in rows]
        titles = {
            (dataset, cluster): f"{dataset}, cluster {cluster}" if several else f"cluster {cluster}"
            for dataset, cluster in clusters
        }
    else:
        keys = [row.dataset for row in rows]
        titles = {name: name for name in dict.fromkeys(row.dataset for row in rows)}  # type: ignore[misc]
    order = {key: COLORS[n % len(COLORS)] for n, key in enumerate(titles)}
    return [order[key] for key in keys], {title: order[key] for key, title in titles.items()}  # type: ignore[index]


def _scatter(
    axes: Any, rows: Sequence[MapRow], component: int, colors: Sequence[str], names: Sequence[str] | None
) -> None:
    places = [(row.scores[0], row.scores[component] if len(row.scores) > component else 0.0) for row in rows]
    mean, middle = 1.0 / len(rows), (min(place[0] for place in places) + max(place[0] for place in places)) / 2
    for row, place, color in zip(rows, places, colors, strict=True):
        marker = "X" if any(flag.startswith("cut off") for flag in row.flags) else MARKERS[0]
        area = 22.0 * row.weight / mean
        axes.scatter(*place, s=max(area, 2.0), c=color, marker=marker, alpha=0.75, linewidths=0.4, edgecolors="white")
    if names is not None:
        for n in sorted(range(len(rows)), key=lambda n: -rows[n].weight)[:_NAMED]:
            right = places[n][0] > middle  # names stay inside
            at, side = ((-4, 3), "right") if right else ((4, 3), "left")
            axes.annotate(names[n], places[n], xytext=at, textcoords="offset points", ha=side, fontsize=5)
    axes.margins(0.15)


def _axis(found: MapWeights, component: int) -> str:
    explained = found.parts[0].explained
    if len(found.parts) == 1 and component < len(explained):
        return f"component {component + 1} ({100 * explained[component]:.0f} %)"
    return f"component {component + 1}"


def _bars(axes: Any, rows: Sequence[MapRow], colors: Sequence[str], names: Sequence[str]) -> None:
    order = sorted(range(len(rows)), key=lambda n: rows[n].weight)
    draws = [1000 * rows[n].weight for n in order]
    axes.barh(np.arange(len(order)), draws, color=[colors[n] for n in order], height=0.8)
    axes.axvline(1000 / len(rows), color="black", linewidth=0.6, linestyle="--")
    axes.set_xlabel("draws per 1,000 (dashed: uniform)")
    if len(order) <= _BARS:
        size = min(6.0, 220.0 / len(order))
        axes.set_yticks(np.arange(len(order)), [names[n] for n in order], fontsize=size)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(order)} anatomies, by weight")
    axes.set_ylim(-0.6, len(order) - 0.4)


def _short_names(names: Sequence[str]) -> list[str]:
    """Without what all begin and end with, and never longer than an axis has room for."""
    if len(names) > 1:
        start = len(_common(names))
        end = len(_common([name[start:][::-1] for name in names]))
        # Words and numbers stay whole: "ga2" as a common beginning would leave "1_notoperated".
        while start and names[0][start - 1].isalnum():
            start -= 1
        while end and names[0][len(names[0]) - end].isalnum():
            end -= 1
        names = [name[start : len(name) - end] or name for name in names]
    return [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names]


def _common(names: Sequence[str]) -> str:
    length = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        length += 1
    return names[0][:length]


def _legend(figure: Any, legend: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=color, label=title)
        for title, color in legend.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
