"""What may be wrong with a scan or its result: a table of checks, each with a code, a threshold, and its source.

A warning never fails a run. It says that a number should not be used before a person has looked. Codes are stable:
scripts may select by them. What each check finds and how often it is wrong was measured: docs/warnings.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from synthseg.inference.config import InferenceConfig
from synthseg.inference.configuration import CENTRES, fit_centres
from synthseg.inference.model import Model
from synthseg.inference.prepare import Prepared
from synthseg.inference.scan_findings import (
    CUT_MM2,
    Evidence,
    asymmetric,
    bright_rim,
    coarse,
    csf,
    cut,
    label_map,
    large,
    low_contrast,
    misplaced,
    no_brain,
    no_ct,
    noise,
    small,
    thick,
    turned,
    unclipped_ct,
)
from synthseg.inference.scan_warnings import ScanWarning, Severity
from synthseg.inference.signs import brain_signs, image_signs
from synthseg.inference.sparse import SparsePosteriors
from synthseg.weights.card import BRAIN


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table.

    Attributes:
        limit: the threshold, in ``unit``; ``source`` says where it is from.
        find: the sentence for a scan, or None; it gets the evidence and the limit.
        unless: codes that make this one superfluous: it would follow from them.
    """

    code: str
    severity: Severity
    limit: float
    unit: str
    source: str
    find: Callable[[Evidence, float], str | None]
    unless: tuple[str, ...] = ()


def evidence_of(prepared: Prepared, posteriors: SparsePosteriors, model: Model, config: InferenceConfig) -> Evidence:
    """What the checks look at.

    Args:
        prepared: the scan as the networks saw it last.
        posteriors: cleaned, of the network ``model`` that gives the structures.
        config: the settings of the run.
    """
    image = image_signs(prepared)
    brain = brain_signs(prepared, posteriors, model.channels, image.content)
    mm3 = posteriors.voxels * posteriors.grid.voxel_volume_mm3
    volumes = {int(value): float(one) for value, one in zip(model.channels.values[1:], mm3[1:], strict=True)}
    return Evidence(
        image=image,
        brain=brain,
        fit=fit_centres(brain.centres_mm),
        volumes_mm3=volumes,
        total_mm3=sum(volumes.values()),
        adult=model.organ == BRAIN and is_adult_brain(set(volumes)),
        trained_mm=model.trained_mm,
        ct=config.ct,
    )


def check_scan(
    prepared: Prepared, posteriors: SparsePosteriors, model: Model, config: InferenceConfig
) -> tuple[ScanWarning, ...]:
    """The warnings on a segmented scan, serious ones first; arguments as for :func:`evidence_of`."""
    return warnings_of(evidence_of(prepared, posteriors, model, config))


def warnings_of(evidence: Evidence) -> tuple[ScanWarning, ...]:
    """Every warning on a scan, serious ones first, each in the order of :data:`CHECKS`."""
    found: dict[str, ScanWarning] = {}
    for check in CHECKS:
        message = None if found.keys() & set(check.unless) else check.find(evidence, check.limit)
        if message is not None:
            found[check.code] = ScanWarning(check.code, check.severity, message)
    return tuple(sorted(found.values(), key=lambda warning: warning.severity != "serious"))


def is_adult_brain(values: set[int]) -> bool:
    """Whether label values are those of a whole brain in FreeSurfer's numbers, as the adult networks have them."""
    return set(CENTRES) <= values


_FAILED = ("no-brain", "misplaced", "label-map")
CHECKS: tuple[Check, ...] = (
    Check(
        code="label-map",
        severity="serious",
        limit=0.5,
        unit="share of equal neighbours",
        source="measured: scans at most 0.37 (a blurred template), label maps and masks at least 0.85",
        find=label_map,
    ),
    Check(
        code="noise",
        severity="caution",
        limit=0.4,
        unit="of white noise",
        source="measured: scans at most 0.1, one with noise of half its signal 0.86; white noise is 1 by definition",
        find=noise,
    ),
    Check(
        code="ct-not-clipped",
        severity="serious",
        limit=0.0,
        unit="-",
        source="Hounsfield units as `prepare.looks_like_ct` recognises them",
        find=unclipped_ct,
    ),
    Check(
        code="not-ct",
        severity="caution",
        limit=200.0,
        unit="HU",
        source="soft tissue is below 80 HU; any field of view of CT has values below 0",
        find=no_ct,
    ),
    Check(
        code="no-brain",
        severity="serious",
        limit=300.0,
        unit="ml",
        source="a newborn's brain has about 350 ml (Knickmeyer et al. 2008)",
        find=no_brain,
    ),
    Check(
        code="misplaced",
        severity="serious",
        limit=0.3,
        unit="of the structures' distance from their centre",
        source="measured: 37 label maps at most 0.15, scans 0.17, with a wrong orientation at least 0.57",
        find=misplaced,
        unless=("no-brain",),
    ),
    Check(
        code="turned",
        severity="caution",
        limit=45.0,
        unit="degrees",
        source="measured: 37 label maps at most 24; training turns by up to 15 about each axis",
        find=turned,
        unless=_FAILED,
    ),
    Check(
        code="brain-cut",
        severity="serious",
        limit=CUT_MM2,
        unit="mm2 on one side",
        source="a cap 4 mm high of a sphere of 65 mm; measured: scans that hold the whole brain at most 830",
        find=cut,
    ),
    Check(
        code="small-brain",
        severity="caution",
        limit=850.0,
        unit="ml",
        source="below any adult's: 37 label maps of adults begin at 1,070 ml",
        find=small,
        unless=("no-brain",),
    ),
    Check(
        code="large-brain",
        severity="caution",
        limit=2200.0,
        unit="ml",
        source="above any adult's intracranial volume: 37 label maps end at 1,750 ml",
        find=large,
    ),
    Check(
        code="thick-slices",
        severity="caution",
        limit=1.05,
        unit="of what training simulated",
        source="the weights' card: generation.acquisition.max_spacing_mm, and its jitter",
        find=thick,
    ),
    Check(
        code="coarse-voxels",
        severity="caution",
        limit=1.05,
        unit="of what training simulated",
        source="the weights' card: generation.acquisition.max_isotropic_mm, and its jitter",
        find=coarse,
    ),
    Check(
        code="csf-share",
        severity="caution",
        limit=0.55,
        unit="brain / intracranial volume",
        source="measured: 20 label maps with CSF at least 0.61",
        find=csf,
        unless=_FAILED,
    ),
    Check(
        code="asymmetry",
        severity="caution",
        limit=0.25,
        unit="of the sum of both sides, (left - right) / (left + right)",
        source="measured: at most 0.14 in scans without a lesion",
        find=asymmetric,
        unless=_FAILED,
    ),
    Check(
        code="bright-rim",
        severity="caution",
        limit=0.1,
        unit="of the image's range",
        source="air and masks are dark in every modality that the networks were trained for",
        find=bright_rim,
        unless=("label-map", "noise"),
    ),
    Check(
        code="low-contrast",
        severity="caution",
        limit=0.5,
        unit="standard deviations",
        source="measured: scans at least 0.9",
        find=low_contrast,
        unless=_FAILED,
    ),
)
