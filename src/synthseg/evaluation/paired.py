"""Methods compared on the same scans: structure by structure, and over structures (mean a scan)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation import statistics
from synthseg.evaluation.measurements import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    MEAN,
    Measurement,
    require_one_unit,
    unique,
    value_of,
)
from synthseg.evaluation.writing import listed, write_rows

FAMILIES = ("level", "all")


@dataclass(frozen=True, kw_only=True)
class PairedConfig:
    """What is compared, and how strictly."""

    by: str | None = None  # compare within each value of this column, e.g. a dataset
    reference: str | None = None  # compare this method with every other; None: every two
    zeros: str = "wilcox"  # what becomes of pairs without a difference: "wilcox" or "pratt"
    correction: str = "bonferroni"  # "holm", "none"
    # p-values corrected together. "level": one metric's tests of single structures (all structures and pairs of
    # methods) within one value of ``by``; its tests of means over structures are a family of their own. "all": every
    # test of the table.
    family: str = "level"
    significance: float = 0.05  # of corrected p-values
    bootstrap: statistics.BootstrapConfig = field(default_factory=statistics.BootstrapConfig)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("zeros", statistics.ZERO_METHODS),
            ("correction", statistics.CORRECTIONS),
            ("family", FAMILIES),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(name, found=repr(getattr(self, name)), fix=f"use one of {', '.join(allowed)}")
        if not 0 < self.significance < 1:
            raise ConfigError("significance", found=str(self.significance), fix="give a level such as 0.05")


@dataclass(frozen=True, kw_only=True)
class PairedRow:
    """Methods a and b on one structure, or over structures. A difference is a - b, where both have a value.

    Infinite values (a distance to something absent) take part in ranks and medians as the worst there is; two of them
    tie. Means and d_z are of the pairs whose difference is finite.
    """

    by: str  # value of the column compared within; "" without one
    metric: str
    label: str
    structure: str
    method_a: str
    method_b: str
    n_pairs: int
    n_zero: int  # of the pairs, without a difference; two infinite values are such a pair
    n_infinite: int  # of the pairs, with an infinite value
    n_undefined: int  # scans of both, where one or both values are NaN: left out
    n_only_a: int  # scans that b lacks: left out
    n_only_b: int
    median_a: float
    median_b: float
    median_difference: float
    median_low: float
    median_high: float
    median_interval: str
    mean_difference: float
    mean_low: float
    mean_high: float
    mean_interval: str
    cohens_dz: float
    rank_biserial: float
    w_positive: float
    w_negative: float
    exact: bool
    p: float
    p_smallest: float  # the least p so few differing pairs can give
    correction: str
    family_size: int
    p_corrected: float
    better: str  # the method that is significantly better; "" for neither, and for metrics that have no better


@dataclass(frozen=True)
class PairedResult:
    """All comparisons, and what was left out, in sentences."""

    rows: tuple[PairedRow, ...]
    notes: tuple[str, ...]


_Values = dict[str, float]  # scan -> value


def compare_methods(rows: Sequence[Measurement], config: PairedConfig | None = None) -> PairedResult:
    """Compare methods by metric, by value of ``config.by``, structure by structure, then by the scans' means.

    A scan's mean over structures is of the structures for which both methods have a value in that scan, so that both
    means are of the same structures; it is infinite when one of them is.

    Raises: UsageError for fewer than two methods, an unknown reference, a scan that occurs twice, no common scans.
    """
    config = config or PairedConfig()
    pairs = _pairs_of(unique(rows, "method"), config.reference)
    groups = unique(rows, config.by) if config.by else [""]
    made: list[PairedRow] = []
    notes: list[str] = []
    for by in groups:
        of_group = [row for row in rows if not config.by or value_of(row, config.by) == by]
        for metric in unique(of_group, "metric"):
            tables = _tables([row for row in of_group if row.metric == metric], config)
            if not tables:
                continue
            for a, b in pairs:
                compared, said = _compare_pair(tables, (by, metric, a, b), config)
                made += compared
                notes += said
    if not any(row.n_pairs for row in made):
        found = "no scan and structure that two of the methods have"
        raise UsageError("the tables", found=found, fix="name scans and structures the same in all tables")
    return PairedResult(tuple(_corrected(made, config)), tuple(dict.fromkeys(notes)))


def write_paired(rows: Sequence[PairedRow], path: str | Path) -> Path:
    """Write one line a comparison; columns are the fields of :class:`PairedRow`. Numbers as ``nan`` and ``inf``.

    Raises: UsageError unless the name ends in .tsv or .csv; OutputError when it cannot be written.
    """
    return write_rows(rows, [item.name for item in fields(PairedRow)], path)


def stars(p: float) -> str:
    """``*`` below 0.05, ``**`` below 0.01, ``***`` below 0.001."""
    return "" if math.isnan(p) else "*" * sum(p < level for level in (0.05, 0.01, 0.001))


def family_of(row: PairedRow, config: PairedConfig) -> tuple[str, ...]:
    """What a row's family is called: p-values of rows with the same are corrected together."""
    level = "mean" if row.structure == MEAN else "structure"
    return (row.by, row.metric, level) if config.family == "level" else ()


