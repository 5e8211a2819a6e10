"""What arms are tested on: held-out maps as they are and edited, as phantoms; atlas images with their labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from experiments.fetal.config import ATLAS, ORDINARY, Edit, FetalConfig
from experiments.fetal.doors import edited
from experiments.fetal.phantom import draw_scan
from experiments.fetal.prepare import read_map, seed_of
from experiments.fetal.subjects import Fold, Subject

from synthseg.evaluation import Case
from synthseg.files import atomic_file
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, is_volume_path, read_volume, strip_extension, write_volume

AS_IT_IS = "as it is"  # a test map without an edit


def held_out_cases(fold: Fold, out: Path, config: FetalConfig) -> list[Case]:
    """Phantoms of a fold's held-out maps, drawn once: scan and truth files, the same for every arm.

    A case's ``group`` is its stratum, its ``change`` the edit; ``scan`` is ``SUBJECT@CONTRAST``.

    Raises: VolumeError, LabelError for maps that cannot be used.
    """
    return [case for subject in fold.held_out for case in _cases_of(subject, out, config)]


def _cases_of(subject: Subject, out: Path, config: FetalConfig) -> Iterator[Case]:
    own: Volume | None = None
    for edit in (None, *config.edits):
        name = subject.name if edit is None else f"{subject.name}_{re.sub('[^a-z0-9.]+', '-', edit.name)}"
        truth = out / "truth" / f"{name}.nii.gz"
        if not truth.is_file():
            if own is None:
                spacing, margin = config.test_spacing_mm, config.margin_mm
                own = read_map(subject.path, load_protocol(config.protocol), spacing, margin)
            write_volume(own if edit is None else _changed(own, subject, edit, config, truth), truth)
        for contrast in config.contrasts if edit is None else config.edited_contrasts:
            image = out / "scans" / f"{name}_{contrast}.nii.gz"
            if not image.is_file():
                rng = torch.Generator().manual_seed(seed_of(config.seed, "test scan", name, contrast))
                write_volume(draw_scan(read_volume(truth, labels=True), contrast, rng=rng), image)
            yield Case(
                scan=f"{subject.name}@{contrast}",
                image=image,
                truth=truth,
                group=ORDINARY if edit is None else edit.stratum,
                change=AS_IT_IS if edit is None else edit.name,
            )


def _changed(own: Volume, subject: Subject, edit: Edit, config: FetalConfig, truth: Path) -> Volume:
    """The edited map; how far the edit went is kept beside it."""
    rng = torch.Generator().manual_seed(seed_of(config.seed, "test shape", subject.name, edit.name))
    labels, reached = edited(own, load_protocol(config.protocol), edit, rng=rng)
    with atomic_file(reached_path(truth)) as file:
        file.write(json.dumps({"edit": edit.name, "wanted": edit.severity, "reached": reached}).encode())
    return replace(own, data=labels, path=None)


def reached_path(truth: Path) -> Path:
    """Where it is kept how far a test map's edit went."""
    return truth.with_name(f"{strip_extension(truth)}.json")


def reached_factors(cases: Sequence[Case]) -> dict[str, list[float]]:
    """By edit: the factors on the structure's volume that were reached, a held-out map each."""
    found: dict[str, list[float]] = {}
    for truth in dict.fromkeys(case.truth for case in cases):
        path = reached_path(truth)
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(facts["edit"], []).append(float(facts["reached"]))
    return found


def atlas_cases(folder: Path) -> list[Case]:
    """Real images with labels, ``NAME_t2.nii.gz`` with ``NAME_feta.nii.gz``, for scoring alone."""
    truths = {strip_extension(p): p for p in sorted(folder.iterdir()) if is_volume_path(p)} if folder.is_dir() else {}
    found = []
    for name, path in truths.items():
        truth = truths.get(f"{name.removesuffix('_t2')}_feta")
        if name.endswith("_t2") and truth is not None:
            found.append(Case(scan=name, image=path, truth=truth, group=ATLAS, change=AS_IT_IS))
    return found
