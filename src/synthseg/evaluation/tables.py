"""Scores as a file with one row per scan and structure, and their summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg.errors import UsageError
from synthseg.evaluation.scoring import ScoreRow
from synthseg.files import atomic_file

if TYPE_CHECKING:
    from synthseg.evaluation.measurements import Measurement

COLUMNS = tuple(field.name for field in fields(ScoreRow))
_DELIMITERS = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class StructureSummary:
    """One structure over all scans that have it in either map."""

    label: int
    structure: str
    n_scans: int
    dice: float  # mean
    sd95_mm: float  # mean of the finite distances; NaN when there is none
    n_missing: int  # scans where only one map has the structure: Dice 0, distance infinite and left out of its mean


@dataclass(frozen=True)
class ScanSummary:
    """One scan over its structures."""

    scan: str
    n_structures: int
    dice: float


@dataclass(frozen=True)
class Summary:
    """Means; structures absent from both maps count nowhere."""

    structures: tuple[StructureSummary, ...]
    scans: tuple[ScanSummary, ...]
    dice: float  # mean over scans of each scan's mean over structures: every scan weighs the same


def summarise(rows: Sequence[ScoreRow]) -> Summary:
    """Mean Dice (and SD95) of each structure and each scan, and over all. Labels ascend, scans keep their order."""
    present = [row for row in rows if not math.isnan(row.dice)]
    structures = []
    for label in sorted({row.label for row in present}):
        of_label = [row for row in present if row.label == label]
        missing = sum(1 for row in of_label if min(row.volume_predicted_mm3, row.volume_truth_mm3) == 0)
        finite = [row.sd95_mm for row in of_label if math.isfinite(row.sd95_mm)]
        dice = _mean([row.dice for row in of_label])
        structures.append(StructureSummary(label, of_label[0].structure, len(of_label), dice, _mean(finite), missing))
    scans = []
    for scan in dict.fromkeys(row.scan for row in present):
        scores = [row.dice for row in present if row.scan == scan]
        scans.append(ScanSummary(scan, len(scores), _mean(scores)))
    return Summary(tuple(structures), tuple(scans), _mean([scan.dice for scan in scans]))


def means_by_structure(rows: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    """(label, metric) -> mean over scans of the finite values; NaN where there is none."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row.label, row.metric), []).append(row.value)
    return {key: _mean([value for value in found if math.isfinite(value)]) for key, found in values.items()}


def check_table_path(path: str | Path) -> Path:
    """The path of a table to write. Raises UsageError unless it ends in .tsv or .csv."""
    path = Path(path)
    if path.suffix.lower() not in _DELIMITERS:
        raise UsageError(path, found=f"the suffix {path.suffix!r}", fix="name the table *.tsv or *.csv")
    return path


def write_scores(rows: Sequence[ScoreRow], path: str | Path) -> Path:
    """Write one line per scan and structure; the file appears whole or not at all.

    Columns are the fields of ``ScoreRow``. Numbers have up to 8 significant digits; missing ones are ``nan``,
    infinite ones ``inf``, as pandas, R and numpy read them.

    Raises: UsageError unless the name ends in .tsv or .csv; OutputError when it cannot be written.
    """
    return _write(path, COLUMNS, (astuple(row) for row in rows))


def write_long(rows: Sequence[Measurement], path: str | Path) -> Path:
    """Write one line per scan, structure and metric; whole or not at all.

    Columns are ``scan, method, label, structure, metric, value, unit`` and after them what the rows' ``columns`` hold,
    empty where a row does not have it. Numbers as in :func:`write_scores`. :func:`read_long` reads them back.

    Raises: UsageError unless the name ends in .tsv or .csv; OutputError when it cannot be written.
    """
    from synthseg.evaluation.measurements import LONG_COLUMNS  # not above: it uses this module

    more = list(dict.fromkeys(name for row in rows for name in row.columns))
    lines = ([*(getattr(row, name) for name in LONG_COLUMNS), *(row.columns.get(m, "") for m in more)] for row in rows)
    return _write(path, (*LONG_COLUMNS, *more), lines)


def read_long(path: str | Path) -> list[Measurement]:
    """Read what :func:`write_long` wrote. Raises: UsageError as ``synthseg.evaluation.measurements`` does."""
    from synthseg.evaluation.measurements import read_measurements  # not above: it uses this module

    return read_measurements(path)


def _write(path: str | Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> Path:
    path = check_table_path(path)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=_DELIMITERS[path.suffix.lower()], lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{cell:.8g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    return path


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
