"""Things in a file's place that are no file, and valid files under odd names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fuzz.mutate import Example

NO_TEXT = "\udcff"  # a byte that is no UTF-8
ODD_NAMES = (
    "a b",
    "größe-脳-мозг",
    "line\nbreak",
    "tab\tand 'quotes\"",
    "-rf",
    "%s {0} $HOME `id`",
    "..trick",
    "\udcff",
)


def odd_places(example: Example, folder: Path) -> Iterator[tuple[Path, bool]]:
    """Paths to read, one at a time, and whether each may be refused (a valid example under an odd name may not).

    A zero-byte file, a link to itself, a link to nothing, a pipe that nobody writes to, an endless device and a folder
    (or, in a folder's place, an empty file and an empty folder), each under the example's own name; then the example in
    folders of odd names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / example.name
    path.touch()
    yield path, True
    path.symlink_to(path.name)
    yield path, True
    path.symlink_to("nothing-here")
    yield path, True
    os.mkfifo(path)
    yield path, True
    path.symlink_to("/dev/zero")
    yield path, True
    path.mkdir()
    yield path, True
    for name in ODD_NAMES:
        odd = folder / name
        yield example.write(odd), name == NO_TEXT  # safetensors takes UTF-8 names only
        shutil.rmtree(odd, ignore_errors=True)
