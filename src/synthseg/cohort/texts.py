"""JSON and TSV files of a derivative: read with errors that name the file, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from synthseg.errors import SynthsegError
from synthseg.files import atomic_file


def read_text(path: Path) -> str:
    """Raises: SynthsegError for a file that is missing or no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = f"no readable text file ({error})"
        raise SynthsegError(path, found=found, fix="check it, or make it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: SynthsegError for a file that is missing or holds something else."""
    try:
        given = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise SynthsegError(path, found=f"no JSON ({error})", fix="check it, or make it again") from error
    if not isinstance(given, dict):
        raise SynthsegError(path, found="JSON that is no object", fix="check it, or make it again")
    return given


def write_text(path: Path, text: str) -> None:
    """Raises: OutputError."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


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
        return path.read_bytes() == text.encode("utf-8")
    except FileNotFoundError:
        write_text(path, text)
        return True


def tsv(lines: Iterable[Sequence[object]]) -> str:
    """Lines of cells as tab-separated text."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
    return text.getvalue()
