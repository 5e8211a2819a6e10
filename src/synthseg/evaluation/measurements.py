"""Tables of scores for comparing methods: one measured value a line, with any columns beside it."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.evaluation.writing import listed
from synthseg.reading import read_text

LONG_COLUMNS = ("scan", "method", "label", "structure", "metric", "value", "unit")
MEAN = "mean over structures"
SIDE = re.compile(r"^(left|right)[ _-]+", re.IGNORECASE)
# What a table with one line per scan and structure calls its scores, and what a long table calls them.
WIDE_METRICS = {
    "dice": ("dice", ""),
    "sd95_mm": ("sd95", "mm"),
    "mean_distance_mm": ("mean_distance", "mm"),
    "hausdorff_mm": ("hausdorff", "mm"),
    "surface_dice": ("surface_dice", ""),
    "volume_similarity": ("volume_similarity", ""),
    "volume_predicted_mm3": ("volume_predicted", "mm3"),
    "volume_truth_mm3": ("volume_truth", "mm3"),
}
HIGHER_IS_BETTER = frozenset({"dice", "surface_dice", "volume_similarity"})
LOWER_IS_BETTER = frozenset({"sd95", "mean_distance", "hausdorff"})


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one structure of one scan, by one method."""

    scan: str
    method: str
    label: str  # "17"; "17,53" for both sides together; "" for a mean over structures
    structure: str
    metric: str
    value: float  # NaN: undefined (absent from both maps); infinite: a distance to something absent
    unit: str
    columns: Mapping[str, str] = field(default_factory=dict)  # what else the line says, e.g. resolution_mm


