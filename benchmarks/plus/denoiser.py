"""What the denoiser mends: maps of tissue groups that it has not seen, made wrong in two ways.

Held-out maps are the truths of labelled scans as tissue groups at the network's voxel size. They are corrupted on
purpose (``synthseg.evaluation.corruption``), or are what the first network makes of degraded scans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.plus import cases
from benchmarks.plus.networks import hash_of

from synthseg.evaluation.agreement import group_dice
from synthseg.evaluation.corruption import CORRUPTIONS, corrupt
from synthseg.evaluation.groups import groups_on
from synthseg.evaluation.kept import kept
from synthseg.evaluation.yardstick import near_labels
from synthseg.inference import Model, Segmenter
from synthseg.inference.hierarchy import denoised, tissue_groups
from synthseg.labels import load_protocol
from synthseg.labels.convert import group_mapping
from synthseg.volumes import Volume, bounding_box, crop_pad, read_volume, to_ras
from synthseg.volumes.degrade import degrade, generator_of

IGNORED = 255
UNHARMED = "as it is"
FORMAT = 2  # counted up when a corruption, or what it is compared with, comes out otherwise
REAL = ("axial-7mm+snr-5", "motion-1+bias-1+snr-3", "motion-1+motion-2", cases.HARD)
PAIRS = ("0001", "0002", "0003")
FIELD_MM = (160, 192, 160)


@dataclass(frozen=True)
class Repair:
    """Dice by tissue group before and after the denoiser."""

    kind: str  # "made": corrupted on purpose; "real": a network's errors; "example": the tutorial's pairs
    scan: str
    change: str
    before: dict[str, float]
    after: dict[str, float]


def repairs(data: Path, denoiser: Model, tissues: Model | None, folder: Path, *, few: bool = False) -> Iterator[Repair]:
    """Every repair, made or read from ``folder``. Without ``tissues`` there are no real errors."""
    place = folder / f"{hash_of(denoiser)}-{FORMAT}"
    scans = cases.SCANS[:2] if few else cases.SCANS
    for scan in scans:
        for kind in (UNHARMED, *CORRUPTIONS):
            yield _kept(place, "made", scan, kind, partial(_made, data, scan, kind, denoiser))
    for pair in PAIRS:
        source = data.parent / "training" / "denoiser"
        if (source / f"{pair}_noisy.nii.gz").is_file():
            yield _kept(place, "example", pair, "tutorial", partial(_example, source, pair, denoiser))
    if tissues is not None:
        for scan in scans:
            for change in REAL:
                make = partial(_real, data, scan, change, denoiser, tissues)
                yield _kept(folder / f"{hash_of(denoiser, tissues)}-{FORMAT}", "real", scan, change, make)


def mend(groups: np.ndarray, denoiser: Model) -> np.ndarray:
    """[X, Y, Z] groups through the denoiser, background around them up to sides it accepts."""
    sides = [n + (-n) % denoiser.multiple for n in groups.shape]
    seen = torch.from_numpy(crop_pad(groups.astype(np.int64), (0, 0, 0), sides))
    mended = denoised(denoiser, seen, "map of groups").cpu().numpy()
    return np.asarray(mended[tuple(slice(n) for n in groups.shape)], dtype=np.int32)


def _kept(place: Path, kind: str, scan: str, change: str, make: Callable[[], dict[str, Any]]) -> Repair:
    values = kept(place / f"{kind}-{scan}-{change.replace(' ', '_')}.json", make)
    return Repair(kind, scan, change, values["before"], values["after"])


def _made(data: Path, scan: str, kind: str, denoiser: Model) -> dict[str, Any]:
    truth, _ = to_ras(read_volume(data / "oasis" / f"{scan}_aseg.nii.gz", labels=True))
    shape, affine = _window(truth, denoiser.spacing_mm)
    whole, marked = (
        groups_on(truth, _tissues(), shape, affine, spacing_mm=denoiser.spacing_mm, fill=fill) for fill in (True, False)
    )
    rng = generator_of(f"{kind}/{scan}")
    wrong = whole if kind == UNHARMED else corrupt(whole, kind, denoiser.spacing_mm, rng=rng)
    return _scores(wrong, mend(wrong, denoiser), marked)


def _real(data: Path, name: str, change: str, denoiser: Model, tissues: Model) -> dict[str, Any]:
    truth = read_volume(data / "oasis" / f"{name}_aseg.nii.gz", labels=True)
    scan, truth = near_labels(read_volume(data / "oasis" / f"{name}_t1.nii.gz"), truth, cases.MARGIN_MM)
    changed, _ = degrade(scan, truth, change, name=name)
    segmenter = Segmenter({"tissues": tissues, "denoiser": denoiser}, "robust")
    prepared, _ = segmenter.focused(segmenter.prepare(changed))
    wrong = tissue_groups(tissues, prepared.image, name).cpu().numpy()
    grid = prepared.padded
    marked = groups_on(truth, _tissues(), grid.shape, grid.affine, spacing_mm=tissues.spacing_mm)
    return _scores(wrong, mend(wrong, denoiser), marked)


def _example(source: Path, pair: str, denoiser: Model) -> dict[str, Any]:
    noisy, target = (
        to_ras(read_volume(source / f"{pair}_{what}.nii.gz", labels=True))[0] for what in ("noisy", "target")
    )
    shape, affine = _window(target, denoiser.spacing_mm)
    same = {value: value for value in range(1, 5)}
    wrong, right = (groups_on(v, same, shape, affine, spacing_mm=denoiser.spacing_mm) for v in (noisy, target))
    return _scores(wrong, mend(wrong, denoiser), right)


def _window(truth: Volume, spacing_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid of the working voxel size in RAS order about the middle of the labels, larger where the brain is."""
    box = bounding_box(truth.data > 0)
    extent = np.asarray(box.shape) * truth.spacing_mm
    x, y, z = (int(np.ceil(max(side, e + 16) / spacing_mm)) for side, e in zip(FIELD_MM, extent, strict=True))
    middle = truth.affine @ [*(np.asarray(box.start) + (np.asarray(box.shape) - 1) / 2), 1.0]
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = middle[:3] - spacing_mm * (np.array([x, y, z]) - 1) / 2
    return (x, y, z), affine


def _tissues() -> dict[int, int]:
    return group_mapping(load_protocol("synthseg-2.0"), "tissue")


def _scores(wrong: np.ndarray, mended: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    protocol = load_protocol("tissue-groups")
    before, after = (
        group_dice(m.astype(np.int32), truth, protocol, "tissue", ignore_value=IGNORED) for m in (wrong, mended)
    )
    return {"before": before, "after": after}
