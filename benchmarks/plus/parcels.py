"""Parcels against the manual ones, where the two atlases can be compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.plus import cases
from benchmarks.plus.networks import hash_of

from synthseg.evaluation.kept import kept
from synthseg.evaluation.parcels import ParcelGroup, cortex_mask, read_parcel_groups, score_parcels
from synthseg.evaluation.scoring import onto_grid
from synthseg.evaluation.yardstick import near_labels
from synthseg.inference import Segmenter
from synthseg.metrics import overlap
from synthseg.volumes import read_volume

TABLE = "braincolor_to_dk.csv"


@dataclass(frozen=True)
class ScanParcels:
    """One scan: Dice by (side, group) as it is and within the cortex of both maps, and of the cortex itself."""

    scan: str
    dice: dict[tuple[str, str], float]
    within: dict[tuple[str, str], float]
    cortex: float


@dataclass(frozen=True)
class ParcelRow:
    """A group of parcels over scans and sides."""

    name: str
    kind: str  # "one to one" or "union"
    quality: str
    truth: str  # how many parcels of each side there, against how many here
    dice: float
    within: float
    template: float  # of the two atlases on one template: what the borders alone allow


def scan_parcels(data: Path, segmenter: Segmenter, folder: Path, *, few: bool = False) -> Iterator[ScanParcels]:
    """Each of the labelled brains, made or read from ``folder``."""
    groups = read_parcel_groups(data / TABLE)
    brains = sorted(
        path.name.removesuffix("_braincolor.nii.gz") for path in (data / "oasis").glob("*_braincolor.nii.gz")
    )
    place = folder / hash_of(segmenter.model, segmenter.models["parcels"])
    for scan in brains[:2] if few else brains:
        values = kept(place / f"parcels-{scan}.json", lambda scan=scan: _score(data, scan, segmenter, groups))  # type: ignore[misc]
        keys = [(side, name) for side, name, _, _ in values["scores"]]
        dice, within = ([_number(row[i]) for row in values["scores"]] for i in (2, 3))
        yield ScanParcels(
            scan, dict(zip(keys, dice, strict=True)), dict(zip(keys, within, strict=True)), float(values["cortex"])
        )


def parcel_rows(groups: Sequence[ParcelGroup], scans: Sequence[ScanParcels]) -> list[ParcelRow]:
    """Means over scans and both sides: one-to-one pairs first, then unions; poor ones left out."""
    rows = []
    for name in dict.fromkeys(g.name for g in groups if g.quality != "poor"):
        sides = [g for g in groups if g.name == name]
        of_scans = [(s.dice[g.side, name], s.within[g.side, name]) for s in scans for g in sides]
        first = sides[0]
        kind = "one to one" if first.one_to_one else "union"
        sizes = f"{len(first.truth)} : {len(first.predicted)}"
        template = statistics.fmean(g.template_dice for g in sides)
        dice, within = (_mean([pair[i] for pair in of_scans]) for i in (0, 1))
        rows.append(ParcelRow(name.replace("_", " "), kind, first.quality, sizes, dice, within, template))
    return sorted(rows, key=lambda row: row.kind != "one to one")


def _score(data: Path, name: str, segmenter: Segmenter, groups: Sequence[ParcelGroup]) -> dict[str, Any]:
    truth = read_volume(data / "oasis" / f"{name}_braincolor.nii.gz", labels=True)
    scan, truth = near_labels(read_volume(data / "oasis" / f"{name}_t1.nii.gz"), truth, cases.MARGIN_MM)
    labels, _ = onto_grid(segmenter.segment(replace(scan, path=None)).labels, truth)
    cortex = np.isin(truth.data, [value for group in groups for value in group.truth])
    both = overlap(cortex_mask(labels).astype(np.int32), cortex.astype(np.int32), [1]).dice()
    scores = [[s.group.side, s.group.name, s.dice, s.within] for s in score_parcels(labels, truth.data, groups)]
    return {"scores": scores, "cortex": float(both[0])}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
