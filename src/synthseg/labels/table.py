"""Label tables as text: tab-separated, readable in a diff, with ``# key: value`` lines on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthseg import reading
from synthseg.errors import LabelError
from synthseg.labels.label import Label

COLUMNS = (
    "value",
    "name",
    "side",
    "partner",
    "generation_class",
    "contrast_class",
    "target",
    "topology",
    "quality",
    "red",
    "green",
    "blue",
)
OPTIONAL_COLUMNS = ("tissue",)
HEADER_KEYS = ("name", "description", "source")
_TEXT = ("name", "side")
TABLE_BYTES = 16 * 2**20  # the largest atlases have a few thousand labels of 100 bytes
_DIGITS = 19  # of a number: more are beyond any that is allowed, and Python refuses to convert very many


def format_table(labels: Iterable[Label], header: Mapping[str, str], remarks: Sequence[str] = ()) -> str:
    """Write a table: header keys, then remarks as comments, then one row per label."""
    lines = [f"# {key}: {' '.join(text.split())}" for key, text in header.items() if text]
    lines += [f"# {' '.join(remark.split())}".rstrip() for remark in remarks]
    lines.append("\t".join((*COLUMNS, *OPTIONAL_COLUMNS)))
    for label in labels:
        row = {**label_to_row(label), **dict(zip(("red", "green", "blue"), label.color, strict=True))}
        lines.append("\t".join(str(row[column]) for column in (*COLUMNS, *OPTIONAL_COLUMNS)))
    return "\n".join(lines) + "\n"


def parse_table(text: str, subject: str | Path) -> tuple[dict[str, str], list[Label], list[str]]:
    """Read a table.

    Args:
        text: the file's text; Windows line ends, a byte-order mark and quoted cells (spreadsheets) are fine.
        subject: file name for the messages.
    Returns: (header keys, labels, one place per label such as "line 12"). Rules between rows are not checked here.
    Raises: LabelError if columns are missing or unknown, or a cell is not a whole number.
    """
    header: dict[str, str] = {}
    columns: list[str] = []
    labels: list[Label] = []
    places: list[str] = []
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        # A spreadsheet may quote a comment that holds a comma, and pads every line with tabs.
        stripped = line.strip().strip('"').strip()
        if not stripped:
            continue
        if stripped.startswith("#"):
            key, colon, rest = stripped.lstrip("#").partition(":")
            if colon and not columns and key.strip().lower() in HEADER_KEYS:
                header[key.strip().lower()] = rest.strip()
            continue
        cells = [_unquote(cell) for cell in line.split("\t")]
        if not columns:
            columns = _read_columns(cells, subject, f"line {number}")
            continue
        labels.append(_read_row(cells, columns, subject, f"line {number}"))
        places.append(f"line {number}")
    if not columns:
        raise LabelError(subject, found="no header row", fix=f"start the table with: {' '.join(COLUMNS)}")
    return header, labels, places


def read_text(path: Path) -> str:
    """Read a table's file as UTF-8.

    Raises: LabelError if it cannot be read, or is in another encoding.
    """
    kind = "UTF-8 text, tab separated (in a spreadsheet: 'Text, tab delimited', encoding UTF-8)"
    fix = f"check the path; save the table as {kind}"
    return reading.read_text(path, error=LabelError, fix=fix, most=TABLE_BYTES)


def label_to_row(label: Label) -> dict[str, Any]:
    """One label as plain data that JSON can carry."""
    return {
        "value": label.value,
        "name": label.name,
        "side": label.side,
        "partner": label.partner,
        "generation_class": label.generation_class,
        "contrast_class": label.contrast_class,
        "target": label.target,
        "topology": label.topology,
        "quality": label.quality,
        "color": list(label.color),
        "tissue": label.tissue,
    }


def label_from_row(row: Mapping[str, Any], subject: str | Path, place: str) -> Label:
    """The inverse of :func:`label_to_row`.

    Raises: LabelError if a key is missing or unknown. Contents are checked by ``check_labels``.
    """
    known = [*Label.__dataclass_fields__]
    missing = [key for key in known if key not in row and key != "tissue"]
    unknown = [str(key) for key in row if key not in known]
    if missing or unknown:
        raise LabelError(
            subject,
            found=f"{place}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}",
            fix=f"each row holds exactly: {', '.join(known)} (tissue may be left out)",
        )
    color = row["color"]
    if not isinstance(color, (list, tuple)):
        raise LabelError(subject, found=f"{place}: colour {color!r}", fix="write it as [red, green, blue]")
    return Label(**{**row, "color": tuple(color)})


def _unquote(cell: str) -> str:
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        cell = cell[1:-1].replace('""', '"')
    return cell.strip()


def _read_columns(cells: list[str], subject: str | Path, place: str) -> list[str]:
    columns = [cell.lower() for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        one_cell = len(columns) == 1 and any(mark in columns[0] for mark in ",; ")
        raise LabelError(
            subject,
            found=f"{place}: a header without the columns {', '.join(missing)}",
            fix="separate the columns with tabs" if one_cell else "add these columns to the header and to every row",
        )
    extra = [column for column in columns if column not in (*COLUMNS, *OPTIONAL_COLUMNS)]
    if extra or len(set(columns)) != len(columns):
        raise LabelError(
            subject,
            found=f"{place}: a header with unknown or repeated columns ({', '.join(extra) or 'repeated'})",
            fix=f"keep each of these once: {', '.join((*COLUMNS, *OPTIONAL_COLUMNS))}; remarks go in lines with '#'",
        )
    return columns


def _read_row(cells: list[str], columns: list[str], subject: str | Path, place: str) -> Label:
    while len(cells) > len(columns) and not cells[-1]:
        cells.pop()
    if len(cells) != len(columns):
        raise LabelError(
            subject,
            found=f"{place}: {len(cells)} cells under {len(columns)} columns",
            fix="fill every column, separated by tabs (spaces do not separate)",
        )
    row: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        row[column] = cell if column in _TEXT else _read_number(cell, column, subject, place)
    row["side"] = row["side"].lower()
    color = (row.pop("red"), row.pop("green"), row.pop("blue"))
    return Label(**row, color=color)


def _read_number(cell: str, column: str, subject: str | Path, place: str) -> int:
    digits = cell.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS):
        raise LabelError(
            subject,
            found=f"{place}: {column} = {cell[:80]!r}, not a whole number" if cell else f"{place}: {column} is empty",
            fix="write a whole number there",
        )
    return int(cell)
