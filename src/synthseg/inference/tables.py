"""Volume tables of many scans: the original's CSV layout, and a tidy TSV. Rows of other runs are kept."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.files import atomic_file
from synthseg.inference.locks import lock_beside

Row = Mapping[str, float]  # structure name -> mm3, the total first
TABLE_SUFFIXES = (".csv", ".tsv")
TIDY_HEADER = ("subject", "value", "structure", "volume_mm3")
SAVE_EVERY_S = 10.0
SHARE_OF_TIME = 0.05  # at most this much of a run is spent on rewriting a table that has become long


class VolumeTable:
    """A table on disk that scans are added to, also by several runs at the same time.

    New rows wait in memory until :meth:`save`, which reads the file again, adds them and writes it whole, under a lock:
    no run loses the rows of another, and the file is never half a table. A run that is killed between two savings
    leaves them to the next one, which finds them in the scans' records.

    ``.csv``: one row a scan, CRLF line ends, header ``subject``, ``total intracranial``, names in ascending order of
    value, numbers as Python prints them after rounding to 3 decimals (reference 6.9). ``.tsv``: one row a structure:
    subject, value, structure, volume_mm3; the total's value is ``n/a``.

    Args:
        names: columns or structures of every scan, total first: what ``Segmentation.volumes_by_name`` lists.
        values: label value of each structure, by name.
    Raises: UsageError for another suffix or for a file that holds other columns.
    """

    def __init__(self, path: Path, names: Sequence[str], values: Mapping[str, int]) -> None:
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UsageError(path, found=f"suffix '{path.suffix}'", fix="name the volume table .csv or .tsv")
        self.path = path
        self.names = tuple(names)
        self.values = dict(values)
        self.tidy = path.suffix.lower() == ".tsv"
        self.rows: dict[str, list[str]] = self._read()
        self._new: dict[str, list[str]] = {}
        self._due = 0.0  # time.monotonic(): the first row is saved at once

    def add(self, subject: str, volumes: Row) -> None:
        """Add or replace the row of ``subject``; it is on the disk after the next :meth:`save`."""
        cells = [repr(round(float(volumes[name]), 3)) for name in self.names]
        if self.rows.get(subject) != cells:
            self.rows[subject] = self._new[subject] = cells

    def save(self) -> None:
        """Put all new rows into the file.

        Raises: OutputError if it cannot be written; UsageError if it holds other columns by now. The rows are then
            kept for the next time.
        """
        if not self._new:
            return
        start = time.monotonic()
        try:
            with lock_beside(self.path):
                self.rows = {**self._read(), **self._new}
                write_text(self.path, self._to_text())
            self._new = {}
        finally:
            end = time.monotonic()
            self._due = end + max(SAVE_EVERY_S, (end - start) / SHARE_OF_TIME)

    def save_if_due(self) -> None:
        """:meth:`save`, if the last one was ``SAVE_EVERY_S`` ago; more rarely when saving takes long."""
        if time.monotonic() >= self._due:
            self.save()

    def _to_text(self) -> str:
        text = io.StringIO(newline="")
        if self.tidy:
            writer = csv.writer(text, delimiter="\t", lineterminator="\n")
            writer.writerow(TIDY_HEADER)
            for subject, cells in self.rows.items():
                for name, cell in zip(self.names, cells, strict=True):
                    writer.writerow([subject, self.values.get(name, "n/a"), name, cell])
        else:
            writer = csv.writer(text)  # its default line end is CRLF, as in the original's tables
            writer.writerow(["subject", *self.names])
            writer.writerows([subject, *cells] for subject, cells in self.rows.items())
        return text.getvalue()

    def _read(self) -> dict[str, list[str]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                self.path, found=f"a file that cannot be read ({error})", fix="choose another file"
            ) from error
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if self.tidy else ","))
        rows = self._tidy_rows(lines) if self.tidy else self._wide_rows(lines)
        if rows is None:
            fix = "choose another file, or delete this one: tables of other structures are not mixed"
            raise UsageError(self.path, found="an existing table with other columns", fix=fix)
        return rows

    def _wide_rows(self, lines: list[list[str]]) -> dict[str, list[str]] | None:
        if not lines:
            return {}
        if lines[0] != ["subject", *self.names] or any(len(line) != len(lines[0]) for line in lines if line):
            return None
        return {line[0]: line[1:] for line in lines[1:] if line}

    def _tidy_rows(self, lines: list[list[str]]) -> dict[str, list[str]] | None:
        if not lines:
            return {}
        if lines[0] != list(TIDY_HEADER):
            return None
        found: dict[str, dict[str, str]] = {}
        for line in lines[1:]:
            if len(line) != len(TIDY_HEADER):
                return None
            found.setdefault(line[0], {})[line[2]] = line[3]
        if any(set(cells) != set(self.names) for cells in found.values()):
            return None
        return {subject: [cells[name] for name in self.names] for subject, cells in found.items()}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Line ends are written as they are. Raises: OutputError."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
