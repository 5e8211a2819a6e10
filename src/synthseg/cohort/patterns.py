"""Shell patterns as paths, in which links may lead in circles. Standard library only."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.files import LONGEST_PATH
from synthseg.reading import exists, real_path

_WILD = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


def is_pattern(path: Path) -> bool:
    """Whether a path has letters that stand for others."""
    return bool(_WILD.search(str(path)))


def fitting(pattern: Path) -> list[Path]:
    """Files and folders that a shell pattern fits, sorted; ``**`` is any number of folders.

    As in shells, hidden ones fit only where the pattern's part begins with a dot, and ``**`` does not follow links. No
    link is followed back to a folder that it is in: the standard library's ``glob`` does so, and two such links in a
    folder are then looked through 2^40 times. Folders that may not be read have nothing in them.

    Raises: UsageError for a pattern that is longer than any path.
    """
    if len(str(pattern)) > LONGEST_PATH:
        raise UsageError(pattern, found=f"a pattern of {len(str(pattern))} characters", fix="give a shorter one")
    first = next(i for i, part in enumerate(pattern.parts) if _WILD.search(part))
    parts = [part for part, same in groupby(pattern.parts[first:]) for _ in (same if part != _ANY_DEPTH else (0,))]
    base = Path(*pattern.parts[:first])
    found: set[Path] = set()
    waiting = [(base, 0, frozenset((real_path(base),)))]
    seen: set[tuple[Path, int]] = set()
    while waiting:
        place, depth, above = waiting.pop()
        if (place, depth) in seen:
            continue
        seen.add((place, depth))
        last = depth == len(parts) - 1
        if parts[depth] == _ANY_DEPTH:
            inside = list(_matching(place, "*"))
            found.update(path for path in inside if last and path.is_file())
            waiting += [] if last else [(place, depth + 1, above)]
            waiting += [(path, depth, above) for path in inside if path.is_dir() and not path.is_symlink()]
        elif last:
            found.update(_matching(place, parts[depth]))
        else:
            folders = [(path, real_path(path)) for path in _matching(place, parts[depth]) if path.is_dir()]
            waiting += [(path, depth + 1, above | {real}) for path, real in folders if real not in above]
    return sorted(found)


def _matching(folder: Path, part: str) -> Iterator[Path]:
    """What is in a folder and fits one part of a pattern."""
    if not _WILD.search(part):
        if exists(folder / part):
            yield folder / part
        return
    fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names are all we need
    except OSError:
        return
    for name in names:
        if fits(os.path.normcase(name)) and (part.startswith(".") or not name.startswith(".")):
            yield folder / name