def _pairs_of(methods: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    if len(methods) < 2:
        found = f"one method, {methods[0]!r}" if methods else "no scores"
        raise UsageError("the tables", found=found, fix="give the scores of at least two methods")
    if reference is None:
        return list(combinations(methods, 2))
    if reference not in methods:
        raise UsageError(f"--reference {reference}", found=f"the methods {', '.join(methods)}", fix="name one of them")
    return [(reference, other) for other in methods if other != reference]


def _tables(rows: Sequence[Measurement], config: PairedConfig) -> dict[tuple[str, str], dict[str, _Values]]:
    """(label, structure) -> method -> scan -> value."""
    tables: dict[tuple[str, str], dict[str, _Values]] = {}
    require_one_unit(rows)
    for row in rows:
        scans = tables.setdefault((row.label, row.structure), {}).setdefault(row.method, {})
        if row.scan in scans:
            found = f"two values of {row.metric} of {row.structure} by {row.method}"
            fix = "keep one line: choose with --where COLUMN=VALUE"
            if config.by is None and row.columns:
                fix += f", or compare within each condition with --by COLUMN ({', '.join(sorted(row.columns))})"
            raise UsageError(f"scan {row.scan}", found=found, fix=fix)
        scans[row.scan] = row.value
    return tables


def _compare_pair(
    tables: dict[tuple[str, str], dict[str, _Values]], names: tuple[str, str, str, str], config: PairedConfig
) -> tuple[list[PairedRow], list[str]]:
    by, metric, a, b = names
    made, notes = [], []
    means: dict[str, tuple[list[float], list[float]]] = {}
    first: set[str] = set()
    second: set[str] = set()
    for (label, structure), methods in tables.items():
        ours, theirs = methods.get(a, {}), methods.get(b, {})
        if not ours and not theirs:
            continue
        first |= set(ours)
        second |= set(theirs)
        made.append(_row((by, metric, label, structure, a, b), ours, theirs, config))
        for scan in ours:
            if scan in theirs and not math.isnan(ours[scan]) and not math.isnan(theirs[scan]):
                both = means.setdefault(scan, ([], []))
                both[0].append(ours[scan])
                both[1].append(theirs[scan])
    where = f"{metric}{f', {by}' if by else ''}"
    notes += [
        f"{where}: {len(scans)} scan(s) only in {name}, left out: {listed(scans)}"
        for name, scans in ((a, sorted(first - second)), (b, sorted(second - first)))
        if scans
    ]
    unequal = [r.structure for r in made if r.n_only_a != len(first - second) or r.n_only_b != len(second - first)]
    if unequal:
        notes.append(f"{where}: {a} and {b} do not have the same scans of every structure: {listed(unequal)}")
    undefined = sum(row.n_undefined for row in made)
    if undefined:
        notes.append(f"{where}: {undefined} value pairs of {a} and {b} undefined (nan) in one or both, left out")
    if len(made) > 1:
        mean_a = {s: _mean(both[0]) for s, both in means.items()} | dict.fromkeys(sorted(first - set(means)), math.nan)
        mean_b = {s: _mean(both[1]) for s, both in means.items()} | dict.fromkeys(sorted(second - set(means)), math.nan)
        made.append(_row((by, metric, "", MEAN, a, b), mean_a, mean_b, config))
    return made, notes


def _row(names: Sequence[str], ours: _Values, theirs: _Values, config: PairedConfig) -> PairedRow:
    """What the numbers say; the verdict waits for the family. ``names``: by, metric, label, structure, a, b."""
    common = [scan for scan in ours if scan in theirs]
    kept = [scan for scan in common if not math.isnan(ours[scan]) and not math.isnan(theirs[scan])]
    a, b = np.array([ours[scan] for scan in kept]), np.array([theirs[scan] for scan in kept])
    differences = statistics.paired_differences(a, b)
    finite = differences[np.isfinite(a) & np.isfinite(b)]
    test = statistics.signed_rank(differences, config.zeros)
    middle = statistics.median_interval(differences, config.bootstrap)
    mean = statistics.mean_interval(finite, config.bootstrap)
    by, metric, label, structure, method_a, method_b = names
    return PairedRow(
        by=by,
        metric=metric,
        label=label,
        structure=structure,
        method_a=method_a,
        method_b=method_b,
        n_pairs=len(kept),
        n_zero=test.n_zero,
        n_infinite=len(kept) - len(finite),
        n_undefined=len(common) - len(kept),
        n_only_a=len(set(ours) - set(theirs)),
        n_only_b=len(set(theirs) - set(ours)),
        median_a=statistics.median(a),
        median_b=statistics.median(b),
        median_difference=statistics.median(differences),
        median_low=middle.low,
        median_high=middle.high,
        median_interval=middle.method,
        mean_difference=_mean(finite.tolist()),
        mean_low=mean.low,
        mean_high=mean.high,
        mean_interval=mean.method,
        cohens_dz=statistics.cohens_dz(finite),
        rank_biserial=test.rank_biserial,
        w_positive=test.positive,
        w_negative=test.negative,
        exact=test.exact,
        p=test.p,
        p_smallest=statistics.smallest_p(test.n - test.n_zero) if kept else math.nan,
        correction=config.correction,
        family_size=0,
        p_corrected=math.nan,
        better="",
    )


def _corrected(rows: Sequence[PairedRow], config: PairedConfig) -> list[PairedRow]:
    families: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(family_of(row, config), []).append(index)
    done = list(rows)
    for members in families.values():
        corrected = statistics.adjust([rows[index].p for index in members], config.correction)
        size = sum(not math.isnan(rows[index].p) for index in members)
        for index, p in zip(members, corrected, strict=True):
            row = replace(rows[index], p_corrected=p, family_size=size)
            done[index] = replace(row, better=_better(row, config.significance))
    return done


def _better(row: PairedRow, significance: float) -> str:
    if not row.p_corrected < significance or row.rank_biserial == 0:
        return ""
    if row.metric in HIGHER_IS_BETTER:
        return row.method_a if row.rank_biserial > 0 else row.method_b
    if row.metric in LOWER_IS_BETTER:
        return row.method_b if row.rank_biserial > 0 else row.method_a
    return ""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
