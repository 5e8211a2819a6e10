"""Tables of many scans: the original's CSV layout, and a tidy TSV. Rows of other runs are kept.

What a table holds is a :class:`TableLayout` (``layouts.py``): volumes, or predicted quality.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.files import atomic_file
from synthseg.locks import lock_beside

Cells = Mapping[tuple[str, str], str]  # (item, measure) -> text
TABLE_SUFFIXES = (".csv", ".tsv")
SAVE_EVERY_S = 10.0
SHARE_OF_TIME = 0.05  # at most this much of a run is spent on rewriting a table that has become long


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """What a table holds of every scan: measures of items (a structure's volume, a group's predicted Dice).

    Attributes:
        what: how messages call the table, e.g. "volume table".
        columns: of the CSV after ``subject``: header -> (item, measure).
        keys: headers of the cells that name an item in the TSV; items: item -> those cells, one line each.
        measures: headers of the TSV's last columns.
    """

    what: str
    columns: Mapping[str, tuple[str, str]]
    keys: tuple[str, ...]
    items: Mapping[str, tuple[str, ...]]
    measures: tuple[str, ...]


class ScanTable:
    """A table on disk that scans are added to, also by several runs at the same time.

    New rows wait in memory until :meth:`save`, which reads the file again, adds them and writes it whole, under a lock:
    no run loses the rows of another, and the file is never half a table. A run that is killed between two savings
    leaves them to the next one, which finds them in the scans' records.

    ``.csv``: one row a scan, CRLF line ends, header ``subject`` and the layout's columns (reference 6.9). ``.tsv``: one
    row an item: ``subject``, the cells that name the item, its measures.

    Attributes:
        rows: cells of every subject: in the order of the CSV's columns, or of the TSV item by item.
    Raises: UsageError for another suffix or for a file that holds other columns.
    """

    def __init__(self, path: Path, layout: TableLayout) -> None:
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UsageError(path, found=f"suffix '{path.suffix}'", fix=f"name the {layout.what} .csv or .tsv")
        self.path = path
        self.layout = layout
        self.tidy = path.suffix.lower() == ".tsv"
        self.rows: dict[str, list[str]] = self._read()
        self._new: dict[str, list[str]] = {}
        self._due = 0.0  # time.monotonic(): the first row is saved at once

    def add(self, subject: str, cells: Cells) -> None:
        """Add or replace what the table holds of ``subject``; it is on the disk after the next :meth:`save`."""
        row = [cells[place] for place in self._places()]
        if self.rows.get(subject) != row:
            self.rows[subject] = self._new[subject] = row

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

    def _places(self) -> list[tuple[str, str]]:
        """(item, measure) of every cell of a row."""
        if self.tidy:
            return [(item, measure) for item in self.layout.items for measure in self.layout.measures]
        return list(self.layout.columns.values())

    def _header(self) -> list[str]:
        if self.tidy:
            return ["subject", *self.layout.keys, *self.layout.measures]
        return ["subject", *self.layout.columns]

    def _to_text(self) -> str:
        text = io.StringIO(newline="")
        # The default line end is CRLF, as in the original's tables.
        writer = csv.writer(text, delimiter="\t", lineterminator="\n") if self.tidy else csv.writer(text)
        writer.writerow(self._header())
        for subject, cells in self.rows.items():
            if self.tidy:
                width = len(self.layout.measures)
                for index, key in enumerate(self.layout.items.values()):
                    writer.writerow([subject, *key, *cells[index * width : (index + 1) * width]])
            else:
                writer.writerow([subject, *cells])
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
        try:
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if self.tidy else ","))
        except csv.Error as error:
            raise UsageError(self.path, found=f"no readable table ({error})", fix="choose another file") from error
        rows = self._rows_of(lines) if lines else {}
        if rows is None:
            fix = "choose another file, or delete this one: tables of other structures or options are not mixed"
            raise UsageError(self.path, found="an existing table with other columns", fix=fix)
        return rows

    def _rows_of(self, lines: list[list[str]]) -> dict[str, list[str]] | None:
        """Rows by subject; None if these are not the lines of such a table."""
        header, body = lines[0], [line for line in lines[1:] if line]
        if header != self._header() or any(len(line) != len(header) for line in body):
            return None
        return self._tidy_rows(body) if self.tidy else {line[0]: line[1:] for line in body}

    def _tidy_rows(self, body: list[list[str]]) -> dict[str, list[str]] | None:
        named = 1 + len(self.layout.keys)
        wanted = list(self.layout.items.values())
        found: dict[str, dict[tuple[str, ...], list[str]]] = {}
        for line in body:
            found.setdefault(line[0], {})[tuple(line[1:named])] = line[named:]
        if any(set(cells) != set(wanted) for cells in found.values()):
            return None
        return {subject: [cell for key in wanted for cell in cells[key]] for subject, cells in found.items()}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Line ends are written as they are.

    Bytes in file names that are no text are spelled out (``\\udcff``): the file is UTF-8 whatever scans are called.

    Raises: OutputError.
    """
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
