"""Scores of a method over cases, kept one by one, and the tables they end up in."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiments.methods import Method
from experiments.study import Study

from synthseg.errors import SynthsegError
from synthseg.evaluation import CaseFailure, CaseResult, EvaluationConfig, score_volumes, summarise_conditions
from synthseg.evaluation.yardstick import IGNORED, SCORED, Case, Outcome, read_result, write_result
from synthseg.files import atomic_file
from synthseg.volumes import read_volume
from synthseg.volumes.degrade import PLAIN, degrade

CSF = 24  # the validation truths draw it otherwise (docs/scores.md)
LONG = ("scan", "method", "label", "structure", "metric", "value", "unit", "group", "change", "resolution_mm", "maps")
_METRICS = (
    ("dice", "dice", ""),
    ("sd95", "sd95_mm", "mm"),
    ("volume_predicted", "volume_predicted_mm3", "mm3"),
    ("volume_truth", "volume_truth_mm3", "mm3"),
)


def score_method(
    cases: Sequence[Case], method: Method, folder: Path, *, say: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Segment and score cases; those that the folder holds for this method are read instead.

    A case that fails is reported and does not stop the others. Raises: OutputError if a result cannot be kept.
    """
    outcomes: list[Outcome] = []
    for case in cases:
        path = folder / method.key / f"{_slug(case.group)}-{_slug(case.scan)}-{_slug(case.change)}.json"
        outcome: Outcome | None = read_result(path, case)
        if outcome is None:
            try:
                outcome = score_case(case, method)
            except (SynthsegError, OSError, MemoryError) as error:
                outcome = CaseFailure(case, str(error) or type(error).__name__)
            else:
                write_result(path, case, outcome)
        say(f"{case.name}: {outcome.reason if isinstance(outcome, CaseFailure) else f'Dice {outcome.dice:.3f}'}")
        outcomes.append(outcome)
    return outcomes


def score_case(case: Case, method: Method) -> CaseResult:
    """Segment one case and compare it with its truth, as the yardstick does (``evaluation.yardstick.run_case``)."""
    scan, truth = read_volume(case.image), read_volume(case.truth, labels=True)
    if case.divide_by != 1:
        scan = replace(scan, data=scan.data / np.float32(case.divide_by))
    spacing = scan.spacing_mm
    changed, moved = degrade(scan, truth, case.change, name=case.scan)
    assert moved is not None  # a truth went in
    start = time.perf_counter()
    found = method.segment(changed, ct=case.ct, fine=bool((changed.spacing_mm > spacing * 1.01).any()))
    seconds = time.perf_counter() - start
    values = tuple(int(v) for v in np.unique(moved.data) if int(v) not in (0, IGNORED, CSF))
    config = EvaluationConfig(protocol=SCORED, values=values, ignore_value=IGNORED, surface=case.surface)
    return CaseResult(
        scan=case.scan,
        group=case.group,
        change=case.change,
        rows=score_volumes(found.labels, moved, config, scan=case.scan).rows,
        volumes_mm3=found.volumes_mm3,
        total_mm3=math.fsum(found.volumes_mm3.values()),
        seconds=seconds,
    )


def write_long_table(study: Study, results: Mapping[str, Sequence[CaseResult]], path: Path) -> Path:
    """One line a scan, arm, structure and metric, as ``synthseg compare`` reads it; a changed scan is ``SCAN@CHANGE``.

    Beside the usual columns: the scan's ``group``, its ``change``, the slices' spacing (``resolution_mm``, 1 where
    nothing was thickened) and how many label ``maps`` the arm was trained on (empty: all).
    """
    maps = {arm.name: "" if arm.maps is None else str(arm.maps) for arm in study.arms}
    text = io.StringIO()
    text.write("\t".join(LONG) + "\n")
    for arm, found in results.items():
        for result in found:
            thick = re.fullmatch(r"(?:axial|coronal|sagittal)-([\d.]+)mm", result.change)
            beside = (result.group, result.change, thick[1] if thick else "1", maps[arm])
            scan = result.scan if result.change == PLAIN else f"{result.scan}@{result.change}"
            for row in result.rows:
                for metric, key, unit in _METRICS:
                    cells = (
                        scan,
                        arm,
                        str(row.label),
                        row.structure,
                        metric,
                        f"{getattr(row, key):.8g}",
                        unit,
                        *beside,
                    )
                    text.write("\t".join(cells) + "\n")
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    return path


def write_summary(
    study: Study,
    results: Mapping[str, Sequence[CaseResult]],
    path: Path,
    failures: Sequence[tuple[str, CaseFailure]] = (),
) -> Path:
    """A page: a row an arm, columns the scans' groups and changes, differences to the reference arm, the paper's.

    Args:
        failures: by arm; means leave these scans out, and the page says so.
    """
    columns: dict[tuple[str, str], None] = {}
    cells: dict[tuple[str, str, str], str] = {}
    dice: dict[tuple[str, str, str], float] = {}
    for arm, found in results.items():
        for one in summarise_conditions(list(found)):
            columns[one.group, one.change] = None
            dice[arm, one.group, one.change] = one.dice
            cells[arm, one.group, one.change] = f"{one.dice:.3f} ({one.sd95_mm:.2f})"
    lines = [f"# {study.title}", "", study.question, "", "Mean Dice (SD95 in mm); mean difference in Dice points.", ""]
    heads = [group if change == PLAIN else f"{group}, {change}" for group, change in columns]
    lines += ["| arm | " + " | ".join(heads) + f" | to {study.reference} |", "|---" * (len(heads) + 2) + "|"]
    for arm in results:
        gaps = [
            dice[arm, *column] - dice[study.reference, *column]
            for column in columns
            if (arm, *column) in dice and (study.reference, *column) in dice
        ]
        gap = f"{100 * math.fsum(gaps) / len(gaps):+.1f}" if gaps and arm != study.reference else "-"
        lines.append(f"| {arm} | " + " | ".join(cells.get((arm, *c), "-") for c in columns) + f" | {gap} |")
    if failures:
        lines += ["", "Failed, and in no mean above:", ""]
        lines += [f"- {arm}, {one.case.name}: {one.reason}" for arm, one in failures]
    if study.paper:
        lines += ["", "The paper's:", "", "| what | value | where |", "|---|---|---|"]
        lines += [f"| {number.what} | {number.value} | {number.where} |" for number in study.paper]
    with atomic_file(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")
