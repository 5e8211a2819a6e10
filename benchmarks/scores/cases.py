"""Which scans are scored under which changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from synthseg.evaluation import Case
from synthseg.volumes.degrade import PLAIN

T1_BRAINS = "T1 brains (OASIS)"
T1_OTHERS = "other T1"
T1_TEMPLATE, T2_TEMPLATE, PD_TEMPLATE = "T1 template, 2 mm head", "T2 template, 2 mm head", "PD template, 2 mm head"
T1_TEMPLATE_FINE, T2_TEMPLATE_FINE = "T1 template, 1 mm head", "T2 template, 1 mm brain"
CT_TEMPLATE = "CT template"
CT_SCALE = 13.63  # the CT template is stored as Hounsfield units times this

# Not among the four that the first weights were chosen by (WATCHED), young and old, small and large ventricles.
CHANGED = ("oasis_1005", "oasis_1010", "oasis_1110", "oasis_1122")
WATCHED = ("oasis_1000", "oasis_1017", "oasis_1113", "oasis_1125")
THICKNESSES_MM = (3, 5, 7)
SLICES = tuple(f"{way}-{mm}mm" for mm in THICKNESSES_MM for way in ("sagittal", "coronal", "axial"))
CONTRASTS = ("inverted", "monotone-1", "smooth-1", "smooth-2")
TURNS = ("rotated-x-3", "rotated-y-3", "rotated-z-3")
CONTROL = "shifted"  # what interpolation alone does to volumes

# (image, truth, group, changes besides plain)
OTHERS = (
    ("mni/mni152lin_2mm_t1", "mni/mni152lin_2mm_aseg", T1_TEMPLATE, ("stripped",)),
    ("mni/mni152lin_2mm_t2", "mni/mni152lin_2mm_aseg", T2_TEMPLATE, ("stripped",)),
    ("mni/mni152lin_2mm_pd", "mni/mni152lin_2mm_aseg", PD_TEMPLATE, ("stripped",)),
    ("mni/mni152nlin6_1mm_t1_head", "mni/mni152nlin6_1mm_aseg", T1_TEMPLATE_FINE, ("stripped",)),
    ("mni/mni152nlin6_1mm_t2_brain", "mni/mni152nlin6_1mm_aseg", T2_TEMPLATE_FINE, ()),
    ("t1/swm_t1_head", "t1/swm_aseg", T1_OTHERS, ("stripped",)),
    ("t1/fsdemo_t1_brain", "t1/fsdemo_aseg", T1_OTHERS, ()),
    ("ct/t1_older_adults_mni_1mm", "ct/ct_older_adults_mni_aseg", T1_OTHERS, ()),
)
QUICK = (
    ("oasis_1005", (PLAIN, "axial-5mm", "inverted", "rotated-z-3", CONTROL)),
    ("oasis_1122", (PLAIN,)),
    ("mni152lin_2mm_t1", (PLAIN, "stripped")),
    ("mni152lin_2mm_t2", (PLAIN,)),
    ("mni152lin_2mm_pd", (PLAIN,)),
)
SUBSETS = ("full", "quick")


def cases_of(data: Path, subset: str = "full") -> list[Case]:
    """The cases of a subset, on the scans of ``data`` (the folder with ``oasis/``, ``mni/``, ``t1/`` and ``ct/``)."""
    every = list(_every_case(data))
    if subset == "full":
        return every
    wanted = {(scan, change) for scan, changes in QUICK for change in changes}
    return [case for case in every if (case.scan, case.change) in wanted]


def _every_case(data: Path) -> Iterable[Case]:
    brains = sorted(path.name.removesuffix("_t1.nii.gz") for path in (data / "oasis").glob("*_t1.nii.gz"))
    changes = (*SLICES, *CONTRASTS, *TURNS, CONTROL)
    for change in (PLAIN, *changes):
        for name in brains:
            if change == PLAIN or name in CHANGED:
                yield _case(data, f"oasis/{name}_t1", f"oasis/{name}_aseg", T1_BRAINS, change, name)
    for image, truth, group, others in OTHERS:
        for change in (PLAIN, *others):
            yield _case(data, image, truth, group, change, image.rpartition("/")[2])
    yield Case(
        scan="ct_older_adults",
        image=data / "ct/ct_older_adults_mni_1mm.nii.gz",
        truth=data / "ct/ct_older_adults_mni_aseg.nii.gz",
        group=CT_TEMPLATE,
        ct=True,
        divide_by=CT_SCALE,
    )


def _case(data: Path, image: str, truth: str, group: str, change: str, scan: str) -> Case:
    return Case(scan=scan, image=data / f"{image}.nii.gz", truth=data / f"{truth}.nii.gz", group=group, change=change)
