"""Predicted intracranial volumes against masks that come with templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.plus.networks import hash_of

from synthseg.evaluation.kept import kept
from synthseg.inference import Segmenter
from synthseg.volumes import Volume, read_volume

CT_SCALE = 13.63  # one of the CT templates is stored as Hounsfield units times this
CT_SOFT_HU = (-15.0, 100.0)  # fluid and brain, not fat, not bone
OPENING_MM = 2.0  # what hangs on to the inside of the skull by less is not of it

SKULL = "inside of the skull"  # all that is intracranial, CSF over the brain included
BRAIN = "brain, ventricles filled"  # ends at the brain's surface or shortly beyond: less than intracranial
UNSEEN = "inside of the skull, of which the image has been stripped"  # no network can know how much was there
DILATED = "widened brain mask"  # reaches into the meninges and the skull: more than intracranial


@dataclass(frozen=True)
class Template:
    """An image, a mask of the same space, and what the mask is."""

    image: str  # under the folder of all data
    mask: str
    kind: str
    what: str
    make: Callable[[Volume, float], float]  # mask volume in mm3 from the mask's file
    ct: bool | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class IntracranialRow:
    """One template: volumes in ml."""

    template: Template
    predicted_ml: float
    mask_ml: float

    @property
    def percent(self) -> float:
        """Of the mask's volume, how much more was predicted."""
        return 100 * (self.predicted_ml / self.mask_ml - 1)


def filled_mm3(volume: Volume, scale: float = 1.0) -> float:  # noqa: ARG001
    """Volume of all voxels above 0, holes filled."""
    from scipy.ndimage import binary_fill_holes

    return float(binary_fill_holes(volume.data > 0).sum() * np.prod(volume.spacing_mm))


def inside_skull_mm3(volume: Volume, scale: float = 1.0) -> float:
    """Volume of the soft tissue in a stripped CT: opened by :data:`OPENING_MM`, the largest piece, holes filled."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

    hu = volume.data / scale
    soft = (hu > CT_SOFT_HU[0]) & (hu < CT_SOFT_HU[1]) & (volume.data != volume.data.flat[0])
    core, count = label(distance_transform_edt(soft, sampling=volume.spacing_mm) > OPENING_MM)
    sizes = np.bincount(core.ravel(), minlength=count + 1)
    sizes[0] = 0
    opened = distance_transform_edt(core != sizes.argmax(), sampling=volume.spacing_mm) <= OPENING_MM
    return float(binary_fill_holes(opened).sum() * np.prod(volume.spacing_mm))


_T1, _T2 = "validation/mni/mni152nlin6_1mm_t1_head.nii.gz", "validation/mni/mni152nlin6_2mm_t2_head.nii.gz"
_FSL = "training/parcellation/mni152_nlin6_t1_brain.nii.gz"
_HCP = "validation/mni/mni152nlin6_1mm_t2_brain.nii.gz"
_CT_OLD, _T1_OLD = "validation/ct/ct_older_adults_mni_1mm.nii.gz", "validation/ct/t1_older_adults_mni_1mm.nii.gz"
_CT = "validation/ct/ct_brain_template_1mm.nii.gz"
TEMPLATES = (
    Template(_CT_OLD, _CT_OLD, SKULL, "CT of older adults, MNI space", inside_skull_mm3, ct=True, scale=CT_SCALE),
    Template(_CT, _CT, SKULL, "CT template, stripped at the inner skull", inside_skull_mm3, ct=True),
    Template(_T1, _FSL, BRAIN, "MNI152 T1 head, the mask of FSL's stripped brain", filled_mm3),
    Template(_T1, _HCP, DILATED, "MNI152 T1 head, the mask of the HCP's stripped T2", filled_mm3),
    Template(_T2, _FSL, BRAIN, "MNI152 T2 head, the mask of FSL's stripped brain", filled_mm3),
    Template(_T2, _HCP, DILATED, "MNI152 T2 head, the mask of the HCP's stripped T2", filled_mm3),
    Template(_T1_OLD, _T1_OLD, BRAIN, "T1 of older adults, stripped at the brain's surface", filled_mm3),
    Template(_T1_OLD, _CT_OLD, UNSEEN, "T1 of older adults, the mask of its CT", inside_skull_mm3),
)


def intracranial(data: Path, segmenter: Segmenter, mode: str, folder: Path) -> Iterator[IntracranialRow]:
    """A row a template, made or read from ``folder``; ``data`` holds ``validation/`` and ``training/``."""
    place = folder / f"{mode}-{hash_of(*segmenter.models.values())}"
    for template in TEMPLATES:
        if not ((data / template.image).is_file() and (data / template.mask).is_file()):
            continue
        name = Path(template.image).name.removesuffix(".nii.gz")
        total = kept(place / f"icv-{name}.json", lambda t=template: _total(data, t, segmenter))["total_mm3"]  # type: ignore[misc]
        mask = template.make(read_volume(data / template.mask), CT_SCALE if template.mask == _CT_OLD else 1.0)
        yield IntracranialRow(template, total / 1000, mask / 1000)


def _total(data: Path, template: Template, segmenter: Segmenter) -> dict[str, float]:
    scan = read_volume(data / template.image)
    if template.ct and template.scale != 1:
        scan = replace(scan, data=scan.data / np.float32(template.scale))
    with_ct = segmenter.with_config(replace(segmenter.config, ct=template.ct))
    return {"total_mm3": float(with_ct.segment(scan).total_mm3)}
