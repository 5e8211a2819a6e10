"""Atlases and their registrations to a template, kept in a folder so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuse import POINTS, CortexPoints, cortex_points
from maps import CerebrumMap, read_cerebrum
from merge import CORTEX
from register import Correspondence, register

from synthseg.errors import UsageError
from synthseg.files import atomic_file
from synthseg.volumes import strip_extension


@dataclass(frozen=True)
class Atlas:
    """A brain with parcels: points of its cortex in the template, by side."""

    name: str
    points: dict[str, CortexPoints]


def require_own_names(paths: Iterable[Path]) -> None:
    """Files are kept and told apart by their names. Raises: UsageError for two of one name, extensions aside."""
    seen: dict[str, Path] = {}
    for path in paths:
        name = strip_extension(path)
        if name in seen:
            fix = "give every template, atlas and map once, with a file name of its own"
            raise UsageError(path, found=f"the name of another file, {seen[name]}", fix=fix)
        seen[name] = path


def kept_in(work: Path, path: Path, template_path: Path, suffix: str = "") -> Path:
    """The file in ``work`` for what is made of a map and the template: named by the map and by what both files hold.

    Raises: UsageError for a file that is not there.
    """
    digest = hashlib.sha256()
    for each in (path, template_path):
        if not each.is_file():
            raise UsageError(each, found="no such file", fix="check the path")
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return work / f"{strip_extension(path)}-{digest.hexdigest()[:12]}{suffix}.npz"


def registered(brain: CerebrumMap, template: CerebrumMap, keep: Path) -> Correspondence:
    """The registration of a map to the template, from the file ``keep`` where it exists, else made and kept there."""
    if keep.exists():
        with np.load(keep, allow_pickle=False) as stored:
            return Correspondence(*(stored[name] for name in Correspondence.__dataclass_fields__))
    made = register(brain, template)
    with atomic_file(keep) as file:
        np.savez(file, **{name: getattr(made, name) for name in Correspondence.__dataclass_fields__})
    return made


def read_atlases(
    template_path: Path, others: Sequence[Path], work: Path, count: int = POINTS
) -> tuple[CerebrumMap, list[Atlas]]:
    """The template, and points of it (first) and of the other atlases in its space; points, too, are kept.

    Raises: UsageError for two files of one name; as :func:`maps.read_cerebrum`.
    """
    require_own_names((template_path, *others))
    template = read_cerebrum(template_path)
    atlases = []
    for path in (template_path, *others):
        name = strip_extension(path)
        keep = kept_in(work, path, template_path, f"-{count}-points")
        if not keep.exists():
            brain = template if path == template_path else read_cerebrum(path)
            link = None if path == template_path else registered(brain, template, kept_in(work, path, template_path))
            _keep_points({side: cortex_points(brain, side, link, count) for side in CORTEX}, keep)
        with np.load(keep, allow_pickle=False) as stored:
            points = {side: CortexPoints(stored[f"{side}-places"], stored[f"{side}-parcels"]) for side in CORTEX}
        atlases.append(Atlas(name, points))
        print(f"atlas {name}", flush=True)
    return template, atlases


def _keep_points(points: dict[str, CortexPoints], keep: Path) -> None:
    arrays = {f"{side}-places": one.places for side, one in points.items()}
    arrays |= {f"{side}-parcels": one.parcels for side, one in points.items()}
    with atomic_file(keep) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