def read_measurements(path: str | Path, method: str | None = None) -> list[Measurement]:
    """Read scores: a long table (``scan, method, label, structure, metric, value, unit`` and any other columns) or a
    wide one (a line per scan and structure, a column per metric, as ``synthseg evaluate -o`` writes it).

    Args:
        path: .tsv or .csv.
        method: what the whole table is of; None: its ``method`` column, or the file's name where it has none.
    Raises: UsageError for other files, missing columns, values that are no numbers, a table without lines.
    """
    path = Path(path)
    header, lines = read_table(path)
    if {"metric", "value"} <= set(header):
        _require(path, header, ("scan", "structure", "metric", "value"))
        return [_long(path, number, line, method) for number, line in lines]
    metrics = [name for name in WIDE_METRICS if name in header]
    if not metrics:
        fix = f"give a long table with the columns {', '.join(LONG_COLUMNS)}, or what `synthseg evaluate -o` writes"
        raise UsageError(path, found=f"the columns {', '.join(header) or 'none'}", fix=fix)
    _require(path, header, ("scan", "structure"))
    return [row for number, line in lines for row in _wide(path, number, line, metrics, method)]


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and (line number, cells by column) of a .tsv or .csv file with at least one line.

    Raises: UsageError naming the file, and the line that has another number of cells.
    """
    delimiter = {".tsv": "\t", ".csv": ","}.get(path.suffix.lower())
    if delimiter is None:
        raise UsageError(path, found=f"the suffix {path.suffix!r}", fix="give a .tsv or .csv table")
    text = read_text(path, error=UsageError, fix="give an existing UTF-8 table")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:  # a quotation mark that nothing closes takes the rest of the file into one cell
        found = f"no readable line {reader.line_num} ({error})"
        raise UsageError(path, found=found, fix="close its quotation marks, or take them out") from error
    if len(lines) < 2:
        raise UsageError(path, found="a table without lines", fix="give one with a header and at least one line")
    header = [cell.strip() for cell in lines[0][1]]
    if len(set(header)) != len(header):
        raise UsageError(path, found="a column name that occurs twice", fix="name each column once")
    for number, line in lines[1:]:
        if len(line) != len(header):
            found = f"{len(line)} cells in line {number}, {len(header)} in the header"
            raise UsageError(path, found=found, fix="complete the line; the suffix says what separates cells")
    return header, [(n, {h: c.strip() for h, c in zip(header, line, strict=True)}) for n, line in lines[1:]]


def join_tables(paths: Sequence[str | Path], names: Sequence[str] | None = None) -> list[Measurement]:
    """All measurements of several tables.

    Args:
        names: one a table: what its method is called; needed when two tables call theirs the same.
    Raises: UsageError as :func:`read_measurements`; for another number of names; for two tables of one method.
    """
    if names is not None and (len(names) != len(paths) or len(set(names)) != len(names)):
        found = f"{len(names)} names for {len(paths)} tables" if len(names) != len(paths) else "a name given twice"
        raise UsageError("--names", found=found, fix="give each table a name of its own, e.g. --names ours,theirs")
    found_in: dict[str, Path] = {}
    rows: list[Measurement] = []
    for index, path in enumerate(map(Path, paths)):
        table = read_measurements(path, names[index] if names is not None else None)
        for method in dict.fromkeys(row.method for row in table):
            if method in found_in:
                found = f"the method {method!r}, which {found_in[method]} has as well"
                raise UsageError(path, found=found, fix="tell the tables apart with --names, e.g. --names ours,theirs")
            found_in[method] = path
        rows += table
    return rows


def select(
    rows: Iterable[Measurement], *, metric: str | None = None, where: Mapping[str, str] | None = None
) -> list[Measurement]:
    """The rows of one metric whose columns hold what ``where`` wants.

    Raises: UsageError when none is left, naming what there is instead.
    """
    kept = list(rows)
    for column, wanted in (where or {}).items():
        values = sorted({value_of(row, column) for row in kept})
        kept = [row for row in kept if value_of(row, column) == wanted]
        if not kept:
            raise UsageError(f"--where {column}={wanted}", found=f"only {listed(values)}", fix="ask for one of these")
    if metric is not None:
        metrics = sorted({row.metric for row in kept})
        kept = [row for row in kept if row.metric == metric]
        if not kept:
            raise UsageError(
                "the metric", found=f"{metric!r}; the tables have {listed(metrics)}", fix="use one of these"
            )
    return kept


def value_of(row: Measurement, column: str) -> str:
    """What a line says in any column. Raises: UsageError for a column it does not have."""
    if column in ("scan", "method", "label", "structure", "metric", "unit"):
        return str(getattr(row, column))
    if column not in row.columns:
        found = f"no such column in the table of {row.method}; it has {listed(sorted(row.columns)) or 'no others'}"
        raise UsageError(f"column {column!r}", found=found, fix="add the column to every table, or name another")
    return row.columns[column]


def merge_sides(rows: Sequence[Measurement]) -> list[Measurement]:
    """Left and right structures as one: the sum of volumes, the mean of other values, over sides that have a value.

    Structures whose names do not begin with left or right stay as they are. Order: first appearance.
    """
    found: dict[tuple[object, ...], list[Measurement]] = {}
    for row in rows:
        name = SIDE.sub("", row.structure)
        key = (row.scan, row.method, name, row.metric, row.unit, tuple(sorted(row.columns.items())))
        found.setdefault(key, []).append(row)
    merged = []
    for group in found.values():
        sides = {match.group(1).lower() for row in group if (match := SIDE.match(row.structure))}
        if len(sides) != 2 or len(group) != 2:
            merged += group  # midline, one side only, or lines that occur twice: whoever counts will say so
            continue
        values = [row.value for row in group if not math.isnan(row.value)]
        total = sum(values) if values else math.nan
        value = total if group[0].unit == "mm3" else total / max(1, len(values))
        label = ",".join(sorted({row.label for row in group if row.label}, key=_by_number))
        merged.append(replace(group[0], label=label, structure=SIDE.sub("", group[0].structure), value=value))
    return merged


def require_one_unit(rows: Sequence[Measurement]) -> None:
    """Raise UsageError unless values of one metric have one unit: surface Dice at two tolerances have two."""
    units = unique(rows, "unit")
    if len(units) > 1:
        found = f"values in {' and '.join(repr(unit) for unit in units)}"
        fix = "compare values of one unit, chosen with --where unit=..."
        raise UsageError(f"the metric {rows[0].metric}", found=found, fix=fix)


def unique(rows: Iterable[Measurement], column: str) -> list[str]:
    """Different values of a column, in the order in which they appear."""
    return list(dict.fromkeys(value_of(row, column) for row in rows))


def _long(path: Path, number: int, line: dict[str, str], method: str | None) -> Measurement:
    return Measurement(
        scan=line["scan"],
        method=method or line.get("method") or path.stem,
        label=line.get("label", ""),
        structure=line["structure"],
        metric=line["metric"],
        value=parse_number(path, number, "value", line["value"]),
        unit=line.get("unit", ""),
        columns={name: cell for name, cell in line.items() if name not in LONG_COLUMNS},
    )


def _wide(path: Path, number: int, line: dict[str, str], metrics: list[str], method: str | None) -> list[Measurement]:
    known = {"scan", "method", "label", "structure", *metrics}
    first = Measurement(
        scan=line["scan"],
        method=method or line.get("method") or path.stem,
        label=line.get("label", ""),
        structure=line["structure"],
        metric="",
        value=math.nan,
        unit="",
        columns={name: cell for name, cell in line.items() if name not in known},
    )
    rows = []
    for name in metrics:
        metric, unit = WIDE_METRICS[name]
        rows.append(replace(first, metric=metric, unit=unit, value=parse_number(path, number, name, line[name])))
    return rows


def parse_number(path: Path, number: int, column: str, cell: str) -> float:
    """A number, ``nan``, ``n/a`` or nothing (NaN), ``inf``. Raises: UsageError naming file, line and column."""
    if cell.lower() in ("", "n/a", "na", "nan"):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        found = f"{cell!r} in line {number}, column {column}"
        raise UsageError(path, found=found, fix="write a number, nan or inf") from None


def _require(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        fix = f"a long table has the columns {', '.join(LONG_COLUMNS)}"
        raise UsageError(path, found=f"no column {', '.join(missing)}", fix=fix)


def _by_number(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isdecimal() and len(label) < 19 else (2**63, label)
