"""Cortical parcels against a truth of another parcellation: what of the two can be compared, and how well it agrees."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthseg.errors import LabelError
from synthseg.evaluation.agreement import grouped
from synthseg.labels import load_protocol
from synthseg.metrics import overlap
from synthseg.reading import read_text
from synthseg.volumes.volume import Volume

PARCELS = "desikan-killiany"
CORTEX = {"left": 3, "right": 42}
POOR = "poor"  # the table's word for a pair that must not be scored
_COLUMNS = ("braincolor_id", "dk_id", "group", "side", "quality")


@dataclass(frozen=True)
class ParcelGroup:
    """Truth and predicted parcels that cover the same cortex, on one side."""

    name: str
    side: str
    truth: tuple[int, ...]
    predicted: tuple[int, ...]
    quality: str  # "good", "fair" or "poor": how well the two atlases agree on the region
    template_dice: float  # of the two atlases' own labels on one template; NaN when not stated

    @property
    def one_to_one(self) -> bool:
        """One parcel here, one there, and fit to be scored."""
        return len(self.truth) == len(self.predicted) == 1 and self.quality != POOR


@dataclass(frozen=True)
class ParcelScore:
    """A group's overlap in one scan."""

    group: ParcelGroup
    dice: float  # NaN when neither map has it
    within: float  # Dice over the voxels that both maps call cortex: the parcellation without the cortex's outline


def read_parcel_groups(path: str | Path) -> list[ParcelGroup]:
    """Read a table with a row for each truth parcel.

    Columns: ``braincolor_id`` (the truth's value), ``dk_id`` (values joined by ``+``), ``group`` and ``side`` (rows of
    the same two are one group), ``quality``, and ``mni_group_dice`` if known. Other columns are for people.

    Returns: groups in the order of the table.
    Raises: LabelError for a missing file or column, entries that are no numbers, or rows of a group that disagree.
    """
    path = Path(path)
    fix = f"give a CSV file with the columns {', '.join(_COLUMNS)}"
    text = io.StringIO(read_text(path, error=LabelError, fix=fix), newline="")
    try:
        reader = csv.DictReader(text)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        rows = [] if missing else list(reader)
    except csv.Error as error:
        raise LabelError(path, found=f"a table that cannot be read ({error})", fix=fix) from error
    if missing:
        raise LabelError(path, found=f"no column {', '.join(missing)}", fix="add it, or give another table")
    groups: dict[tuple[str, str], ParcelGroup] = {}
    for line, row in enumerate(rows, start=2):
        group = _group_of(row, f"{path}, line {line}")
        earlier = groups.setdefault((group.name, group.side), group)
        if (earlier.predicted, earlier.quality) != (group.predicted, group.quality):
            found = f"other parcels or another quality for {group.side} {group.name} than in an earlier row"
            raise LabelError(f"{path}, line {line}", found=found, fix="give all rows of a group the same")
        if earlier is not group:
            groups[group.name, group.side] = replace(earlier, truth=(*earlier.truth, *group.truth))
    return list(groups.values())


def score_parcels(predicted: np.ndarray, truth: np.ndarray, groups: Sequence[ParcelGroup]) -> list[ParcelScore]:
    """Dice of each group.

    Args:
        predicted: [X, Y, Z] integers, parcels in place of the cortex.
        truth: the same shape, values of the groups' truth parcels; others are no cortex.
    Raises: ShapeError when the shapes differ; LabelError if a value belongs to two groups.
    """
    ours = {value: i for i, group in enumerate(groups, start=1) for value in group.predicted if group.quality != POOR}
    theirs = {value: i for i, group in enumerate(groups, start=1) for value in group.truth}
    twice = sum(len(g.predicted) for g in groups if g.quality != POOR) - len(ours)
    if twice or sum(len(group.truth) for group in groups) != len(theirs):
        raise LabelError("groups of parcels", found="a parcel in two of them", fix="keep it in one group")
    first, second = grouped(predicted, ours), grouped(truth, theirs)
    numbers = list(range(1, len(groups) + 1))
    whole = overlap(first, second, numbers).dice()
    both = cortex_mask(predicted) & np.isin(truth, list(theirs))
    within = overlap(first * both, second * both, numbers).dice()
    scores = zip(groups, whole.tolist(), within.tolist(), strict=True)
    return [ParcelScore(group, dice, inside) for group, dice, inside in scores if group.quality != POOR]


def cortex_mask(predicted: np.ndarray) -> np.ndarray:
    """Voxels that are cortex or one of its parcels."""
    return np.isin(predicted, [*CORTEX.values(), *_parcels()])


def without_parcels(labels: Volume) -> Volume:
    """A label map with the cortex of each side in place of its parcels; one without parcels as it is."""
    parcels = _parcels()
    if int(labels.data.max(initial=0)) < min(parcels):
        return labels
    mapping = {value: value for value in np.unique(labels.data).tolist()} | {v: CORTEX[s] for v, s in parcels.items()}
    return replace(labels, data=grouped(labels.data, mapping))


def _parcels() -> dict[int, str]:
    return {label.value: label.side for label in load_protocol(PARCELS).labels if label.value != 0}


def _group_of(row: dict[str, str], subject: str) -> ParcelGroup:
    try:
        truth, parcels = int(row["braincolor_id"]), tuple(int(part) for part in row["dk_id"].split("+"))
        template = float(row.get("mni_group_dice") or "nan")
    except (ValueError, AttributeError, TypeError):  # the last two: a line that is too short
        found = f"{str(row['braincolor_id'])[:80]!r} against {str(row['dk_id'])[:80]!r}"
        raise LabelError(subject, found=found, fix="write whole numbers, joined by + where there are several") from None
    if None in (row["group"], row["side"], row["quality"]):
        raise LabelError(subject, found="a line that is too short", fix="fill in all columns")
    return ParcelGroup(row["group"], row["side"], (truth,), parcels, row["quality"], template)
