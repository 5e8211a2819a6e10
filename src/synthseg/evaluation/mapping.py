"""Converting a truth of another label convention before it is compared, by a table the user gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthseg.errors import LabelError
from synthseg.labels.checks import MAX_VALUE
from synthseg.labels.convert import convert
from synthseg.metrics import nearest_distance
from synthseg.reading import read_text

TABLE_BYTES = 64 * 2**20
IGNORED = 255  # the truth's "do not score here"; EvaluationConfig.ignore_value by default
_COLUMNS = "two columns of whole numbers named *_id (e.g. braincolor_id,aseg_id), or source,target"


@dataclass(frozen=True)
class LabelMapping:
    """What each value of a truth becomes; two or more targets mean "the one whose structure is nearest"."""

    targets: dict[int, tuple[int, ...]]
    path: Path | None = None

    def apply(self, label_map: np.ndarray, spacing_mm: np.ndarray, *, subject: str | Path) -> np.ndarray:
        """Convert a label map.

        A value with several targets (written ``8/47``) is split: each of its voxels goes to the target whose voxels,
        of those mapped without a choice, lie nearest in mm; equal distances go to the target named first.

        Args:
            label_map: [X, Y, Z] integers.
            spacing_mm: [3] voxel size.
            subject: the file, for messages.
        Returns: [X, Y, Z] int32.
        Raises: LabelError naming values that the table lacks, or when a split has no voxel to go by.
        """
        known = {0: (0,), **self.targets}
        first = {value: targets[0] for value, targets in known.items()}
        mapped = convert(label_map, list(first), list(first.values()), subject=subject)
        for choices in sorted({targets for targets in known.values() if len(targets) > 1}):
            sources = [value for value, targets in known.items() if targets == choices]
            undecided = np.isin(label_map, sources)
            if undecided.any():
                certain = ~np.isin(label_map, [value for value, targets in known.items() if len(targets) > 1])
                _split(mapped, undecided, certain, choices, spacing_mm, subject)
        return mapped


def read_mapping(path: str | Path) -> LabelMapping:
    """Read a mapping from a CSV (or, by its suffix, TSV) file.

    The first two columns whose names end in ``_id`` are the source and target values; columns named ``source`` and
    ``target`` do as well. A target is a number or several with slashes, such as ``8/47`` (see
    :meth:`LabelMapping.apply`). A row whose column ``score`` says ``ignore`` maps to :data:`IGNORED`, whatever its
    target: a structure that has a counterpart by name but not in extent. Other columns are for people.

    Raises: LabelError for a missing file, other columns, entries that are no numbers, and contradictory rows.
    """
    path = Path(path)
    fix = f"give a CSV file with {_COLUMNS}"
    text = io.StringIO(read_text(path, error=LabelError, fix=fix, most=TABLE_BYTES), newline="")
    try:
        reader = csv.DictReader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        source, target = _columns(reader.fieldnames or (), path)
        rows = [(reader.line_num, row[source], _target_of(row, target)) for row in reader]
    except csv.Error as error:
        raise LabelError(path, found=f"a mapping that cannot be read ({error})", fix=fix) from error
    targets: dict[int, tuple[int, ...]] = {}
    for line, old, new in rows:
        value, choices = _parse_row(old, new, f"{path}, line {line}")
        if targets.setdefault(value, choices) != choices:
            found = f"two different targets for {value}"
            raise LabelError(f"{path}, line {line}", found=found, fix="keep one row for each value")
    return LabelMapping(targets, path)


def _columns(names: Sequence[str], path: Path) -> tuple[str, str]:
    if "source" in names and "target" in names:
        return "source", "target"
    ids = [name for name in names if name.endswith("_id")]
    if len(ids) < 2:
        raise LabelError(path, found=f"the columns {', '.join(names) or 'none'}", fix=f"give {_COLUMNS}")
    return ids[0], ids[1]


def _target_of(row: dict[str, str], target: str) -> str:
    return str(IGNORED) if row.get("score") == "ignore" else row[target]


def _parse_row(old: str | None, new: str | None, subject: str) -> tuple[int, tuple[int, ...]]:
    try:
        value, choices = int(old or ""), tuple(int(part) for part in (new or "").split("/"))
    except ValueError:
        found = f"{(old or '')[:80]!r} -> {(new or '')[:80]!r}"
        raise LabelError(subject, found=found, fix="write whole numbers, and 8/47 for a choice of two") from None
    if value < 0 or min(choices) < 0:
        raise LabelError(subject, found=f"{old} -> {new}", fix="label values are never negative")
    if max(value, *choices) > MAX_VALUE:
        raise LabelError(subject, found=f"{old} -> {new}", fix=f"label values are at most {MAX_VALUE}")
    return value, choices


def _split(
    mapped: np.ndarray,
    undecided: np.ndarray,
    certain: np.ndarray,
    choices: tuple[int, ...],
    spacing_mm: np.ndarray,
    subject: str | Path,
) -> None:
    """Give each undecided voxel of ``mapped``, in place, the nearest of the choices."""
    seeds = [(mapped == choice) & certain for choice in choices]
    for choice, seed in zip(choices, seeds, strict=True):
        if not seed.any():
            found = f"voxels to divide among {'/'.join(map(str, choices))}, but none that is {choice} without a choice"
            raise LabelError(subject, found=found, fix="give these values one target, or 255 to ignore them")
    box = _box(undecided | np.any(seeds, axis=0))
    distances = np.stack([nearest_distance(seed[box], spacing_mm) for seed in seeds])
    winner = np.asarray(choices, dtype=mapped.dtype)[distances.argmin(axis=0)]
    inside = undecided[box]
    mapped[box][inside] = winner[inside]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    used = [np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis))) for axis in range(mask.ndim)]
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in used)
