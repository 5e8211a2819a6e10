"""Which maps are one anatomy, and which data set each belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from synthseg.anatomies.features import ShapeMeasures
from synthseg.anatomies.settings import FamilySettings
from synthseg.anatomies.sources import MapSource
from synthseg.errors import ConfigError


def stem(name: str) -> str:
    """A map's name without what says how it is stored."""
    return re.sub(r"\.(nii\.gz|nii|mgz|mgh|npz)$", "", name, flags=re.IGNORECASE)


def dataset_of(source: MapSource, settings: FamilySettings) -> str:
    """The map's data set: by name where the settings say how, otherwise where it lies.

    Raises: ConfigError for a name that the expression does not fit.
    """
    if settings.datasets is None:
        return source.dataset
    found = re.search(settings.datasets, stem(source.name))
    if found is None:
        text = f"{settings.datasets!r}, which {source.name} does not fit"
        raise ConfigError("sampler: family.datasets", found=text, fix="give an expression that fits every map's name")
    return _first(found)


def family_of(name: str, settings: FamilySettings) -> str:
    """The anatomy that a name says: the first group of the settings' expression, or the name without its ending."""
    own = stem(name)
    found = re.fullmatch(settings.siblings, own) if settings.siblings is not None else None
    return own if found is None else _first(found)


def join_families(
    names: Sequence[str], measures: Sequence[ShapeMeasures], settings: FamilySettings
) -> tuple[tuple[str, ...], np.ndarray]:
    """Anatomies and their maps: of one family by name, or (``duplicates = "join"``) of exactly the same shapes.

    Returns: the g anatomies' names; [n] the anatomy of each map.
    """
    head = list(range(len(names)))

    def root(index: int) -> int:
        while head[index] != index:
            index = head[index]
        return index

    first: dict[object, int] = {}
    for index, (name, measured) in enumerate(zip(names, measures, strict=True)):
        keys: list[object] = [family_of(name, settings)]
        if settings.duplicates == "join":
            keys.append((measured.volumes, measured.areas))
        for key in keys:
            one, other = root(first.setdefault(key, index)), root(index)
            head[max(one, other)] = min(one, other)
    roots = [root(index) for index in range(len(names))]
    kept = sorted(set(roots))
    return tuple(family_of(names[n], settings) for n in kept), np.array([kept.index(n) for n in roots])


def representatives(
    names: Sequence[str], families: Sequence[str], member_of: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """[g, F] one row of features an anatomy: its unedited map's (the one with its name), or the mean of its maps.

    NaN where the mean has nothing to be taken of.
    """
    rows = []
    for number, family in enumerate(families):
        members = np.flatnonzero(member_of == number)
        original = [n for n in members if stem(names[int(n)]) == family]
        own = features[original[:1] if original else members]
        known = ~np.isnan(own)
        total = np.where(known, own, 0.0).sum(axis=0)
        rows.append(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))
    return np.array(rows)


def _first(found: re.Match[str]) -> str:
    return next((text for text in found.groups() if text is not None), found.group(0))
