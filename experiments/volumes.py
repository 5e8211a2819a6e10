"""Tables of the group study: volumes kept as they are measured, and effect sizes against the true one."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import SynthsegError
from synthseg.evaluation.effects import EffectConfig, effect_size
from synthseg.files import atomic_file

Kept = dict[tuple[str, str], float]  # (subject, condition) -> mm3


def read_kept(path: Path) -> Kept:
    """Volumes of an earlier sitting; none where there is no such file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {(row["subject"], row["condition"]): float(row["volume_mm3"]) for row in rows}


def keep(path: Path, known: Kept) -> None:
    """Write what :func:`read_kept` reads."""
    rows = [{"subject": s, "condition": c, "volume_mm3": repr(v)} for (s, c), v in known.items()]
    write_table(rows, path)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Rows of the same keys as a tab-separated table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    return path


def write_effects(rows: Sequence[Mapping[str, Any]], path: Path, title: str, paper: Sequence[str] = ()) -> Path:
    """Cohen's d (equation 28, volumes corrected for head size) of every method and condition, beside the truth's.

    Args:
        rows: a volume each, with ``method``, ``condition``, ``volume_mm3``, ``truth_mm3``, ``icv_mm3``, ``patient``.
    """
    lines = [f"# {title}", "", "| method | condition | d | interval | d / true d | mean error |", "|---" * 6 + "|"]
    true_d = math.nan
    for method, condition in dict.fromkeys((row["method"], row["condition"]) for row in rows):
        own = [row for row in rows if (row["method"], row["condition"]) == (method, condition)]
        volumes, truth, icv = (
            np.array([row[key] for row in own], dtype=np.float64) for key in ("volume_mm3", "truth_mm3", "icv_mm3")
        )
        # Two subjects a group, as in the toy size, determine no slope: then head size is not corrected for.
        covariates = icv[:, None] if len(own) > 8 else np.zeros((len(own), 0))
        try:
            effect = effect_size(volumes, covariates, np.array([bool(row["patient"]) for row in own]), EffectConfig())
        except SynthsegError as problem:  # e.g. no control is left
            lines.append(f"| {method} | {condition} | {problem.found} | - | - | - |")
            continue
        true_d = effect.d if method == "truth" else true_d
        error = 100 * float(np.mean((volumes - truth) / truth))
        interval = f"{effect.interval.low:.2f} to {effect.interval.high:.2f}"
        lines.append(
            f"| {method} | {condition} | {effect.d:.2f} | {interval} | {effect.d / true_d:.2f} | {error:+.1f} % |"
        )
    with atomic_file(path) as file:
        file.write(("\n".join([*lines, "", *paper]) + "\n").encode())
    return path
