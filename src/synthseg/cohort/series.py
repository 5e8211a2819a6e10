"""DICOM series as their headers tell of them: which can be segmented, which is best, and why not the others.

Source: DICOM PS3.3 C.7.6 (image type, plane, frame of reference), C.8.3 and C.8.2 (MR and CT image modules), C.8.13
(enhanced MR); what vendors write into descriptions is custom, not standard, and is only used against a series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MIN_SLICES = 8
MIN_COVER_MM = 60.0  # a brain is 110 to 150 mm high; slabs through the hippocampus or the orbit are thinner than this
WHOLE_HEAD_MM = 110.0
MAX_TURN_DEG = 15.0  # slices of a stack are parallel; those of a localiser are at right angles
POSITION_MM = 0.05  # two slices closer than this are at one place
MODALITIES = ("MR", "CT")

MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
_SCAN_CLASSES = {
    MR_CLASS,
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # legacy converted enhanced MR
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # legacy converted enhanced CT
}
# By words of the description, and by words of the image type: what a series is then called.
_DESCRIBED = {
    "a localiser": r"loc|localizer|localiser|scout|survey|topogram|scanogram|smartbrain|aahead\w*|plan|3 ?plane",
    "diffusion-weighted": r"dwi|dti|diff|diffusion|trace\w*|adc|eadc|col ?fa|fa ?map|tensor|hardi|b ?[1-9]\d{2,3}",
    "a functional or perfusion series": r"bold|fmri|rest(ing)?|(pc?)?asl|perf(usion)?|dsc|dce|pwi|r?cb[fv]|mtt|ttp",
    "a field map or calibration": r"fieldmap|(field|b0|b1) ?map|fmap|cal(ib\w*)?|prescan|ref(erence)? ?scan|shim",
    "a projection": r"mip|minip|mnip|projection|vrt",
}
_TYPED = {
    "a localiser": {"LOCALIZER"},
    "diffusion-weighted": {"DIFFUSION", "ADC", "EADC", "FA", "TRACEW", "TENSOR", "DTI"},
    "a functional or perfusion series": {
        "FMRI",
        "PERFUSION",
        "CBF",
        "CBV",
        "RCBF",
        "RCBV",
        "MTT",
        "TTP",
        "TMAX",
        "ASL",
    },
    "a projection": {"PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "VOLUME RENDERED"},
    "a phase image": {"P", "PHASE", "PHASE MAP", "REAL", "R", "IMAGINARY", "I", "VELOCITY"},
    "a picture of a screen": {"SCREEN SAVE", "SCREENSHOT", "CSA REPORT"},
}
_ANGIOGRAM = r"tof|angio\w*|mra|mrv|cta|venc|swi"
_BONE = r"bone|b[67]\d\w?|h[67]\d\w?|edge|sharp"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is needed of one DICOM file's header.

    ``positions`` [frames] of [3] and ``orientation`` [6] are in mm LPS; empty where the file has none.
    """

    path: Path
    study: str
    series: str
    instance: str = ""
    sop_class: str = ""
    modality: str = ""
    number: int | None = None
    description: str = ""
    image_type: tuple[str, ...] = ()
    orientations: tuple[tuple[float, ...], ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    spacing_mm: tuple[float, ...] = ()
    thickness_mm: float = 0.0
    rows: int = 0
    columns: int = 0
    frames: int = 1
    echo_ms: float | None = None
    b_value: float = 0.0
    samples: int = 1
    contrast_agent: bool = False
    kernel: str = ""


@dataclass(frozen=True)
class Series:
    """All files of one series, and what they amount to."""

    headers: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)

    @property
    def n_images(self) -> int:
        return sum(max(len(header.positions), header.frames) for header in self.headers)

    @property
    def name(self) -> str:
        """Number and description, as a radiographer would call it."""
        number = "without number" if self.first.number is None else str(self.first.number)
        return f"series {number}" + (f" '{self.first.description}'" if self.first.description else "")

    @cached_property
    def offsets_mm(self) -> np.ndarray:
        """[slices] where they lie along the normal, ascending, each place once; empty without geometry."""
        if not self._placed:
            return np.zeros(0)
        along = np.sort(np.array([p for header in self._placed for p in header.positions]) @ self.normal)
        return np.asarray(along[np.r_[True, np.diff(along) > POSITION_MM]])

    @property
    def normal(self) -> np.ndarray:
        """[3] direction in which slices follow each other, LPS."""
        return _normal(self._placed[0].orientations[0])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Pixel sizes, and the distance of neighbouring slices (the thickness where there is one slice)."""
        gaps = np.diff(self.offsets_mm)
        between = float(np.median(gaps)) if len(gaps) else self.first.thickness_mm
        row, column = self.first.spacing_mm[:2] if len(self.first.spacing_mm) >= 2 else (0.0, 0.0)
        return row, column, between

    @property
    def cover_mm(self) -> float:
        """Height of the stack of slices."""
        offsets = self.offsets_mm
        return float(offsets[-1] - offsets[0]) + self.spacing_mm[2] if len(offsets) else 0.0

    @property
    def turned(self) -> bool:
        """Whether slices are not parallel to each other."""
        normals = np.array([_normal(o) for header in self._placed for o in set(header.orientations)])
        if len(normals) < 2:
            return False
        return bool(np.abs(normals @ normals[0]).min() < np.cos(np.deg2rad(MAX_TURN_DEG)))

    @property
    def echoes(self) -> int:
        return len({header.echo_ms for header in self.headers})

    @cached_property
    def _placed(self) -> list[Header]:
        return [header for header in self.headers if header.positions and header.orientations]


def group(headers: Iterable[Header]) -> list[Series]:
    """Series, by their UIDs, those of one study together, in the order of their numbers; doubled images once."""
    members: dict[tuple[str, str], dict[str, Header]] = {}
    for header in sorted(headers, key=lambda header: str(header.path)):
        images = members.setdefault((header.study, header.series), {})
        images.setdefault(header.instance or str(header.path), header)
    series = [Series(tuple(images.values())) for images in members.values()]
    return sorted(series, key=lambda one: (one.first.study, one.first.number is None, one.first.number or 0))


def impossible(series: Series) -> str:
    """Why a series cannot be segmented, whoever asks for it; "" if it can."""
    first = series.first
    if first.modality not in MODALITIES:
        return f"modality {first.modality or 'unknown'}, not MR or CT"
    if first.sop_class not in _SCAN_CLASSES:
        return "not stored as MR or CT images (a report, a screenshot, ...)"
    if first.samples != 1:
        return "in colour"
    if not len(series.offsets_mm):
        return "without positions of its slices"
    if min(series.spacing_mm[:2]) <= 0:
        return "without the size of its pixels"
    return ""


def unfit(series: Series) -> str:
    """Why a series is not taken unless it is asked for; "" if it may be."""
    first = series.first
    reason = _by_type(first.image_type) or _by_words(first.description)
    if reason:
        return reason
    if any(header.b_value > 0 for header in series.headers):
        return "diffusion-weighted"
    if series.turned:
        return "a localiser: its slices are not parallel"
    slices = len(series.offsets_mm)
    if slices < MIN_SLICES:
        return f"only {slices} slice(s)"
    repeats = series.n_images / slices / series.echoes
    if repeats > 1.5:
        return f"a time series or several volumes: {repeats:.0f} images at each position"
    if series.cover_mm < MIN_COVER_MM:
        return f"its slices cover {series.cover_mm:.0f} mm only"
    return ""


def pick(candidates: Sequence[Series]) -> Series:
    """The best of series that may be taken: see :func:`rank`."""
    return min(candidates, key=rank)


def rank(series: Series) -> tuple[float, ...]:
    """Smaller is better. Contrast hardly matters to the networks: what was measured, and how finely, does.

    In this order: not derived from another series; no angiogram, no bone kernel; the whole head; largest voxel side
    (in steps of 0.5 mm); no contrast agent; voxel volume; its number, so that the order of files does not matter.
    """
    first = series.first
    spacing = series.spacing_mm
    words = _words(first.description)
    return (
        float(first.image_type[:1] == ("DERIVED",)),
        float(
            bool(re.search(rf"\b({_ANGIOGRAM})\b", words)) or bool(re.search(rf"\b({_BONE})\b", _words(first.kernel)))
        ),
        float(series.cover_mm < WHOLE_HEAD_MM),
        float(np.ceil(max(spacing) * 2 - 0.1)),
        float(first.contrast_agent),
        float(round(float(np.prod(spacing)), 3)),
        float(first.number if first.number is not None else 1e9),
    )


def told(series: Series) -> str:
    """A series in a few words, for the reason it was chosen."""
    row, column, between = series.spacing_mm
    kind = "derived, " if series.first.image_type[:1] == ("DERIVED",) else ""
    slices = len(series.offsets_mm)
    return f"{kind}{slices} slices, {row:.2g} x {column:.2g} x {between:.2g} mm, covering {series.cover_mm:.0f} mm"


def _normal(orientation: Sequence[float]) -> np.ndarray:
    normal = np.cross(orientation[:3], orientation[3:6])
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-9))


def _words(text: str) -> str:
    """Lower case, words apart: "t1_MPRAGE-iso" -> "t1 mprage iso"."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _by_words(description: str) -> str:
    words = _words(description)
    return next((kind for kind, pattern in _DESCRIBED.items() if re.search(rf"\b({pattern})\b", words)), "")


def _by_type(image_type: Sequence[str]) -> str:
    # The first two values say original or derived, primary or secondary.
    values = {value.upper() for value in image_type[2:]}
    return next((kind for kind, marks in _TYPED.items() if values & marks), "")
