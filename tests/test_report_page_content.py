"""What pages hold of a scan: the right voxels, the right numbers."""

from __future__ import annotations

import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.stats import percentileofscore

from report_helpers import (
    AFFINE,
    STRUCTURES,
    element,
    embedded_volume,
    make_labels,
    make_scan,
    quality,
    write_failure,
    write_result,
)
from synthseg.report.embed import MARGIN_MM, embed, prepare, within
from synthseg.report.findings import finding_of, structures_of
from synthseg.report.folder import ReportOptions, write_folder_report
from synthseg.report.standing import Cohort
from synthseg.volumes import Volume, write_volume

# --- what is embedded


def test_embedded_voxels_are_at_the_millimetres_where_the_scan_has_them(tmp_path: Path) -> None:
    write_result(tmp_path, "one")
    write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    page = next(p for p in (tmp_path / "report").glob("scan-*.html")).read_text()
    labels, scan = embedded_volume(page, "labels-file"), embedded_volume(page, "scan-file")
    np.testing.assert_array_equal(labels.affine, scan.affine)
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    names = json.loads(element(page, "page-data"))["names"]
    truth = make_labels().data
    shown = np.asarray(labels.dataobj)
    places = np.argwhere(shown)
    assert len(places) == np.count_nonzero(truth)
    where = np.rint(nib.affines.apply_affine(np.linalg.inv(AFFINE) @ labels.affine, places)).astype(int)
    values = {name: value for value, name in STRUCTURES.items()}
    assert [values[names[i - 1]] for i in shown[tuple(places.T)]] == truth[tuple(where.T)].tolist()
    # Intensities: an affine function of the scan's, up to rounding and what saturates.
    grey, original = np.asarray(scan.dataobj)[tuple(places.T)].astype(float), make_scan().data[tuple(where.T)]
    inside = (grey > 0) & (grey < 255)
    assert inside.sum() > 0.9 * len(places)
    slope, offset = np.polyfit(original[inside], grey[inside], 1)
    assert slope > 0
    assert np.abs(slope * original[inside] + offset - grey[inside]).max() < 1


def test_what_is_far_from_the_brain_is_black_unless_the_whole_head_is_asked_for() -> None:
    scan, labels = make_scan(), make_labels()
    image, label_map, notes = prepare(scan, labels)
    assert image.data.max() < 900
    assert any("--whole-head" in note for note in notes)
    distance = distance_transform_edt(label_map.data == 0, sampling=label_map.spacing_mm)
    assert (image.data[distance > MARGIN_MM + 3 * 3**0.5] == scan.data.min()).all()
    assert image.data[distance < MARGIN_MM - 6].min() > 50
    whole, _, notes = prepare(scan, labels, whole_head=True)
    assert whole.data.max() == 900
    assert whole.data.shape == (20, 22, 24)
    assert not notes


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1.0, 1.0, 1.0), (0.7, 1.2, 4.0), (3.0, 0.5, 2.0)]))
def test_near_voxels_are_those_of_an_exact_distance_map_up_to_a_block(seed: int, spacing: tuple[float, ...]) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    mask = np.zeros((17, 13, 15), dtype=bool)
    mask[tuple(rng.integers(0, mask.shape, (3, 3)).T)] = True
    near = within(mask, np.array(spacing), 6.0)
    exact = distance_transform_edt(~mask, sampling=spacing)
    block = np.array(spacing) * [max(1, round(3 / mm)) for mm in spacing]
    slack = float(np.linalg.norm(block))
    assert near[exact <= 6.0 - slack].all()
    assert not near[exact > 6.0 + slack].any()


def test_a_scan_on_another_grid_is_shown_on_that_of_its_labels() -> None:
    fine = Volume(
        np.linspace(0, 1, 40 * 48 * 44, dtype=np.float32).reshape(40, 48, 44), AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    )
    image, label_map, notes = prepare(fine, make_labels())
    assert image.data.shape == label_map.data.shape
    assert any("grid of its labels" in note for note in notes)


def test_a_fine_scan_is_made_coarser_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthseg.report.embed.MOST_VOXELS", 1500)
    image, label_map, notes = prepare(make_scan(), make_labels())
    assert image.data.size <= 1500
    assert image.data.shape == label_map.data.shape
    assert set(np.unique(label_map.data)) <= {0, *STRUCTURES}
    assert any("voxels of" in note for note in notes)


def test_pictures_lie_over_each_other_and_show_the_labels_colours() -> None:
    image, labels, _ = prepare(make_scan(), make_labels())
    made = embed(image, labels, structures_of(np.unique(labels.data).tolist(), {}))
    assert {cut.plane for cut in made.slices} == {"sagittal", "coronal", "axial"}
    colors = {structure.color for structure in made.structures}
    for cut in made.slices:
        grey, over = (Image.open(io.BytesIO(png)) for png in (cut.grey_png, cut.labels_png))
        assert grey.size == over.size
        pixels = np.asarray(over.convert("RGBA")).reshape(-1, 4)
        assert {tuple(p[:3]) for p in pixels.tolist() if p[3]} <= colors
        assert (pixels[:, 3] == 0).any()
    axial = next(cut for cut in made.slices if cut.plane == "axial")
    rgba = np.asarray(Image.open(io.BytesIO(axial.labels_png)).convert("RGBA"))
    columns = {
        s.name: np.argwhere((rgba[..., :3] == s.color).all(-1) & (rgba[..., 3] > 0))[:, 1] for s in made.structures
    }
    # Left and right white matter share a colour in FreeSurfer's table; the cortex is on the left only.
    assert columns["left cerebral cortex"].max() < rgba.shape[1] / 2


