"""Dataclasses as a table on disk, and lists of names in messages."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from synthseg.evaluation.tables import check_table_path
from synthseg.files import atomic_file


def write_rows(rows: Sequence[object], columns: Sequence[str], path: str | Path) -> Path:
    """Write dataclasses as a table: 8 significant digits, ``nan`` and ``inf``, ``yes`` or ``no``.

    Raises: UsageError unless the name ends in .tsv or .csv; OutputError when it cannot be written.
    """
    path = check_table_path(path)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if path.suffix.lower() == ".csv" else "\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(cell) for cell in astuple(row)] for row in rows)  # type: ignore[call-overload]
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    return path


def listed(names: Sequence[str], shown: int = 8) -> str:
    """Names with commas; beyond ``shown`` of them, how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.8g}" if isinstance(value, float) else value
