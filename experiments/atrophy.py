"""The group study (Billot et al. 2023, section 5.3) on simulated patients: hippocampi smaller by a known share.

Healthy label maps are deformed into as many subjects as are wanted; the hippocampi of each lose a share of their
volume, patients more of it. Scans of all are synthesised in several contrasts, thickened, and segmented. The effect
size of the true volumes is known, and what each method finds is held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from experiments.methods import Method, key_of
from experiments.places import Places
from experiments.study import Atrophy, Size
from experiments.toy import labels_of, plain_config
from experiments.volumes import keep, read_kept, write_effects, write_table

from synthseg.configs import config_to_dict
from synthseg.errors import SynthsegError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import DeformationPrior
from synthseg.generation.deformation import draw_deformation
from synthseg.generation.model import GenerativeModel
from synthseg.volumes.degrade import degrade
from synthseg.volumes.volume import Volume

HIPPOCAMPI = (17, 53)
HORN = {17: 5, 53: 44}  # what is lost becomes the temporal horn, as it does in patients
_SHAPE, _TOY_SHAPE = (168, 200, 176), (40, 48, 40)


@dataclass(frozen=True)
class Subject:
    """A simulated person."""

    name: str
    patient: bool
    labels: LabelBank  # one map: deformed, with the hippocampi that are left
    icv_mm3: float  # all segmented structures together
    truth_mm3: float  # of both hippocampi
    seed: int


def shrink(label_map: np.ndarray, value: int, share: float, fill: int) -> np.ndarray:
    """A structure without the given share of its voxels, those nearest its surface; they become ``fill``.

    Voxels are ranked by the structure's smoothed mask: what is deep inside, or part of a thick piece, stays longest.

    Args:
        label_map: [X, Y, Z] integers. share: in [0, 1), of its voxels, rounded to whole ones.
    Returns: a new map.
    """
    from scipy import ndimage

    mask = label_map == value
    lost = round(share * int(mask.sum()))
    if lost <= 0:
        return label_map.copy()
    depth = ndimage.gaussian_filter(mask.astype(np.float64), 1.5) + 1e-3 * ndimage.distance_transform_edt(mask)
    places = np.flatnonzero(mask)
    order = np.argsort(depth.ravel()[places], kind="stable")
    changed = label_map.copy()
    changed.ravel()[places[order[:lost]]] = fill
    return changed


def make_subjects(study: Atrophy, n: int, bank: LabelBank, size: Size) -> list[Subject]:
    """Controls, then patients: ``n`` each, every one from another deformation of one of the bank's maps."""
    spacing = float(bank.spacing_mm.min()) if size == "toy" else 1.0
    grid_config = plain_config(bank, study.contrasts[0], spacing, _TOY_SHAPE if size == "toy" else _SHAPE)
    deform = DeformationPrior(scaling=0.08, rotation_deg=5.0, shearing=0.01, svf_max_std_mm=2.5)
    model = GenerativeModel(grid_config, bank)
    subjects = []
    for number in range(2 * n):
        patient, seed = number >= n, study.seed * 100_000 + number
        rng = torch.Generator().manual_seed(seed)
        draw = model.draw(1, rng=rng)
        draw.anatomy.map_index[:] = number % len(bank)
        draw = draw._replace(deformation=draw_deformation(deform, grid_config.grid, 1, rng=rng))
        indices = model.labels(draw)[0].numpy()
        values = bank.protocol.values[indices].astype(np.int32)
        noise = float(torch.randn(1, generator=rng)) * study.sd_loss
        for value in HIPPOCAMPI:
            # Those of controls vary as much: what a method must see is the shift, not one group's spread.
            lost = min(max((study.mean_loss if patient else study.sd_loss) + noise, 0.0), 0.8)
            values = shrink(values, value, lost, HORN[value])
        own = LabelBank.from_maps([values], [(spacing,) * 3], [f"subject {number}"], bank.protocol)
        voxel = spacing**3
        target = bank.protocol.targets[own.label_map(0).numpy()]
        subjects.append(
            Subject(
                name=f"{'patient' if patient else 'control'}-{number % n:03d}",
                patient=patient,
                labels=own,
                icv_mm3=float((target > 0).sum()) * voxel,
                truth_mm3=float(np.isin(target, HIPPOCAMPI).sum()) * voxel,
                seed=seed,
            )
        )
    return subjects


def scan_of(subject: Subject, contrast: str, change: str, size: Size) -> Volume:
    """A scan of a subject: synthesised, then with thick slices or whatever the change says."""
    spacing = float(subject.labels.spacing_mm.min())
    config = plain_config(subject.labels, contrast, spacing, _TOY_SHAPE if size == "toy" else _SHAPE)
    model = GenerativeModel(config, subject.labels)
    pair = model.sample(1, rng=torch.Generator().manual_seed(subject.seed + 1))
    affine = np.diag([spacing] * 3 + [1.0])
    scan = Volume((pair.image[0, 0] * 1000).numpy(), affine)
    truth = labels_of(pair.target[0], subject.labels.protocol, affine)
    return degrade(scan, truth, change, name=subject.name)[0]


def run_atrophy(
    study: Atrophy,
    methods: Mapping[str, Callable[[], Method]],
    places: Places,
    size: Size,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> list[tuple[str, str, str]]:
    """Volumes of every subject, condition and method in ``volumes.tsv``, effect sizes in ``summary.md``.

    Volumes that an earlier sitting measured with the same method on the same subjects are kept.

    Returns: what failed, and is in no table: method, subject and condition, reason.
    """
    n = {"toy": study.toy_subjects, "full": study.subjects}.get(size, study.small_subjects)
    bank = LabelBank.load(places.bank)
    subjects = make_subjects(study, n, bank, size)
    changes = study.toy_changes if size == "toy" else study.changes
    about = key_of("of", {"bank": bank.sha256, "study": config_to_dict(study), "subjects": n})
    failures: list[tuple[str, str, str]] = []
    rows: list[dict[str, Any]] = [
        {"method": "truth", "condition": "-", "volume_mm3": s.truth_mm3, **_facts(s)} for s in subjects
    ]
    for name, make in methods.items():
        method = make()
        kept = places.out / "kept" / f"{method.key}-{about}.tsv"
        known = read_kept(kept)
        for contrast in study.toy_contrasts if size == "toy" else study.contrasts:
            for change in changes:
                condition = f"{contrast} {change}"
                for subject in subjects:
                    key = (subject.name, condition)
                    if key not in known:
                        scan = scan_of(subject, contrast, change, size)
                        try:
                            found = method.segment(scan, ct=False, fine=change != "plain").volumes_mm3
                        except (SynthsegError, OSError, MemoryError) as error:
                            failures.append((name, " ".join(key), str(error) or type(error).__name__))
                            continue
                        known[key] = sum(found.get(value, 0.0) for value in HIPPOCAMPI)
                        keep(kept, known)
                    say(f"{name}: {subject.name} {condition}: {known[key]:.0f} mm3, truly {subject.truth_mm3:.0f}")
                    rows.append({"method": name, "condition": condition, "volume_mm3": known[key], **_facts(subject)})
    write_table(rows, places.out / "volumes.tsv")
    missed = [f"Failed, and not counted: {name}, {case}: {reason}" for name, case, reason in failures]
    write_effects(rows, places.out / "summary.md", "Hippocampal atrophy, simulated", missed)
    return failures


def _facts(subject: Subject) -> dict[str, Any]:
    return {
        "scan": subject.name,
        "patient": int(subject.patient),
        "icv_mm3": subject.icv_mm3,
        "truth_mm3": subject.truth_mm3,
    }
