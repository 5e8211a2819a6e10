"""The original's tables (reference 6.9): a row a scan, CRLF line ends, written whole after every scan."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.files import atomic_file


class OriginalTable:
    """One CSV file. Whatever it held before is replaced when the first row is ready, not earlier.

    Args:
        path: the file.
        of_list: of one scan from a list of scans: the first cell of the header is empty then, not "subject".
    """

    def __init__(self, path: Path, *, of_list: bool = False) -> None:
        self.path = path
        self.first_cell = "" if of_list else "subject"
        self.rows: list[list[str]] = []

    def add(self, subject: str, cells: Mapping[str, str]) -> None:
        """Append a row and write the file. Raises: OutputError if it cannot be written; the row is kept then."""
        if not self.rows:
            self.rows.append([self.first_cell, *cells])
        self.rows.append([subject, *cells.values()])
        text = as_csv(self.rows).encode("utf-8", errors="surrogateescape")
        with atomic_file(self.path) as file:
            file.write(text)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Python's CSV writer writes them: commas, CRLF, quotes where needed."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def subject_of(scan: Path) -> str:
    """How a table names a scan: without ``.nii.gz``; other extensions stay (reference 6.9)."""
    return scan.name.removesuffix(".nii.gz")


def volume_cells(volumes_mm3: Mapping[str, Any]) -> dict[str, str]:
    """Volumes as the original prints them: the shortest digits that tell the number from its neighbours in its own
    precision (``14575.553``, ``0.0``), never with an exponent, which newer numpy gives single precision from 1e6 on.
    """
    return {name: np.format_float_positional(volume, trim="0") for name, volume in volumes_mm3.items()}


def quality_cells(scores: Mapping[str, float]) -> dict[str, str]:
    """Scores with four decimals (``0.0139``)."""
    return {name: f"{score:.4f}" for name, score in scores.items()}
