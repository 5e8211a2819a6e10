"""Predicted quality in tables, records and messages; cortical parcels in everything that is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import coarse_scan, run_scans
from outputs_helpers import GOOD, GROUPS, cortex_model, parcels_model, quality_model
from synthseg.errors import UsageError
from synthseg.inference import Outputs, Segmenter, record
from synthseg.labels import load_protocol

LOW = (0.91, 0.82, 0.93, 0.64996, 0.95, 0.96, 0.97, 0.7)


def scored(*scores: float) -> Segmenter:
    return Segmenter(cortex_model(), "fast", quality=quality_model(*scores))


@pytest.fixture(scope="module")
def parcelled() -> Segmenter:
    return Segmenter(cortex_model(), "fast", parcels=parcels_model())


# -- quality


def test_scores_and_verdicts_reach_the_tables(tmp_path):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    for suffix in ("csv", "tsv"):
        run_scans(scored(*LOW), [scan], tmp_path / suffix, quality_table=tmp_path / f"q.{suffix}")
    row = next(csv.DictReader((tmp_path / "q.csv").open(newline="")))
    assert list(row) == ["subject", *GROUPS, "verdict"]
    assert list(row.values()) == ["a", *(f"{score:.4f}" for score in LOW), "fail"]
    tidy = list(csv.DictReader((tmp_path / "q.tsv").open(newline=""), delimiter="\t"))
    assert [line["group"] for line in tidy] == [*GROUPS, "overall"]
    assert [line["verdict"] for line in tidy] == [*["pass"] * 3, "fail", *["pass"] * 3, "warn", "fail"]
    assert tidy[-1]["predicted_dice"] == "0.6500"  # the lowest; below the threshold, for all that it is rounded to


def test_the_record_holds_scores_verdicts_thresholds_and_the_sentence(tmp_path):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outcome = run_scans(scored(*LOW), [scan], tmp_path / "out").outcomes[0]
    assert outcome.status == "done"  # poor quality is no failure
    kept = json.loads((tmp_path / "out" / "a_synthseg.json").read_text())
    assert kept["quality"]["verdict"] == "fail"
    assert kept["quality"]["thresholds"] == {"fail_below": 0.65, "warn_below": 0.75}
    assert list(kept["quality"]["scores"]) == list(GROUPS)
    assert kept["quality"]["verdicts"]["cerebellum"] == "fail"
    assert kept["quality"]["sentence"] == outcome.quality.sentence
    assert "cerebellum (0.65, limit 0.65)" in outcome.quality.sentence
    assert record.recorded_quality(kept) == outcome.quality
    weights = kept["settings"]["weights"]
    assert list(weights) == ["structures", "quality"]
    assert weights["quality"]["protocol"] == "quality-groups"


def test_finished_scans_get_their_rows_and_verdicts_from_the_record(tmp_path):
    scans = [coarse_scan(tmp_path / f"{name}.nii.gz") for name in "ab"]
    first = run_scans(scored(*LOW), scans, tmp_path / "out", quality_table=tmp_path / "q.csv")
    again = run_scans(scored(*LOW), scans, tmp_path / "out", quality_table=tmp_path / "again.csv")
    assert [outcome.status for outcome in again.outcomes] == ["skipped", "skipped"]
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()
    assert again.with_verdict("fail") == again.outcomes
    assert [outcome.quality for outcome in again.outcomes] == [outcome.quality for outcome in first.outcomes]
    assert again.with_verdict("pass") == ()


def test_a_scan_is_done_again_when_quality_or_parcels_were_not_asked_for_before(tmp_path, parcelled):
    scan, out = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out"

    def status(segmenter: Segmenter) -> str:
        return run_scans(segmenter, [scan], out).outcomes[0].status

    plain = Segmenter(parcelled.model, "fast")
    assert status(plain) == "done"
    assert status(scored()) == "done"
    assert status(scored()) == "skipped"
    assert status(parcelled) == "done"
    assert status(parcelled) == "skipped"
    assert status(plain) == "done"


@pytest.mark.parametrize("damage", [[], {"scores": {}}, {"scores": [], "thresholds": {}}, None])
def test_a_record_with_damaged_quality_means_that_the_scan_is_done_again(tmp_path, damage):
    scan, path = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out" / "a_synthseg.json"
    run_scans(scored(), [scan], tmp_path / "out")
    path.write_text(json.dumps({**json.loads(path.read_text()), "quality": damage}))
    assert run_scans(scored(), [scan], tmp_path / "out").outcomes[0].status == "done"


def test_a_quality_table_without_a_network_for_it_is_refused(tmp_path, parcelled):
    with pytest.raises(UsageError, match=r"q.csv: found a segmenter that predicts no quality"):
        run_scans(parcelled, [tmp_path / "lost.nii"], tmp_path / "out", quality_table=tmp_path / "q.csv")


@pytest.mark.parametrize("spelling", ["t.csv", "o/../t.csv", "link/t.csv", "relative"])
def test_two_tables_in_one_file_are_refused_however_they_are_spelled(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    quality = Path("t.csv") if spelling == "relative" else tmp_path / spelling
    with pytest.raises(UsageError, match=r"t.csv: found one file for the tables of volumes and of quality"):
        run_scans(scored(), [tmp_path / "lost.nii"], tmp_path / "o", table=tmp_path / "t.csv", quality_table=quality)
    assert not (tmp_path / "t.csv").exists()


def test_both_tables_are_kept_when_one_becomes_something_else_meanwhile(tmp_path):
    scan, volumes, quality = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "v.csv", tmp_path / "q.csv"

    def replaced(job):  # noqa: ARG001
        volumes.write_text("subject,heart\r\nx,1\r\n")

    result = run_scans(scored(*GOOD), [scan], tmp_path / "out", table=volumes, quality_table=quality, starting=replaced)
    assert "v.csv: found an existing table with other columns" in str(result.table_error)
    assert quality.read_text().splitlines()[1].startswith("a,")


# -- parcels


def test_parcels_are_columns_after_the_structures(tmp_path, parcelled):
    names = [label.name for label in load_protocol("desikan-killiany").labels[1:]]
    table = tmp_path / "v.csv"
    run_scans(parcelled, [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out", table=table)
    row = next(csv.DictReader(table.open(newline="")))
    structures = list(row)[1 : -len(names)]
    assert structures[:2] == ["total intracranial", "left cerebral cortex"]
    assert list(row)[-len(names) :] == names
    for side, cortex in (("lh", "left cerebral cortex"), ("rh", "right cerebral cortex")):
        parts = sum(float(row[name]) for name in names if name.startswith(f"ctx-{side}-"))
        assert parts == pytest.approx(float(row[cortex]), abs=0.1)
    assert float(row["total intracranial"]) == pytest.approx(sum(float(row[name]) for name in structures[1:]), abs=0.1)


def test_parcels_have_freesurfers_values_and_colours_and_leave_the_mask_alone(tmp_path, parcelled):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outputs = Outputs(mask=True, color_table=True, posteriors=True)
    for name, segmenter in (("with", parcelled), ("without", Segmenter(parcelled.model, "fast"))):
        assert not run_scans(segmenter, [scan], tmp_path / name, outputs).failed
    labels, mask, plain_labels, plain_mask = (
        np.asarray(nib.load(tmp_path / name / f"a_synthseg{end}.nii.gz").dataobj)
        for name in ("with", "without")
        for end in ("", "_mask")
    )
    np.testing.assert_array_equal(mask, plain_mask)
    cortex = np.isin(plain_labels, (3, 42))
    assert set(np.unique(labels[cortex])) <= {1001, 1002, 1003, 1005, 2001, 2002, 2003, 2005}
    np.testing.assert_array_equal(labels[~cortex], plain_labels[~cortex])
    table = [line.split() for line in (tmp_path / "with" / "a_synthseg_colors.txt").read_text().splitlines()[1:]]
    assert ["1005", "ctx-lh-cuneus", "220", "20", "100", "0"] in table
    channels = json.loads((tmp_path / "with" / "a_synthseg_posteriors.json").read_text())["channels"]
    assert [channel["value"] for channel in channels] == [0, 3, 16, 17, 24, 42, 53]  # the parcels have none
    assert nib.load(tmp_path / "with" / "a_synthseg_posteriors.nii.gz").shape[-1] == 7


def test_parcels_have_error_bars_too(tmp_path, parcelled):
    outcome = run_scans(parcelled, [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out", Outputs(repeat=2)).outcomes[
        0
    ]
    assert list(outcome.intervals_mm3) == list(outcome.volumes_mm3)
    for side in ("lh", "rh"):  # a mirrored copy's parcels change sides, or the spread would be that between the sides
        spread = outcome.intervals_mm3[f"ctx-{side}-bankssts"]
        assert 0 < spread.sd < 0.1 * spread.mean
    assert outcome.intervals_mm3["ctx-lh-insula"].high < 1e-3  # nowhere


def test_the_picture_has_the_parcels_colours(tmp_path, parcelled):
    image = pytest.importorskip("matplotlib.image")
    from synthseg.report.overlay import OPACITY, draw_overlay, write_overlay
    from synthseg.volumes import Volume

    segmentation = parcelled.segment(coarse_scan(tmp_path / "a.nii.gz"))
    black = Volume(np.zeros(segmentation.labels.shape, np.float32), segmentation.labels.affine)
    figure = draw_overlay(black, segmentation.labels, segmentation.structures)
    pixels = np.concatenate([axis.images[0].get_array().reshape(-1, 3) for axis in figure.axes[3:]])
    drawn = {tuple(color) for color in np.rint(pixels / OPACITY * 255).astype(int).tolist()}
    expected = {structure.value: structure.color for structure in segmentation.structures}
    assert drawn <= set(expected.values())
    assert len({expected[value] for value in (1001, 1002, 1003, 1005)} & drawn) > 2
    assert {expected[3], expected[42]}.isdisjoint(drawn)
    assert image.imread(write_overlay(black, segmentation.labels, segmentation.structures, tmp_path / "o.png")).any()
