"""What a folder of label maps holds, and a first table for it that a person then corrects.

Reading files is the caller's business: this module takes arrays with their geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthseg.errors import LabelError, UsageError
from synthseg.labels.convert import as_integers
from synthseg.labels.pairing import Shapes
from synthseg.labels.propose import propose_labels
from synthseg.labels.protocol import LabelProtocol
from synthseg.labels.table import format_table
from synthseg.reading import as_text, exists, is_file, is_folder, list_folder, real_path

MAX_VALUES = 2000  # more distinct values than any atlas we know: it is an image


class LabelMap(NamedTuple):
    """One label map with its geometry."""

    name: str
    data: np.ndarray  # [X, Y, Z], whole numbers
    spacing_mm: np.ndarray  # [3]
    affine: np.ndarray  # [4, 4], voxel -> mm RAS+


@dataclass(frozen=True)
class ValueFacts:
    """What was measured for one value. Volumes and centre are over the maps that hold it (NaN if none does)."""

    value: int
    voxels: tuple[int, ...]  # per map, 0 where absent
    volumes_ml: tuple[float, ...]  # per map
    position_mm: tuple[float, ...]  # (3) mean centre, RAS+, relative to the centre of all labels but background
    spread_mm: tuple[float, ...]  # (3) mean standard deviation of its voxels along x, y, z

    @property
    def maps(self) -> int:
        """In how many maps the value occurs."""
        return sum(count > 0 for count in self.voxels)

    @property
    def present_ml(self) -> np.ndarray:
        """[maps] volumes in the maps that hold the value, ml."""
        return np.array([v for v, count in zip(self.volumes_ml, self.voxels, strict=True) if count > 0])

    @property
    def mean_ml(self) -> float:
        """Mean volume over the maps that hold the value, ml."""
        return float(self.present_ml.mean()) if self.maps else float("nan")

    @property
    def min_ml(self) -> float:
        """Smallest volume over the maps that hold the value, ml."""
        return float(self.present_ml.min()) if self.maps else float("nan")

    @property
    def max_ml(self) -> float:
        """Largest volume over the maps that hold the value, ml."""
        return float(self.present_ml.max()) if self.maps else float("nan")


@dataclass(frozen=True)
class Inspection:
    """What was found in a set of label maps, and the table proposed for them.

    ``facts`` and ``reasons`` go row by row with ``protocol.labels``; ``notes`` are sentences for the person who edits.
    """

    maps: tuple[str, ...]
    facts: tuple[ValueFacts, ...]
    protocol: LabelProtocol
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    def to_table(self) -> str:
        """An editable table that ``load_protocol`` reads; what was measured stands in comment lines on top."""
        header = {
            "name": self.protocol.name,
            "description": self.protocol.description,
            "source": self.protocol.source,
        }
        remarks = ["A proposal: check side, partner, generation_class and target of every row before training.", ""]
        remarks += [f"note - {note}" for note in self.notes]
        remarks.append("value - mean ml (min to max), in how many maps, why this side")
        for facts, reason in zip(self.facts, self.reasons, strict=True):
            size = f"{facts.mean_ml:.3f} ml ({facts.min_ml:.3f} to {facts.max_ml:.3f})" if facts.maps else "absent"
            remarks.append(f"{facts.value} - {size}, {facts.maps} of {len(self.maps)} maps, {reason}")
        return format_table(self.protocol.labels, header, remarks)


class _Measured(NamedTuple):
    values: np.ndarray  # [n] int64 ascending
    counts: np.ndarray  # [n] int64
    positions: np.ndarray  # [n, 3] mm RAS+, relative to the centre of the non-zero voxels; NaN for background
    spreads: np.ndarray  # [n, 3] mm, standard deviations along x, y, z; NaN for background
    radius_mm: float  # root-mean-square radius of the non-zero voxels


def inspect_maps(maps: Iterable[LabelMap], *, name: str = "my-labels") -> Inspection:
    """Measure label maps and propose a protocol for them.

    Args:
        maps: read one at a time, so a generator keeps memory at one map.
        name: of the proposed protocol.
    Raises: LabelError for a map that holds no whole numbers, negative values or far too many values, and if there is
        no map at all.
    """
    names: list[str] = []
    measured: list[_Measured] = []
    voxel_ml: list[float] = []
    for label_map in maps:
        measured.append(_measure(label_map))
        names.append(label_map.name)
        voxel_ml.append(float(np.prod(label_map.spacing_mm)) / 1000)
    if not measured:
        raise LabelError(name, found="no label map", fix="give at least one 3D label map")
    values = [int(v) for v in np.unique(np.concatenate([m.values for m in measured]))]
    facts = {value: _collect(value, measured, voxel_ml) for value in values}
    shapes = Shapes(
        np.array([facts[value].position_mm for value in values]),
        np.array([facts[value].spread_mm for value in values]),
        np.array([facts[value].mean_ml for value in values]),
        float(np.mean([m.radius_mm for m in measured])),
    )
    proposal = propose_labels(values, shapes)
    unknown = (float("nan"),) * 3
    absent = ((0,) * len(names), (0.0,) * len(names), unknown, unknown)
    protocol = LabelProtocol(
        name, f"Proposed from {len(names)} label map(s)", tuple(proposal.labels), "synthseg labels inspect"
    )
    return Inspection(
        tuple(names),
        tuple(facts.get(label.value) or ValueFacts(label.value, *absent) for label in proposal.labels),
        protocol,
        tuple(proposal.reasons),
        tuple(proposal.notes),
    )


def inspect_folder(
    folder: str | Path, *, read: Callable[[Path], LabelMap], accepts: Callable[[Path], bool]
) -> Inspection:
    """Inspect every label map of a folder (not of its subfolders), or one file.

    Args:
        folder: a folder or a single file.
        read: reads one file; ``accepts`` says which files are volumes.
    Raises: UsageError if the folder is missing or holds no volume; LabelError as :func:`inspect_maps`.
    """
    folder = Path(folder)
    if not exists(folder):
        raise UsageError(folder, found="no such file or folder", fix="check the path")
    paths = [folder] if is_file(folder) else [p for p in list_folder(folder) if accepts(p) and is_file(p)]
    if not paths:
        inside = len(list_folder(folder))
        raise UsageError(folder, found=f"{inside} entries but no volume", fix="give the folder that holds the maps")
    stem = as_text(real_path(folder if is_folder(folder) else folder.parent).name) or "my"
    return inspect_maps((read(path) for path in paths), name=f"{stem}-labels")


def _measure(label_map: LabelMap) -> _Measured:
    data = as_integers(label_map.data, subject=label_map.name)
    if data.ndim != 3 or data.size == 0:
        raise LabelError(label_map.name, found=f"an array of shape {data.shape}", fix="give a 3D label map")
    if int(data.min()) < 0:
        negative = data[data < 0]
        raise LabelError(
            label_map.name,
            found=f"{negative.size} voxels with negative values (lowest {int(negative.min())})",
            fix="label values are never negative; relabel the map, or check whether it is an image",
        )
    inside = np.nonzero(data)
    values, inverse, counts = np.unique(data[inside], return_inverse=True, return_counts=True)
    if len(values) > MAX_VALUES:
        raise LabelError(
            label_map.name,
            found=f"{len(values)} different values",
            fix="give a label map; this looks like an image (a scan)",
        )
    background = data.size - len(inside[0])
    if not len(values):
        nothing = np.full((1, 3), np.nan)
        return _Measured(np.zeros(1, np.int64), np.array([background]), nothing, nothing, 0.0)
    positions, spreads, radius = _measure_shapes(inside, inverse, counts, np.asarray(label_map.affine, dtype=float))
    if background:
        values, counts = np.insert(values, 0, 0), np.insert(counts, 0, background)
        positions, spreads = (np.insert(array, 0, np.nan, axis=0) for array in (positions, spreads))
    return _Measured(values.astype(np.int64), counts.astype(np.int64), positions, spreads, radius)


def _measure_shapes(
    inside: tuple[np.ndarray, ...], inverse: np.ndarray, counts: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Centres [n, 3] and standard deviations [n, 3] of n labels in mm RAS+, and the radius of all their voxels."""
    positions, spreads = np.empty((len(counts), 3)), np.empty((len(counts), 3))
    variance = 0.0
    for axis in range(3):  # one axis at a time: a full head would need three large arrays otherwise
        mm = sum(affine[axis, k] * inside[k] for k in range(3))
        mm = mm - mm.mean()  # relative, which also keeps the squares below exact enough
        variance += float((mm**2).mean())
        positions[:, axis] = np.bincount(inverse, weights=mm, minlength=len(counts)) / counts
        squares = np.bincount(inverse, weights=mm**2, minlength=len(counts)) / counts
        spreads[:, axis] = np.sqrt(np.maximum(squares - positions[:, axis] ** 2, 0))
    return positions, spreads, float(np.sqrt(variance))


def _collect(value: int, measured: list[_Measured], voxel_ml: list[float]) -> ValueFacts:
    counts: list[int] = []
    shapes: list[np.ndarray] = []
    for map_facts in measured:
        at = int(np.searchsorted(map_facts.values, value))
        here = at < len(map_facts.values) and int(map_facts.values[at]) == value
        counts.append(int(map_facts.counts[at]) if here else 0)
        if here:
            shapes.append(np.stack([map_facts.positions[at], map_facts.spreads[at]]))
    position, spread = np.mean(shapes, axis=0).tolist()
    volumes = tuple(count * ml for count, ml in zip(counts, voxel_ml, strict=True))
    return ValueFacts(value, tuple(counts), volumes, tuple(position), tuple(spread))
