"""An arm's network on the test scans, scored tissue by tissue; what was scored is kept scan by scan."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiments.fetal.config import ATLAS

from synthseg.errors import SynthsegError
from synthseg.evaluation import CaseFailure, CaseResult, EvaluationConfig, score_volumes
from synthseg.evaluation.measurements import Measurement
from synthseg.evaluation.yardstick import Case, Outcome, read_result, settings_key, write_result
from synthseg.inference import Segmenter
from synthseg.volumes import read_volume

METRICS = (
    ("dice", "dice", ""),
    ("sd95", "sd95_mm", "mm"),
    ("volume_predicted", "volume_predicted_mm3", "mm3"),
    ("volume_truth", "volume_truth_mm3", "mm3"),
)
ALL_FOLDS = "all"  # in the column fold: a mean over the networks of all folds
Results = dict[str, dict[str, list[CaseResult]]]  # arm -> fold -> scans


def score_cases(
    cases: Sequence[Case],
    segmenter: Segmenter,
    folder: Path,
    protocol: str,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Segment and score; what the folder holds for these weights and settings is read instead.

    A case that fails is reported and does not stop the others. Raises: OutputError if a result cannot be kept.
    """
    outcomes: list[Outcome] = []
    for case in cases:
        name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{case.group}-{case.scan}-{case.change}")
        path = folder / settings_key(segmenter) / f"{name}.json"
        outcome: Outcome | None = read_result(path, case)
        if outcome is None:
            try:
                outcome = score_case(case, segmenter, protocol)
            except (SynthsegError, OSError, MemoryError) as error:
                outcome = CaseFailure(case, str(error) or type(error).__name__)
            else:
                write_result(path, case, outcome)
        what = outcome.reason if isinstance(outcome, CaseFailure) else f"Dice {outcome.dice:.3f}"
        say(f"{case.scan}, {case.group}, {case.change}: {what}")
        outcomes.append(outcome)
    return outcomes


def score_case(case: Case, segmenter: Segmenter, protocol: str) -> CaseResult:
    """Segment one scan and compare it with its truth: every tissue that the truth has."""
    truth = read_volume(case.truth, labels=True)
    start = time.perf_counter()
    found = segmenter.segment(read_volume(case.image))
    seconds = time.perf_counter() - start
    scores = score_volumes(found.labels, truth, EvaluationConfig(protocol=protocol, ignore_value=None), scan=case.scan)
    return CaseResult(
        scan=case.scan,
        group=case.group,
        change=case.change,
        rows=scores.rows,
        volumes_mm3=found.volumes_mm3,
        total_mm3=math.fsum(found.volumes_mm3.values()),
        seconds=seconds,
    )


def measurements_of(results: Results) -> list[Measurement]:
    """Every scan, arm, tissue and metric, in the long format: columns ``fold``, ``stratum``, ``edit``, ``contrast``.

    An atlas image is in the training of no fold, so that the networks of all folds segment it. They are no independent
    observations of it: its values are means over folds (of the finite ones, where a fold's network missed a tissue).
    """
    rows: list[Measurement] = []
    for arm, folds in results.items():
        for fold, scans in folds.items():
            own = [one for one in scans if one.group != ATLAS]
            rows += [row for one in own for row in _rows(arm, fold, one)]
        seen = [(fold, one) for fold, scans in folds.items() for one in scans if one.group == ATLAS]
        rows += mean_rows([row for fold, one in seen for row in _rows(arm, fold, one)], {"fold": ALL_FOLDS})
    return rows


def by_subject(rows: Sequence[Measurement]) -> list[Measurement]:
    """One value a subject, stratum, tissue and metric: contrasts and edits of one map are no independent subjects."""
    stripped = [replace(row, scan=row.scan.partition("@")[0]) for row in rows]
    return mean_rows(stripped, {"fold": ALL_FOLDS, "edit": "all", "contrast": "all"})


def mean_rows(rows: Sequence[Measurement], columns: Mapping[str, str]) -> list[Measurement]:
    """Means over rows that are the same but for the given columns, which then hold the given words.

    Means are of finite values; without any, the first value stays (infinite, or NaN where there is nothing).
    """
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for row in rows:
        one = replace(row, columns={**row.columns, **columns})
        key = (one.scan, one.method, one.label, one.metric, tuple(sorted(one.columns.items())))
        groups.setdefault(key, []).append(one)
    means = []
    for group in groups.values():
        values = np.array([row.value for row in group])
        finite = values[np.isfinite(values)]
        means.append(replace(group[0], value=float(finite.mean()) if len(finite) else group[0].value))
    return means


def _rows(arm: str, fold: str, result: CaseResult) -> list[Measurement]:
    contrast = result.scan.rpartition("@")[2] if "@" in result.scan else "t2"
    columns = {"fold": fold, "stratum": result.group, "edit": result.change, "contrast": contrast}
    return [
        Measurement(
            scan=result.scan,
            method=arm,
            label=str(row.label),
            structure=row.structure,
            metric=metric,
            value=float(getattr(row, key)),
            unit=unit,
            columns=columns,
        )
        for row in result.rows
        for metric, key, unit in METRICS
    ]
