"""Which scans the proof of the robust hierarchy uses, under which changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.scores import cases as plain_cases

from synthseg.evaluation import Case
from synthseg.volumes.degrade import PLAIN

BRAINS = plain_cases.T1_BRAINS
GRADED = "graded"  # for quality control only: not among the conditions that modes are compared under

# All labelled brains but the four that checkpoints were chosen by.
SCANS = ("oasis_1005", "oasis_1010", "oasis_1013", "oasis_1036", "oasis_1110", "oasis_1122")
SINGLE = ("axial-7mm", "snr-5", "bias-1", "motion-1")
HARD = "motion-1+bias-1+axial-7mm+snr-5"  # in the order in which a scanner would do it: the noise comes last
COMBINED = ("axial-7mm+snr-5", "motion-1+bias-1+snr-3", HARD)
CONDITIONS = (PLAIN, *SINGLE, *COMBINED)

MARGIN_MM = 20.0  # the files are padded to 256 mm and more; a scanner's field of view ends about here

# From hardly worse to nothing left: true Dice spreads from about 0.9 to 0.2. Each for every second scan, in turn.
SEVERITIES = (
    "snr-3",
    "snr-2",
    "snr-1.5",
    "snr-1",
    "coronal-9mm",
    "axial-9mm+snr-2",
    "sagittal-9mm+snr-1.5",
    "bias-1+bias-2+bias-3",
    "bias-2+snr-1.5",
    "bias-1+bias-2+motion-1+snr-1",
    "motion-1+motion-2",
    "motion-1+motion-2+motion-3+snr-3",
    "cut-superior-30",
    "cut-inferior-40",
    "cut-left-40",
    "cut-posterior-50",
    "cut-anterior-30+snr-2",
    "inverted+snr-2",
    "smooth-1+axial-5mm+snr-3",
    "motion-2+bias-2+axial-9mm+snr-2",
)


def compared(data: Path, *, few: bool = False) -> list[Case]:
    """Every brain under every condition, the first scan's conditions first; ``few`` takes two brains."""
    scans = SCANS[:2] if few else SCANS
    return [_case(data, scan, BRAINS, change) for scan in scans for change in CONDITIONS]


def graded(data: Path, *, few: bool = False) -> list[Case]:
    """Scans of graded severity, for quality control; without surface distances."""
    return [_case(data, scan, GRADED, change, surface=False) for scan, change in _pairs(few)]


def _pairs(few: bool) -> Iterable[tuple[str, str]]:
    for position, change in enumerate(SEVERITIES):
        for turn, scan in enumerate(SCANS):
            if turn % 2 == position % 2 and (turn < 2 or not few):
                yield scan, change


def _case(data: Path, scan: str, group: str, change: str, *, surface: bool = True) -> Case:
    return Case(
        scan=scan,
        image=data / "oasis" / f"{scan}_t1.nii.gz",
        truth=data / "oasis" / f"{scan}_aseg.nii.gz",
        group=group,
        change=change,
        surface=surface,
        margin_mm=MARGIN_MM,
    )
