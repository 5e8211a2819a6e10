"""Where weights live and how a name becomes a file. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.errors import WeightsError
from synthseg.weights.card import FOREIGN_SUFFIXES, read_card, role_of

SHIPPED_DIR = Path(__file__).parent / "shipped"
# Short names for shipped files; "compact" takes an eighth of the operations. Which weights each role has otherwise is
# said in inference/modes.toml.
ALIASES = {"default": "synthseg-2mm", "compact": "synthseg-2mm-compact"}
FOLDER_VARIABLE = "SYNTHSEG_WEIGHTS_DIR"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class WeightsEntry:
    """One file that a name leads to."""

    name: str  # what to type: the file's stem
    path: Path
    source: str  # "folder" (SYNTHSEG_WEIGHTS_DIR) or "shipped"
    card: dict[str, Any] | None  # None when the file cannot be read
    problem: str | None = None  # why it cannot be read

    @property
    def role(self) -> str | None:
        """What the network is for (see ``card.ROLES``); None when the card cannot be read."""
        return None if self.card is None else role_of(self.card)

    @property
    def alias(self) -> str | None:
        """ "default" or "compact", for the weights that these names stand for."""
        return next((alias for alias, name in ALIASES.items() if name == self.name), None)


def find_weights(name_or_path: str | Path) -> Path:
    """The file that a name or path stands for.

    A ``Path``, or text with a folder or a file suffix in it, is a path. Anything else is a name, looked for first in
    the folder named by the environment variable ``SYNTHSEG_WEIGHTS_DIR``, then among the shipped files. The names
    "default" and "compact" stand for those of :data:`ALIASES`.

    Raises: WeightsError naming the missing file, or the unknown name and the known ones.
    """
    if _is_path(name_or_path):
        path = Path(name_or_path).expanduser()
        if not path.exists():
            fix = f"check the path, or give one of the known names: {_known_names()}"
            raise WeightsError(path, found="no such file", fix=fix)
        return path
    name = ALIASES.get(str(name_or_path), str(name_or_path))
    for folder, _ in _folders():
        path = folder / f"{name}{SUFFIX}"
        if path.is_file():
            return path
    raise WeightsError(
        f"weights {str(name_or_path)!r}"
        if name == name_or_path
        else f"weights {name!r} (what {str(name_or_path)!r} stands for)",
        found="no weights of that name",
        fix=f"use one of the known names ({_known_names()}), a path, or set {FOLDER_VARIABLE} to their folder",
    )


def list_weights() -> list[WeightsEntry]:
    """Every file that a name leads to, by name; unreadable ones included, with their problem. Tensors are not read."""
    entries: dict[str, WeightsEntry] = {}
    for folder, source in _folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            entries.setdefault(path.stem, _entry(path, source))
    return [entries[name] for name in sorted(entries)]


def _entry(path: Path, source: str) -> WeightsEntry:
    try:
        return WeightsEntry(path.stem, path, source, read_card(path))
    except WeightsError as error:
        return WeightsEntry(path.stem, path, source, None, problem=error.found)


def _folders() -> list[tuple[Path, str]]:
    """The folders to look in, first one first. A folder that was asked for must exist."""
    folders = [(SHIPPED_DIR, "shipped")]
    asked = os.environ.get(FOLDER_VARIABLE)
    if asked:
        folder = Path(asked).expanduser()
        if not folder.is_dir():
            raise WeightsError(FOLDER_VARIABLE, found=f"{asked!r}, which is not a folder", fix="correct or unset it")
        folders.insert(0, (folder, "folder"))
    return folders


def _is_path(name_or_path: str | Path) -> bool:
    if isinstance(name_or_path, Path):
        return True
    separators = ("/", os.sep)
    return any(mark in name_or_path for mark in separators) or name_or_path.lower().endswith(
        (SUFFIX, *FOREIGN_SUFFIXES)
    )


def _known_names() -> str:
    names = sorted({path.stem for folder, _ in _folders() for path in folder.glob(f"*{SUFFIX}")})
    return ", ".join(names) if names else "none is installed"
