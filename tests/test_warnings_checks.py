"""Every check: silent on an ordinary head, heard on the one odd thing it is for; what its sentence says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared_dir
from synthseg.inference.age import Age, age_warnings
from synthseg.inference.configuration import Fit
from synthseg.inference.scan_checks import CHECKS, is_adult_brain, warnings_of
from synthseg.inference.scan_findings import Evidence, tissue_contrast
from synthseg.inference.structures import channels_of
from synthseg.labels import load_protocol
from warnings_helpers import BRAIN, TOUCHING, ordinary, with_brain, with_image, with_volumes

GREY = dict.fromkeys(BRAIN.brightness, (0.5, 0.2))
ODD = {
    "label-map": with_image(flatness=0.9, distinct=34),
    "noise": with_image(roughness=0.98),
    "ct-not-clipped": replace(with_image(hounsfield=True, lowest=-1024.0), ct=False),
    "not-ct": replace(with_image(lowest=0.0, high=1500.0), ct=True),
    "no-brain": replace(ordinary(), total_mm3=120_000.0),
    "misplaced": replace(ordinary(), fit=Fit(100.0, 0.7)),
    "turned": replace(ordinary(), fit=Fit(60.0, 0.1)),
    "brain-cut": with_brain(touching_mm2={**TOUCHING, "top": 4200.0}),
    "small-brain": replace(ordinary(), total_mm3=600_000.0, volumes_mm3={24: 60_000.0}),
    "large-brain": replace(ordinary(), total_mm3=3_000_000.0),
    "thick-slices": with_image(spacing_mm=(1.0, 12.0, 1.0)),
    "coarse-voxels": with_image(spacing_mm=(5.0, 5.0, 5.0)),
    "csf-share": with_volumes({24: 2_000_000.0 / 2}),
    "asymmetry": with_volumes({17: 20_000.0}),
    "bright-rim": with_brain(rim=1.1),
    "low-contrast": with_brain(brightness=GREY),
}


def codes(evidence: Evidence) -> list[str]:
    return [warning.code for warning in warnings_of(evidence)]


def test_there_is_no_warning_on_an_ordinary_head() -> None:
    assert warnings_of(ordinary()) == ()


def test_every_check_is_tried() -> None:
    assert set(ODD) == {check.code for check in CHECKS}


@pytest.mark.parametrize("code", ODD)
def test_each_check_finds_what_it_is_for_and_nothing_else_does(code: str) -> None:
    found = warnings_of(ODD[code])
    assert [warning.code for warning in found] == [code]
    assert re.search(r"\d|--no-ct|brighter", found[0].message)  # a number, or what to leave out
    assert found[0].severity == next(check.severity for check in CHECKS if check.code == code)
    assert "\n" not in found[0].message


def test_codes_are_short_and_each_check_says_where_its_threshold_is_from() -> None:
    assert len({check.code for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", check.code)
        assert len(check.source) > 20
        assert set(check.unless) <= {other.code for other in CHECKS}


def test_serious_warnings_come_first() -> None:
    both = replace(ODD["brain-cut"], image=replace(ODD["brain-cut"].image, spacing_mm=(1.0, 1.0, 12.0)))
    assert codes(both) == ["brain-cut", "thick-slices"]
    assert codes(replace(both, fit=Fit(90.0, 0.9)))[:2] == ["misplaced", "brain-cut"]


def test_what_follows_from_a_failure_is_not_told_as_well() -> None:
    failed = replace(ODD["asymmetry"], fit=Fit(100.0, 0.9))
    assert codes(failed) == ["misplaced"]
    nothing = replace(ODD["brain-cut"], total_mm3=50_000.0, fit=Fit(100.0, 0.9))
    assert codes(nothing) == ["no-brain", "brain-cut"]
    assert "only a part of the brain seems to be in the field of view" in warnings_of(nothing)[0].message
    slab = replace(ODD["brain-cut"], fit=Fit(100.0, 0.9))
    assert codes(slab) == ["misplaced", "brain-cut"]
    assert "too little of the brain may be in the field of view" in warnings_of(slab)[0].message
    assert "mend its header" in warnings_of(failed)[0].message


def test_a_sentence_names_the_side_the_area_and_what_follows() -> None:
    message = warnings_of(with_brain(touching_mm2={**TOUCHING, "top": 4200.0, "left": 1600.0}))[0].message
    assert "cut off at the left and the top" in message
    assert "42 cm2 at the top" in message
    assert "volumes are too small" in message


def test_networks_of_other_organs_are_not_judged_by_adult_brains() -> None:
    for code in ("no-brain", "misplaced", "turned", "small-brain", "large-brain", "csf-share", "asymmetry"):
        assert codes(replace(ODD[code], adult=False)) == []
    assert codes(replace(ODD["brain-cut"], adult=False)) == ["brain-cut"]
    assert is_adult_brain(set(load_protocol("synthseg-2.0").values))
    assert not is_adult_brain(set(channels_of(load_protocol("feta")).values.tolist()))


def test_weights_that_do_not_say_what_they_were_trained_on_have_no_limit_of_spacing() -> None:
    assert codes(replace(ODD["thick-slices"], trained_mm=None)) == []
    assert codes(replace(ODD["thick-slices"], trained_mm=(12.0, 4.0))) == []


def test_ct_that_is_clipped_or_recognised_is_no_reason_to_warn() -> None:
    ct = with_image(hounsfield=True, lowest=-1024.0, high=1500.0)
    assert codes(ct) == []
    assert codes(replace(ct, ct=True)) == []
    stripped = with_image(lowest=0.0, high=70.0)
    assert codes(replace(stripped, ct=True)) == []


@given(scale=st.floats(0.01, 100), offset=st.floats(-5, 5))
def test_contrast_does_not_depend_on_units(scale: float, offset: float) -> None:
    changed = {value: (offset + scale * mean, scale * sd) for value, (mean, sd) in BRAIN.brightness.items()}
    assert tissue_contrast(replace(BRAIN, brightness=changed)) == pytest.approx(tissue_contrast(BRAIN), rel=1e-6)


def test_contrast_needs_two_tissues() -> None:
    assert tissue_contrast(replace(BRAIN, brightness={2: (0.5, 0.1)})) is None


@pytest.mark.parametrize(
    ("years", "codes_"),
    [(0.1, ["infant"]), (1.99, ["infant"]), (2, ["child"]), (17.9, ["child"]), (18, []), (89, [])],
)
def test_children_and_infants_are_warned_of(years: float, codes_: list[str]) -> None:
    assert [warning.code for warning in age_warnings(Age(years, "participants.tsv"))] == codes_


def test_an_age_is_told_in_the_unit_that_fits_and_an_unknown_one_not_at_all() -> None:
    assert "of 1 month (scan.json)" in age_warnings(Age(1 / 12, "scan.json"))[0].message
    assert "9 years (participants.tsv)" in age_warnings(Age(9.0, "participants.tsv"))[0].message
    assert age_warnings(None) == ()


def test_the_page_on_warnings_lists_every_code() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "warnings.md").read_text(encoding="utf-8")
    for code in (*(check.code for check in CHECKS), "child", "infant"):
        assert f"`{code}`" in page


@pytest.mark.skipif(shared_dir() is None, reason="no real data")
def test_label_maps_of_adults_are_in_the_configuration(shared) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    from synthseg.inference.configuration import CENTRES, fit_centres
    from synthseg.volumes import read_volume, to_ras

    for name in ("oasis/oasis_1000_aseg.nii.gz", "t1/fsdemo_aseg.nii.gz", "mni/mni152lin_2mm_aseg.nii.gz"):
        labels, _ = to_ras(read_volume(shared / "data" / "validation" / name, labels=True))
        centres = {}
        for value in CENTRES:
            voxels = np.argwhere(labels.data == value)
            x, y, z = labels.affine[:3, :3] @ voxels.mean(axis=0) + labels.affine[:3, 3]
            centres[value] = (float(x), float(y), float(z))
        fit = fit_centres(centres)
        assert fit is not None
        assert fit.misfit < 0.15
        assert fit.turned_deg < 30
