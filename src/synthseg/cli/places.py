"""Folders of volumes as arguments of commands."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path


def volumes_in(place: Path, pattern: str, *, what: str) -> list[Path]:
    """The file itself, or the folder's volumes of such names (not searched recursively), in order.

    Args:
        pattern: a shell pattern; a file given by itself need not fit it.
        what: the volumes are, for messages.
    Raises: UsageError if there is nothing.
    """
    from synthseg.errors import UsageError
    from synthseg.volumes import is_volume_path

    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(place, found="no such file or folder", fix="check the path")
    files = [p for p in sorted(place.iterdir()) if p.is_file() and is_volume_path(p) and fnmatch(p.name, pattern)]
    if not files:
        named = "" if pattern == "*" else f" named {pattern!r}"
        raise UsageError(place, found=f"no {what}{named} in this folder", fix="check the folder and the pattern")
    return files
