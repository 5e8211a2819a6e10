"""Results in small JSON files, so that an interrupted run goes on where it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthseg.files import atomic_file


def kept(path: str | Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a file; made and written there when there is none, or one that cannot be read.

    Args:
        make: gives plain values. What it raises goes through, and nothing is written.
    Returns: the values as they come back from JSON, whether they were kept or made just now.
    Raises: OutputError if the file cannot be written.
    """
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):  # none there, or damaged: made again
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    text = json.dumps(make(), indent=1)
    with atomic_file(path) as file:
        file.write(text.encode())
    values: dict[str, Any] = json.loads(text)
    return values
