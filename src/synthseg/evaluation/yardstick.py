"""Scoring weights over many scans and conditions, one segmentation at a time, so that an interrupted run goes on.

A *case* is a labelled scan under one change (``synthseg.volumes.degrade``). Its result is kept as a small JSON file in
a folder named after the weights' hash and the settings: other weights, or another mode, start afresh.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import SynthsegError, VolumeError
from synthseg.evaluation.agreement import group_dice
from synthseg.evaluation.parcels import without_parcels
from synthseg.evaluation.scoring import EvaluationConfig, ScoreRow, onto_grid, score_volumes
from synthseg.files import atomic_file
from synthseg.inference import Segmenter, Want
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, bounding_box, read_volume
from synthseg.volumes.degrade import PLAIN, degrade

RESULT_FORMAT = 1  # counted up when a case of the same weights, mode and change would come out otherwise
IGNORED = 255
SCORED = "synthseg-2.0"  # the protocol of the truths


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scan with its truth, under one change."""

    scan: str  # name in tables: the same for every change of the same scan
    image: Path
    truth: Path
    group: str  # the scans it is averaged with
    change: str = PLAIN  # see ``synthseg.volumes.degrade.degrade``
    ct: bool | None = None  # as in ``InferenceConfig``
    divide_by: float = 1.0  # what the file's intensities are divided by (CT stored as a multiple of HU)
    surface: bool = True  # SD95 too, most of the time of scoring
    margin_mm: float | None = None  # scan and truth are first cut to the labels and this much around; same grid only

    @property
    def name(self) -> str:
        """What progress and failures call it."""
        return self.scan if self.change == PLAIN else f"{self.scan} {self.change}"


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Scores and volumes of a case. Rows are of the labels the truth has."""

    scan: str
    group: str
    change: str
    rows: tuple[ScoreRow, ...]
    volumes_mm3: dict[int, float]  # soft volumes by label value, as users get them
    total_mm3: float  # all structures together
    seconds: float  # of the segmentation
    groups: dict[str, float] = field(default_factory=dict)  # true Dice by quality group of either map
    predicted: dict[str, float] = field(default_factory=dict)  # Dice that quality control predicts, where it was asked
    kept: bool = False  # read from an earlier run

    @property
    def dice(self) -> float:
        """Mean over the labels that either map has."""
        return _mean([row.dice for row in self.rows if not math.isnan(row.dice)])

    @property
    def sd95_mm(self) -> float:
        """Mean over the labels that both maps have."""
        return _mean([row.sd95_mm for row in self.rows if math.isfinite(row.sd95_mm)])


@dataclass(frozen=True)
class CaseFailure:
    """A case that could not be scored, and why."""

    case: Case
    reason: str


Outcome = CaseResult | CaseFailure


def run_cases(
    cases: Sequence[Case],
    segmenter: Segmenter,
    folder: str | Path,
    *,
    unscored: Sequence[int] = (),
    on_done: Callable[[int, Case, Outcome], None] | None = None,
) -> list[Outcome]:
    """Segment and score cases; those that the folder holds for these weights and settings are read instead.

    A case that fails is reported and does not stop the others; it is tried again in the next run.

    Args:
        segmenter: loaded once, used for all; its ``ct`` setting is replaced by each case's.
        folder: where results are kept, in a subfolder of the weights and settings.
        unscored: label values left out (for a truth that draws them otherwise).
        on_done: called with position, case and outcome.
    Returns: an outcome a case, in their order.
    Raises: OutputError if a result cannot be kept.
    """
    kept = Path(folder) / settings_key(segmenter)
    outcomes: list[Outcome] = []
    for position, case in enumerate(cases):
        path = kept / f"{_slug(case.group)}-{_slug(case.scan)}-{_slug(case.change)}.json"
        outcome: Outcome | None = read_result(path, case)
        if outcome is None:
            try:
                outcome = run_case(case, segmenter, unscored=unscored)
            except (SynthsegError, OSError, MemoryError) as error:
                outcome = CaseFailure(case, str(error) or type(error).__name__)
            else:
                write_result(path, case, outcome)
        outcomes.append(outcome)
        if on_done is not None:
            on_done(position, case, outcome)
    return outcomes


def run_case(case: Case, segmenter: Segmenter, *, unscored: Sequence[int] = ()) -> CaseResult:
    """Segment one case and compare it with its truth in world space.

    Labels are made on the scan's own grid; for thick slices on the 1 mm grid instead, because the truth is.

    Raises: VolumeError, LabelError as reading, degrading and scoring do.
    """
    scan, truth = read_volume(case.image), read_volume(case.truth, labels=True)
    if case.divide_by != 1:
        scan = replace(scan, data=scan.data / np.float32(case.divide_by))
    if case.margin_mm is not None:
        scan, truth = near_labels(scan, truth, case.margin_mm)
    spacing = scan.spacing_mm
    changed, moved = degrade(scan, truth, case.change, name=case.scan)
    assert moved is not None  # a truth went in
    thicker = bool((changed.spacing_mm > spacing * 1.01).any())
    start = time.perf_counter()
    segmentation = _with_ct(segmenter, case.ct).segment(changed, Want(space="1mm" if thicker else "native"))
    seconds = time.perf_counter() - start
    labels = without_parcels(segmentation.labels)
    quality = segmentation.quality
    return CaseResult(
        scan=case.scan,
        group=case.group,
        change=case.change,
        rows=_scored(labels, moved, case, unscored),
        volumes_mm3=segmentation.volumes_mm3,
        total_mm3=segmentation.total_mm3,
        seconds=seconds,
        groups=_groups(labels, moved),
        predicted={} if quality is None else dict(quality.scores),
    )


def settings_key(segmenter: Segmenter) -> str:
    """Folder name of everything a result depends on besides its case: weights, settings, way of scoring."""
    model = segmenter.model
    card = {"field_of_view_mm": model.field_of_view_mm, "spacing_mm": model.spacing_mm, "protocol": model.protocol}
    settings = {**segmenter.config.to_dict(), "ct": None, "format": RESULT_FORMAT, **card}
    others = {role: used.sha256 or used.name for role, used in segmenter.models.items() if used is not model}
    if others:
        settings["others"] = others
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    weights = model.sha256[:12] or _slug(model.name)
    return f"{weights}-{digest[:8]}"


def write_result(path: Path, case: Case, result: CaseResult) -> None:
    """Keep a case's result; the file appears whole or not at all. Raises: OutputError."""
    values = asdict(result)
    values.pop("kept")
    values["contents"] = contents_of(case)  # what tells it from the result of another case of the same name
    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode())


