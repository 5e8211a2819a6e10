"""The sentence of every check: what was found in a scan, with its number, and what to do. None where all is well.

Each function gets the evidence and the check's limit (``scan_checks.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthseg.inference.configuration import Fit
from synthseg.inference.signs import BrainSigns, ImageSigns
from synthseg.inference.structures import CSF_VALUE

# Of structures that are compared: left label value, right one, name. No ventricles: healthy ones often differ.
PAIRS = {
    2: (41, "cerebral white matter"),
    3: (42, "cerebral cortex"),
    7: (46, "cerebellum white matter"),
    8: (47, "cerebellum cortex"),
    10: (49, "thalamus"),
    11: (50, "caudate"),
    12: (51, "putamen"),
    13: (52, "pallidum"),
    17: (53, "hippocampus"),
}
TISSUES = {"white matter": (2, 41), "cortex": (3, 42), "lateral ventricle": (4, 43)}
CUT_MM2 = 1500.0  # of brain on one side of the field of view: more is cut off
LABEL_VALUES = 300  # at most so many different values in a label map; a scan of 8 bits has fewer than that, too


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the checks look at.

    Attributes:
        fit: how the structures lie to each other; None where too few were found.
        volumes_mm3: by label value; ``total_mm3`` all of them.
        adult: the network's labels are those of whole adult brains (FreeSurfer's).
        trained_mm: largest distance of slices, and largest voxel along all axes, that training simulated; None where
            the weights do not say.
        ct: the setting: clip as CT, do not, or (None) decide by the values.
    """

    image: ImageSigns
    brain: BrainSigns
    fit: Fit | None
    volumes_mm3: Mapping[int, float]
    total_mm3: float
    adult: bool
    trained_mm: tuple[float, float] | None
    ct: bool | None


def label_map(evidence: Evidence, limit: float) -> str | None:
    """A label map or mask, given as a scan."""
    image = evidence.image
    if image.flatness < limit or image.distinct > LABEL_VALUES:
        return None
    return (
        f"looks like a label map or a mask, not a scan: {image.flatness:.0%} of neighbouring voxels have exactly the "
        f"same value, and there are {image.distinct} values: give the scan itself"
    )


def noise(evidence: Evidence, limit: float) -> str | None:
    """Nothing but noise."""
    if evidence.image.roughness < limit:
        return None
    return (
        f"more noise than image: neighbouring voxels differ by {evidence.image.roughness:.2f} of what unrelated ones "
        "would (ordinary scans: below 0.1): look at it, and try --mode robust if there is a head in it"
    )


def unclipped_ct(evidence: Evidence, _limit: float) -> str | None:
    """CT, with --no-ct."""
    if evidence.ct is not False or not evidence.image.hounsfield:
        return None
    return (
        f"looks like CT in Hounsfield units (down to {evidence.image.lowest:g}), but was not clipped as CT: "
        "leave out --no-ct"
    )


def no_ct(evidence: Evidence, limit: float) -> str | None:
    """No Hounsfield units, with --ct."""
    image = evidence.image
    if not evidence.ct or image.lowest < 0 or image.high <= limit:
        return None
    return (
        f"was clipped as CT, but has no negative value, and values up to {image.high:g}: if it is no CT, leave out "
        "--ct; if it is, see that its values are Hounsfield units (soft tissue 0 to 80), not shifted by an offset"
    )


def thick(evidence: Evidence, limit: float) -> str | None:
    """Slices further apart than any that training simulated."""
    largest = max(evidence.image.spacing_mm)
    if evidence.trained_mm is None or largest <= evidence.trained_mm[0] * limit:
        return None
    return (
        f"slices are {largest:.3g} mm apart; training simulated up to {evidence.trained_mm[0]:g} mm: "
        "expect errors of small structures and of volumes"
    )


def coarse(evidence: Evidence, limit: float) -> str | None:
    """Voxels coarser along all axes than any that training simulated."""
    smallest = min(evidence.image.spacing_mm)
    if evidence.trained_mm is None or smallest <= evidence.trained_mm[1] * limit:
        return None
    return (
        f"voxels are at least {smallest:.3g} mm wide along every axis; training simulated up to "
        f"{evidence.trained_mm[1]:g} mm: expect errors of small structures and of volumes"
    )


def cut(evidence: Evidence, limit: float) -> str | None:
    """The brain reaches the end of the field of view."""
    sides = _cut_sides(evidence, limit)
    if not sides:
        return None
    named = " and ".join(f"the {side}" for side in sides)
    told = ", ".join(f"{area / 100:.0f} cm2 at the {side}" for side, area in sides.items())
    return f"the brain is cut off at {named} of the field of view, which it touches with {told}: volumes are too small"


def _cut_sides(evidence: Evidence, limit: float) -> dict[str, float]:
    """Where the brain ends with the field of view, with the area there (mm2)."""
    return {side: area for side, area in evidence.brain.touching_mm2.items() if area > limit}


