"""Tables beside maps made from label maps: what each was made of, so that a stopped batch goes on.

Nothing stale passes: a map's rows are written before the map, and an older map goes first. Whenever a batch is stopped,
a map that is there is the one its rows tell of.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from synthseg.errors import OutputError, VolumeError
from synthseg.files import atomic_file

Row = dict[str, str]


def content_code(files: Sequence[Path]) -> str:
    """Sixteen digits of the SHA-256 of the files' contents, in order. Raises: VolumeError naming the first file."""
    try:
        content = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    except OSError as error:
        fix = "give files that exist and may be read"
        raise VolumeError(files[0], found=f"no readable file ({error})", fix=fix) from error
    return content.hexdigest()[:16]


def refuse_clashes(targets: Iterable[Path], folder: Path, read: Iterable[Path], *, what: str, verb: str) -> None:
    """Results must not share a name, nor lie beside what is read: the next run would take them for inputs.

    Args:
        read: the files that are read. what, verb: what they are and what is done with them, for messages.
    Raises: OutputError.
    """
    twice = next((path for path, count in Counter(targets).items() if count > 1), None)
    if twice is not None:
        raise OutputError(twice, found="several label maps that would get this name", fix=f"{verb} them one by one")
    if folder.resolve() in {path.resolve().parent for path in read}:
        raise OutputError(folder, found=f"{what} themselves", fix="choose another folder")


def refuse_others(paths: Iterable[Path], rows: Mapping[str, Row], wanted: Row, *, table: str) -> None:
    """Files that another run has made must not pass for this one's.

    Args:
        rows: a row of each map by name. wanted: what its cells must be.
    Raises: OutputError for an existing file that the table does not list, or lists with something else.
    """
    for path in (path for path in paths if path.exists()):
        known = rows.get(path.name)
        if known is None:
            found = f"an existing file that {table} does not list"
            raise OutputError(path, found=found, fix="choose another folder, or add --overwrite")
        differing = [key for key, value in wanted.items() if known[key] != value]
        if differing:
            found = f"a map made otherwise (not the same {', '.join(differing)})"
            raise OutputError(path, found=found, fix="give the same as then, another folder, or --overwrite")


def read_rows(path: Path, columns: Sequence[str], *, overwrite: bool) -> list[Row]:
    """A table's rows; none where there is no table, or a damaged one that is to be replaced. Raises: OutputError."""
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except (OSError, csv.Error) as error:
        raise OutputError(path, found=f"no readable table ({error})", fix="remove it") from error
    if all(set(row) == set(columns) and None not in row.values() for row in rows):
        return rows
    if overwrite:
        return []
    found = f"not the columns {', '.join(columns)}"
    raise OutputError(path, found=found, fix="remove it, or add --overwrite")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replace a table, whole or not at all. Raises: OutputError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