def test_a_structures_centre_lies_within_it() -> None:
    image, labels, _ = prepare(make_scan(), make_labels())
    made = embed(image, labels, structures_of(np.unique(labels.data).tolist(), {}))
    for structure, centre in zip(made.structures, made.centres, strict=True):
        voxel = tuple((centre * labels.data.shape).astype(int))
        assert labels.data[voxel] == structure.value


# --- numbers


@given(st.lists(st.floats(1, 1e6), min_size=5, max_size=30), st.floats(0, 2e6))
def test_percentiles_are_scipys(volumes: list[float], value: float) -> None:
    cohort = Cohort([{"a": volume} for volume in volumes])
    standing = cohort.standing("a", {"a": value})
    assert standing.percentile == pytest.approx(percentileofscore(volumes, value, kind="mean"))


def test_deviations_are_modified_z_scores_of_shares() -> None:
    totals = np.array([1000.0, 1200, 900, 1500, 1100, 800])
    shares = np.array([0.10, 0.12, 0.11, 0.09, 0.10, 0.30])
    scans = [{"total intracranial": t, "a": t * s} for t, s in zip(totals, shares, strict=True)]
    cohort = Cohort(scans)
    median = np.median(shares)
    wanted = 0.6745 * (shares - median) / np.median(np.abs(shares - median))  # as Iglewicz and Hoaglin write it
    found = [cohort.standing("a", scan) for scan in scans]
    np.testing.assert_allclose([s.deviation for s in found], wanted, rtol=1e-4)
    assert [s.outlying for s in found] == [False] * 5 + [True]


def test_few_scans_or_equal_ones_have_no_deviations() -> None:
    assert Cohort([{"a": 1.0}] * 4).standing("a", {"a": 1.0}).percentile is None
    equal = Cohort([{"a": 1.0}] * 9).standing("a", {"a": 2.0})
    assert (equal.percentile, equal.deviation) == (100.0, None)


def test_failures_come_first_then_verdicts_then_deviations(tmp_path: Path) -> None:
    scores = {"pass": 0.9, "warn": 0.7, "fail": 0.5}
    for seed, verdict in enumerate(["pass", "pass", "warn", "pass", "fail", "pass"]):
        write_result(
            tmp_path,
            f"s{seed}",
            seed=seed,
            scale=3.0 if seed == 3 else 1.0 + seed / 50,
            quality=quality(scores[verdict]),
        )
    write_failure(tmp_path, "broken", "broken: found nothing. Fix: none")
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions(naming="files"))
    assert report.cohort_page is not None
    page = report.cohort_page.read_text()
    order = re.findall(r'data-id="([^"]+)"', page)
    assert order[:4] == ["broken", "s4", "s2", "s3"]
    assert "left hippocampus (+" in page
    assert "predicted Dice too low for cortex (0.50, limit 0.65)" in page
    scan = (tmp_path / "report" / "s3.html").read_text()
    row = re.search(r"<td>[^\n]*left hippocampus</td>.*?</tr>", scan, re.DOTALL)
    assert row is not None
    assert ">92 " in row[0]  # above five of six, and half of itself
    assert "52.53" in row[0]  # 17 ml * 1.03 * 3


def test_a_pair_without_a_record_has_its_voxels_counted(tmp_path: Path) -> None:
    scan = write_volume(make_scan(), tmp_path / "a.nii.gz")
    labels = write_volume(make_labels(), tmp_path / "b.nii.gz", dtype=np.int32)
    finding = finding_of(scan, labels)
    counts = {value: np.count_nonzero(make_labels().data == value) for value in STRUCTURES}
    by_name = {name: 8.0 * counts[value] for value, name in STRUCTURES.items()}
    assert finding.volumes_mm3 == pytest.approx({"total segmented": sum(by_name.values()), **by_name})


def test_a_record_of_another_scan_is_not_believed(tmp_path: Path) -> None:
    write_result(tmp_path, "one")
    other = write_volume(make_scan(seed=9), tmp_path / "other.nii.gz")
    labels = tmp_path / "one_synthseg.nii.gz"
    assert finding_of(tmp_path / "one.nii.gz", labels).record
    assert not finding_of(other, labels).record


def test_values_without_a_name_are_told_apart() -> None:
    found = structures_of([0, 17, 9001, 9002], {})
    assert [s.name for s in found] == ["left hippocampus", "label 9001", "label 9002"]
    assert found[1].color != found[2].color


def test_labels_beyond_a_palette_are_drawn_all_the_same() -> None:
    labels = make_labels()
    many = np.where(labels.data > 0, 1 + np.arange(labels.data.size).reshape(labels.data.shape) % 300, 0)
    labels = replace(labels, data=many.astype(np.int32))
    image, label_map, _ = prepare(make_scan(), labels)
    made = embed(image, label_map, structures_of(np.unique(many).tolist(), {}))
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(made.labels))
    values = np.array([0, *(s.value for s in made.structures)])
    np.testing.assert_array_equal(values[np.asarray(volume.dataobj)], label_map.data)