def no_brain(evidence: Evidence, limit: float) -> str | None:
    """Hardly anything was segmented."""
    ml = evidence.total_mm3 / 1000
    if not evidence.adult or ml >= limit:
        return None
    found = f"hardly any brain was found, {ml:.0f} ml (a newborn has about 350)"
    if _cut_sides(evidence, CUT_MM2):
        return f"{found}: only a part of the brain seems to be in the field of view"
    return f"{found}: is it a brain, upright, and are its voxel sizes in the header right?"


def misplaced(evidence: Evidence, limit: float) -> str | None:
    """Structures that do not lie to each other as in a head."""
    fit = evidence.fit
    if not evidence.adult or fit is None or fit.misfit < limit:
        return None
    found = f"the structures do not lie to each other as in a head (misfit {fit.misfit:.2f}; heads: below 0.2)"
    if _cut_sides(evidence, CUT_MM2):
        return (
            f"{found}: too little of the brain may be in the field of view; if all of it is, see whether the header "
            "has top and bottom, front and back or axes mixed up"
        )
    return (
        f"{found}: the header may have top and bottom, front and back or axes mixed up, or the segmentation failed: "
        "look at the scan in a viewer that shows directions, and mend its header"
    )


def turned(evidence: Evidence, limit: float) -> str | None:
    """A head that is far from upright."""
    fit = evidence.fit
    if not evidence.adult or fit is None or fit.turned_deg < limit:
        return None
    return (
        f"the head is turned by {fit.turned_deg:.0f} degrees against an upright one (training: up to about 25): "
        "check the orientation in the header"
    )


def small(evidence: Evidence, limit: float) -> str | None:
    """A brain smaller than any adult's."""
    ml = evidence.total_mm3 / 1000
    if not evidence.adult or ml >= limit:
        return None
    return (
        f"the brain is small for an adult's, {ml:.0f} ml: of an infant (the networks were trained on adults), cut off, "
        "or with wrong voxel sizes in the header"
    )


def large(evidence: Evidence, limit: float) -> str | None:
    """A brain larger than any adult's."""
    ml = evidence.total_mm3 / 1000
    if not evidence.adult or ml <= limit:
        return None
    return (
        f"the brain is large for an adult's, {ml:.0f} ml: wrong voxel sizes in the header, or more than the brain was "
        "segmented"
    )


def csf(evidence: Evidence, limit: float) -> str | None:
    """Brain and intracranial volume that disagree."""
    csf = evidence.volumes_mm3.get(CSF_VALUE, 0.0)
    if not evidence.adult or evidence.total_mm3 <= 0 or 1 - csf / evidence.total_mm3 >= limit:
        return None
    return (
        f"brain and intracranial volume disagree: only {1 - csf / evidence.total_mm3:.0%} of what is inside the skull "
        "is brain, the rest CSF: strong atrophy, or the segmentation failed"
    )


def asymmetric(evidence: Evidence, limit: float) -> str | None:
    """Volumes of left and right that disagree."""
    if not evidence.adult:
        return None
    found = []
    for left, (right, name) in PAIRS.items():
        a, b = evidence.volumes_mm3.get(left, 0.0), evidence.volumes_mm3.get(right, 0.0)
        if a + b > 0 and abs(a - b) / (a + b) > limit:
            larger, smaller = max(a, b) / 1000, min(a, b) / 1000
            side = "left" if a > b else "right"
            found.append((abs(a - b) / (a + b), f"{name} ({side} {larger:.1f} ml, the other {smaller:.1f})"))
    if not found:
        return None
    told = ", ".join(sentence for _, sentence in sorted(found, reverse=True)[:3])
    return f"left and right differ much: {told}: a lesion, or the segmentation failed on one side"


def bright_rim(evidence: Evidence, limit: float) -> str | None:
    """Surroundings brighter than the brain."""
    brain = evidence.brain
    inside = [mean for value, (mean, _) in brain.brightness.items() if value != CSF_VALUE]
    if not inside or brain.rim <= max(inside) + limit:
        return None
    return (
        "what surrounds the head is brighter than all of the brain: inverted intensities? Air should be dark: "
        "invert the scan, or mask what is around the head"
    )


def low_contrast(evidence: Evidence, limit: float) -> str | None:
    """No contrast between tissues."""
    contrast = tissue_contrast(evidence.brain)
    if not evidence.adult or contrast is None or contrast >= limit:
        return None
    return (
        f"hardly any contrast between white matter, cortex and ventricles: their means differ by {contrast:.1f} "
        "standard deviations at most: borders are guessed from shapes"
    )


def tissue_contrast(brain: BrainSigns) -> float | None:
    """The largest difference of two tissues' mean intensities over their pooled standard deviation (Cohen's d)."""
    found = []
    for values in TISSUES.values():
        known = [brain.brightness[value] for value in values if value in brain.brightness]
        if known:
            mean = sum(mean for mean, _ in known) / len(known)
            found.append((mean, sum(deviation**2 for _, deviation in known) / len(known)))
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    if not pairs:
        return None
    return max(abs(a[0] - b[0]) / max(((a[1] + b[1]) / 2) ** 0.5, 1e-9) for a, b in pairs)
