"""Which scans a study is evaluated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.scores import cases as yardstick
from experiments.study import Evaluation, Size

from synthseg.errors import UsageError
from synthseg.evaluation import Case
from synthseg.training.validation import CONTRASTS


def cases_of(folder: Path, evaluation: Evaluation, size: Size) -> list[Case]:
    """Every scan of the study's groups under every change.

    Args:
        folder: the yardstick's scans (with ``oasis/``, ``mni/``, ...), or pairs ``NAME_t1.nii.gz`` (or another
            contrast) and ``NAME_aseg.nii.gz``, whose groups are their contrasts.
    Raises: UsageError for a folder without scans of these groups.
    """
    changes = evaluation.toy_changes if size == "toy" else evaluation.changes
    known = (folder / "oasis").is_dir()
    plain = _yardstick_scans(folder) if known else _pairs(folder)
    if evaluation.groups and known:
        plain = [case for case in plain if case.group in evaluation.groups]
    if not plain:
        wanted = ", ".join(evaluation.groups) or "any group"
        raise UsageError(folder, found=f"no scans of {wanted}", fix="give NAME_t1.nii.gz with NAME_aseg.nii.gz")
    return [_changed(case, change, evaluation.surface) for change in changes for case in plain]


def _yardstick_scans(folder: Path) -> list[Case]:
    """The yardstick's scans as they are."""
    return [case for case in yardstick.cases_of(folder) if case.change == "plain"]


def _pairs(folder: Path) -> list[Case]:
    found = []
    for truth in sorted(folder.glob("*_aseg.nii.gz")):
        name = truth.name.removesuffix("_aseg.nii.gz")
        for contrast in CONTRASTS:
            image = folder / f"{name}_{contrast}.nii.gz"
            if image.is_file():
                found.append(Case(scan=f"{name}_{contrast}", image=image, truth=truth, group=contrast))
    return found


def _changed(case: Case, change: str, surface: bool) -> Case:
    return replace(case, change=change, surface=surface)
