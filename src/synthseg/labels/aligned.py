"""Lists that are aligned with a first one, an entry a label, as the original keeps them in ``.npy`` files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from synthseg.errors import LabelError
from synthseg.labels.arrays import read_npy, whole_numbers, words
from synthseg.labels.freesurfer import name_and_color
from synthseg.labels.label import Label
from synthseg.labels.propose import color_of

Values = str | Path | Sequence[int] | np.ndarray
Names = str | Path | Sequence[str] | np.ndarray
T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Columns:
    """The lists aligned with the first one, read and checked; missing ones filled."""

    targets: tuple[int, ...]
    names: tuple[str, ...] | None  # of the targets
    topology: tuple[int, ...]
    quality: tuple[int, ...]
    tissue: tuple[int, ...]

    @classmethod
    def read(
        cls,
        values: tuple[int, ...],
        targets: Values | None,
        names: Names | None,
        topology: Values | None,
        quality: Values | None,
        tissue: Values | None,
        subject: str,
    ) -> Columns:
        """Raises LabelError naming the list's file and the entry; ``subject`` is the first list's."""
        length = len(values)
        wanted = _aligned(targets, "segmentation labels", length, subject) or values
        groups = {}
        for key, given in (("topology", topology), ("quality", quality), ("tissue", tissue)):
            groups[key] = _aligned(given, f"{key} classes", length, subject) or (0,) * length
            if given is not None:
                _check_groups(groups[key], wanted, subject_of(given, f"{key} classes"))
        titles = None
        if names is not None:
            where = subject_of(names, "names")
            titles = words(read_npy(names) if isinstance(names, str | Path) else np.array(names), where)
            _check_names(_check_length(titles, length, where, subject), wanted, where)
        return cls(wanted, titles, **groups)

    def row(self, i: int, value: int) -> Label:
        """Entry i; side, partner and classes are filled in by the caller."""
        name, color = name_and_color(value) or (f"label {value}", color_of(value))
        if self.names is not None and (self.targets[i] == value or len(set(self.names)) == len(self.names)):
            name = self.names[i]
        elif self.names is not None and name_and_color(value) is None:
            name = f"{self.names[i]} ({value})"
        groups = (self.topology[i], self.quality[i])
        return Label(value, name, "neutral", value, 0, 0, self.targets[i], *groups, color, self.tissue[i])


def subject_of(given: Values | Names, what: str) -> str:
    """What a message calls a list: its file, or ``what`` it is."""
    return str(given) if isinstance(given, str | Path) else what


def read_numbers(given: Values, subject: str) -> tuple[int, ...]:
    """Whole numbers from a file or from plain values. Raises LabelError naming ``subject`` and the entry."""
    return whole_numbers(read_npy(given) if isinstance(given, str | Path) else np.asarray(given), subject)


def _aligned(given: Values | None, what: str, length: int, first: str) -> tuple[int, ...] | None:
    if given is None:
        return None
    subject = subject_of(given, what)
    return _check_length(read_numbers(given, subject), length, subject, first)


def _check_length(entries: tuple[T, ...], length: int, subject: str, first: str) -> tuple[T, ...]:
    if len(entries) == length:
        return entries
    fix = "give one entry for each label, in the same order"
    if (len(entries), length) == (55, 54):
        fix += (
            " (the published 2.0 lists have one more than the published labels, and which one was never said: take the"
            " lists without _2.0, or the built-in protocol synthseg-generation, which has the targets of 2.0)"
        )
    raise LabelError(subject, found=f"{len(entries)} entries for the {length} of {first}", fix=fix)


def class_list(given: Values | None, what: str, values: tuple[int, ...], first: str) -> tuple[int, ...]:
    """Classes 0 to G - 1 of the labels ``values``, whose file is ``first``; where none are given, one for each label.

    Raises: LabelError naming the file and the first entry above a gap.
    """
    numbers = _aligned(given, what, len(values), first)
    if numbers is None or given is None:
        return tuple(range(len(values)))
    most = min(max(numbers), len(numbers))  # whatever a class's number: a gap comes before there are no more labels
    missing = sorted(set(range(most + 1)) - set(numbers))
    if missing:
        entry = next(i for i, number in enumerate(numbers) if number > missing[0])
        found = f"entry {entry}: class {numbers[entry]}, while no label has class {missing[0]}"
        raise LabelError(subject_of(given, what), found=found, fix="number the classes 0, 1, 2, ... without gaps")
    return numbers


def _check_groups(groups: tuple[int, ...], targets: tuple[int, ...], subject: str) -> None:
    """Labels of one target must share a group: the original silently takes the first one's."""
    for entry, (group, target) in enumerate(zip(groups, targets, strict=True)):
        first = targets.index(target)
        if target and group != groups[first]:
            found = f"entry {entry}: class {group}, but entry {first} of the same target ({target}) has {groups[first]}"
            raise LabelError(subject, found=found, fix="give all labels of one target the same class")


def _check_names(names: tuple[str, ...], targets: tuple[int, ...], subject: str) -> None:
    """Two targets must not share a name: the lists then belong to different versions, or are shifted."""
    first: dict[str, int] = {}
    for entry, (name, target) in enumerate(zip(names, targets, strict=True)):
        other = first.setdefault(name, entry)
        if targets[other] != target:
            found = f"entry {entry}: {name!r} for the target {target}, but entry {other} so names {targets[other]}"
            raise LabelError(
                subject, found=found, fix="give the names that belong to the list of targets, in its order"
            )
