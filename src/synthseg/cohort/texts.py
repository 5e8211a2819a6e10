"""JSON and TSV files of a derivative: read with errors that name the file, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from synthseg import reading
from synthseg.errors import SynthsegError
from synthseg.files import atomic_file

_AGAIN = "check it, or make it again"


def read_text(path: Path) -> str:
    """Raises: SynthsegError for a file that is missing or no text."""
    return reading.read_text(path, error=SynthsegError, fix=_AGAIN)


def read_json(path: Path, *, any_name: bool = False) -> dict[str, Any]:
    """A JSON object; with ``any_name`` one of our own, which holds names of files, whatever their bytes.

    Raises: SynthsegError for a file that is missing or holds something else.
    """
    given = reading.read_json(path, error=SynthsegError, fix=_AGAIN, any_name=any_name)
    if not isinstance(given, dict):
        raise SynthsegError(path, found="JSON that is no object", fix=_AGAIN)
    return given


def write_text(path: Path, text: str) -> None:
    """Bytes in file names that are no text are spelled out (``\\udcff``). Raises: OutputError."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def to_json(values: Any) -> str:
    """As text that ends with a line end; numbers that JSON has no words for are our own mistake (ValueError)."""
    return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Raises: OutputError."""
    write_text(path, to_json(values))


def write_once(path: Path, text: str) -> bool:
    """Write a file that all scans share, unless it is there. Returns: whether it now says this.

    Several workers may do so at once: each writes it whole, and what they say is the same wherever scans share it.

    Raises: OutputError.
    """
    try:
        return path.read_bytes() == text.encode("utf-8", "backslashreplace")
    except FileNotFoundError:
        write_text(path, text)
        return True


def tsv(lines: Iterable[Sequence[object]]) -> str:
    """Lines of cells as tab-separated text."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
    return text.getvalue()
