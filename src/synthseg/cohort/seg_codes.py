"""What structures are called in DICOM: codes of SNOMED CT where there are some, else numbers of FreeSurfer's table.

Source: DICOM PS3.16, CID 7140 (brain structures for volumetric measurement), CID 7150 (categories), CID 7162 (kinds of
algorithms), CID 244 (laterality).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Concept = tuple[str, str, str]  # value, scheme, meaning

PRIVATE_SCHEME = "99FREESURFER"  # schemes that begin with 99 are private
CATEGORY: Concept = ("91723000", "SCT", "Anatomical Structure")
ALGORITHM: Concept = ("123110", "DCM", "Artificial Intelligence")
REGION: Concept = ("12738006", "SCT", "Brain")
SIDES: dict[str, Concept] = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
# By the name in our protocols, without the side.
CONCEPTS: dict[str, Concept] = {
    "cerebral white matter": ("68523003", "SCT", "Cerebral White Matter"),
    "cerebral cortex": ("40146001", "SCT", "Cerebral Gray Matter"),
    "lateral ventricle": ("66720007", "SCT", "Lateral Ventricle"),
    "inferior lateral ventricle": ("53118009", "SCT", "Inferior Horn of Lateral Ventricle"),
    "cerebellum white matter": ("33060004", "SCT", "Cerebellar White Matter"),
    "cerebellum cortex": ("25991003", "SCT", "Cerebellar Cortex"),
    "thalamus": ("119406000", "SCT", "Thalamus"),
    "caudate": ("11000004", "SCT", "Caudate Nucleus"),
    "putamen": ("89278009", "SCT", "Putamen"),
    "pallidum": ("14738005", "SCT", "Globus Pallidus"),
    "3rd ventricle": ("49841001", "SCT", "Third ventricle"),
    "4th ventricle": ("35918002", "SCT", "Fourth Ventricle"),
    "brain-stem": ("119238007", "SCT", "Brain Stem"),
    "hippocampus": ("5366008", "SCT", "Hippocampus"),
    "amygdala": ("4958002", "SCT", "Amygdala"),
    "accumbens area": ("427667007", "SCT", "Nucleus Accumbens"),
    "csf": ("65216001", "SCT", "Cerebrospinal Fluid"),
    "ventral dc": ("110700", "DCM", "Ventral Diencephalon"),
}


@dataclass(frozen=True)
class Segment:
    """A structure in a segmentation: its value in the label map, its name (side included), its colour as #rrggbb."""

    value: int
    name: str
    color: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True)
class SegmentCode:
    """What a structure is, and on which side; ``side`` is None where there is none, or the concept's name has it."""

    concept: Concept
    side: Concept | None


def code_of(segment: Segment) -> SegmentCode:
    """The code of a structure: of SNOMED CT or DICOM with its side apart, or FreeSurfer's number of that label."""
    found = re.fullmatch(r"(?:(left|right) )?(.*)", segment.name.lower())
    assert found is not None  # the pattern fits any text of one line
    side, name = found.groups()
    if name not in CONCEPTS:
        return SegmentCode((str(segment.value), PRIVATE_SCHEME, segment.name[:64]), None)
    return SegmentCode(CONCEPTS[name], SIDES[side] if side else None)
