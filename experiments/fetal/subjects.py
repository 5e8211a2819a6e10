"""Whose brains: label maps with their gestational ages, and folds that keep an age together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.volumes import is_volume_path, strip_extension

_AGE = re.compile(r"(?:ga|sta)[-_]?(\d{2})(?!\d)|(?<!\d)(\d{2})w", re.IGNORECASE)


@dataclass(frozen=True)
class Subject:
    """A label map of one gestational age."""

    name: str
    path: Path
    weeks: int


@dataclass(frozen=True)
class Fold:
    """Maps to train on, and maps of other ages to test on."""

    name: str
    training: tuple[Subject, ...]
    held_out: tuple[Subject, ...]


def read_subjects(folder: Path) -> tuple[Subject, ...]:
    """The label maps of a folder, by age and name.

    The age is read from the file's name: ``ga24``, ``sta24`` or ``24w`` somewhere in it.

    Raises: UsageError for a folder without maps, or a name without an age.
    """
    files = sorted(path for path in folder.iterdir() if is_volume_path(path)) if folder.is_dir() else []
    if not files:
        raise UsageError(folder, found="no label maps", fix="give a folder of maps such as NAME_ga24.nii.gz")
    return tuple(sorted((_subject(path) for path in files), key=lambda one: (one.weeks, one.name)))


def _subject(path: Path) -> Subject:
    name = strip_extension(path)
    found = _AGE.search(name)
    if found is None:
        raise UsageError(path, found="no gestational age in its name", fix="name it like sub_ga24.nii.gz (24 weeks)")
    return Subject(name, path, int(found[1] or found[2]))


def folds_of(subjects: Sequence[Subject], how: str) -> tuple[Fold, ...]:
    """Folds by age: maps of one age are all held out together, or not at all.

    Args:
        how: "ages": each age is held out once; a number K: ages in ascending order are dealt to K folds in turn, so
            that every fold has young and old ones.
    Raises: UsageError for anything else, or a K for which there are too few ages.
    """
    ages = sorted({one.weeks for one in subjects})
    if how != "ages" and not (how.isdigit() and 2 <= int(how) <= len(ages)):
        fix = f"give 'ages', or a number from 2 to {len(ages)}, the ages that there are"
        raise UsageError("--folds", found=repr(how), fix=fix)
    if len(ages) < 2:
        raise UsageError("--maps", found="maps of one age only", fix="give maps of at least two")
    parts = [ages[first :: int(how)] for first in range(int(how))] if how != "ages" else [[age] for age in ages]
    named = [f"fold-{n + 1}of{len(parts)}" if how != "ages" else f"ga{part[0]:02d}" for n, part in enumerate(parts)]
    return tuple(
        Fold(
            name,
            tuple(one for one in subjects if one.weeks not in part),
            tuple(one for one in subjects if one.weeks in part),
        )
        for name, part in zip(named, parts, strict=True)
    )
