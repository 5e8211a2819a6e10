"""Label maps from folders, files or a packed bank, one at a time, and what was measured of them before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from synthseg.anatomies.features import ShapeMeasures, crop_shapes, measure_shapes, number_shapes
from synthseg.anatomies.groups import ShapeGroup
from synthseg.anatomies.settings import FeatureSettings
from synthseg.errors import LabelError, UsageError
from synthseg.files import atomic_file
from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol

_CACHE = "synthseg-measures-1"  # changed whenever a measure changes its meaning

Read = Callable[[], tuple[np.ndarray, Sequence[float]]]


@dataclass(frozen=True)
class MapSource:
    """One label map that can be read: values [X, Y, Z] in RAS order and voxel sizes in mm."""

    name: str  # as in a bank: the file's name
    dataset: str
    read: Read


def sources_of(places: Sequence[Path] | LabelBank, protocol: LabelProtocol) -> tuple[MapSource, ...]:
    """The maps of files, or of a bank, with the folder's name (``bank`` for a bank) as their data set.

    Raises: UsageError for no maps, and for two of the same name: a table by name could not tell them apart.
    """
    if isinstance(places, LabelBank):
        found = [MapSource(name, "bank", _bank_reader(places, n)) for n, name in enumerate(places.names)]
    else:
        folders = _folder_names(places)
        found = [MapSource(path.name, folders[path.parent], _file_reader(path, protocol)) for path in places]
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(twice[0], found="two label maps of this name", fix="rename one: weights are found by name")
    odd = next((name for name in names if name.startswith("#") or not _is_text(name)), None)
    if odd is not None:
        what = "a tab, a line end, a leading # or bytes that are no text in a map's name"
        raise UsageError(repr(odd), found=what, fix="rename it: tables are text")
    if not found:
        raise UsageError("sampler", found="no label maps", fix="give folders, files or a packed bank")
    return tuple(found)


def _is_text(name: str) -> bool:
    """Whether a name may stand in a column of a text file."""
    return not any(mark in name for mark in "\t\r\n") and name.encode(errors="replace").decode() == name


def measure_all(
    sources: Sequence[MapSource],
    groups: Sequence[ShapeGroup],
    settings: FeatureSettings,
    *,
    cache: Path | None = None,
    on_map: Callable[[str], None] = lambda _: None,
) -> tuple[ShapeMeasures, ...]:
    """Measure each map, or look up what an equal one measured before.

    Args:
        cache: a file of earlier measures, read and added to. Its keys are digests of the shapes themselves, the voxel
            sizes and the settings, so that it is right for any maps; one that cannot be read is made anew.
        on_map: called with each map's name.
    Raises: LabelError naming a map without any shape or (``absent = "refuse"``) without one of them.
    """
    known = _read_cache(cache)
    found = []
    for source in sources:
        labels, spacing = source.read()
        shapes = crop_shapes(number_shapes(labels, groups))
        key = _digest(shapes, spacing, groups, settings)
        if key not in known:
            known[key] = measure_shapes(
                shapes, spacing, groups, units=settings.units, closed=settings.closed, subject=source.name
            )
            _write_cache(cache, known)
        found.append(known[key])
        lacking = [group.name for group, absent in zip(groups, known[key].absent, strict=True) if absent]
        if lacking and settings.absent == "refuse":
            fix = 'leave the map out, or use features.absent = "fill", as the general scheme does'
            raise LabelError(source.name, found=f"no {' and no '.join(lacking)}", fix=fix)
        on_map(source.name)
    return tuple(found)


def _digest(
    shapes: np.ndarray, spacing: Sequence[float], groups: Sequence[ShapeGroup], settings: FeatureSettings
) -> str:
    sizes = "voxel" if settings.units == "voxel" else [round(float(size), 6) for size in spacing]
    facts = json.dumps([_CACHE, list(shapes.shape), sizes, len(groups), settings.closed])
    return hashlib.sha256(facts.encode() + np.ascontiguousarray(shapes).tobytes()).hexdigest()


def _read_cache(path: Path | None) -> dict[str, ShapeMeasures]:
    """What is there and whole; a cache is never a reason to stop."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        return {key: ShapeMeasures(tuple(row[0]), tuple(row[1]), *map(float, row[2:])) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def _write_cache(path: Path | None, known: dict[str, ShapeMeasures]) -> None:
    if path is not None:
        with atomic_file(path) as file:
            file.write(json.dumps({key: astuple(row) for key, row in known.items()}).encode())


def _bank_reader(bank: LabelBank, index: int) -> Read:
    def read() -> tuple[np.ndarray, Sequence[float]]:
        spacing = [float(size) for size in bank.spacing_mm[index]]
        return bank.protocol.values[bank.label_map(index).cpu().numpy()], spacing

    return read


def _file_reader(path: Path, protocol: LabelProtocol) -> Read:
    def read() -> tuple[np.ndarray, Sequence[float]]:
        from synthseg.volumes import read_volume, to_ras

        volume, _ = to_ras(read_volume(path, labels=True))
        protocol.index_of(volume.data, subject=str(path))  # a value that means nothing here is an error
        return volume.data, [float(size) for size in volume.spacing_mm]

    return read


def _folder_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Folders by their own name, and by as many names above it as tell them apart."""
    folders = list(dict.fromkeys(path.parent for path in paths))
    whole = {folder: folder.resolve().parts for folder in folders}
    names: dict[Path, str] = {}
    for folder in folders:
        for depth in range(1, len(whole[folder]) + 1):
            tail = whole[folder][-depth:]
            if all(whole[other][-depth:] != tail for other in folders if whole[other] != whole[folder]):
                break
        names[folder] = "/".join(tail).replace("//", "/") if whole[folder] else str(folder)
    return names


def files_in(places: Sequence[Path]) -> Iterator[Path]:
    """The label maps of folders (not searched recursively) and files, in the order given.

    Raises: UsageError for a place that is missing or holds none.
    """
    from synthseg.volumes import is_volume_path

    for place in places:
        if place.is_dir():
            files = sorted(path for path in place.iterdir() if path.is_file() and is_volume_path(path))
            if not files:
                raise UsageError(place, found="no label maps in this folder", fix="give .nii.gz, .nii, .mgz or .npz")
            yield from files
        elif place.is_file():
            yield place
        else:
            raise UsageError(place, found="no such file or folder", fix="check the path")