def read_result(path: Path, case: Case) -> CaseResult | None:
    """The kept result of a case; None where there is none, it cannot be read, or the scan or truth was another one."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["rows"] = tuple(ScoreRow(**row) for row in values["rows"])
        values["volumes_mm3"] = {int(value): float(volume) for value, volume in values["volumes_mm3"].items()}
        contents = values.pop("contents")
        result = CaseResult(**values, kept=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if (result.scan, result.group, result.change) != (case.scan, case.group, case.change):
        return None
    return result if contents == contents_of(case) else None


def contents_of(case: Case) -> str:
    """A digest of the scan and the truth as they are now, and of how they are taken; "" where one cannot be read."""
    try:
        files = [_digest(path, path.stat().st_mtime_ns, path.stat().st_size) for path in (case.image, case.truth)]
    except OSError:
        return ""
    taken = (case.ct, case.divide_by, case.surface, case.margin_mm)
    return hashlib.sha256(json.dumps([*files, *taken]).encode()).hexdigest()


@lru_cache(maxsize=256)
def _digest(path: Path, _modified_ns: int, _size: int) -> str:
    """One scan is asked for once a change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def near_labels(scan: Volume, truth: Volume, margin_mm: float) -> tuple[Volume, Volume]:
    """Both cut to the labels' bounding box and a margin, as far as they reach. Raises: VolumeError for two grids."""
    if scan.shape != truth.shape or not np.allclose(scan.affine, truth.affine, atol=1e-3):
        found = f"another grid than that of {truth.subject}"
        raise VolumeError(scan.subject, found=found, fix="give both on one grid, or no margin")
    box = bounding_box(truth.data > 0, margin=math.ceil(margin_mm / float(scan.spacing_mm.min())))
    affine = box.affine(scan.affine)
    return replace(scan, data=box.crop(scan.data), affine=affine), replace(
        truth, data=box.crop(truth.data), affine=affine
    )


def _with_ct(segmenter: Segmenter, ct: bool | None) -> Segmenter:
    """The same loaded networks under the case's CT setting."""
    return segmenter if segmenter.config.ct == ct else segmenter.with_config(replace(segmenter.config, ct=ct))


def _scored(labels: Volume, truth: Volume, case: Case, unscored: Sequence[int]) -> tuple[ScoreRow, ...]:
    left_out = {0, IGNORED, *unscored}
    values = tuple(int(value) for value in np.unique(truth.data) if int(value) not in left_out)
    config = EvaluationConfig(protocol=SCORED, values=values, ignore_value=IGNORED, surface=case.surface)
    return score_volumes(labels, truth, config, scan=case.scan).rows


def _groups(labels: Volume, truth: Volume) -> dict[str, float]:
    """True Dice of the quality groups that either map has."""
    ours, _ = onto_grid(labels, truth)
    scores = group_dice(ours, truth.data, load_protocol(SCORED), ignore_value=IGNORED)
    return {name: dice for name, dice in scores.items() if not math.isnan(dice)}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
