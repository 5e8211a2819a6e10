"""Pages of odd results: names that are numbers or no Unicode, damaged records, heads without labels, decisions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import pytest

from report_helpers import element, write_result
from synthseg.report.folder import ReportOptions, write_folder_report
from synthseg.report.identity import identify


def test_short_and_numeric_names_leave_settings_as_they_are_and_folders_stay_hidden(tmp_path: Path) -> None:
    one = identify(Path("/x/1.nii.gz"), "ab" * 32, 1, "hidden", set())
    assert one.scrub("percentiles 1.0 to 99.0, 1 of 2") == "percentiles 1.0 to 99.0, 1 of 2"
    number = identify(Path("/x/123.nii.gz"), "ab" * 32, 1, "hidden", set())
    assert number.scrub("0.123 and 123.5, but 123.") == f"0.123 and 123.5, but {number.id}."
    away = identify(Path("/a/b.nii"), "ab" * 32, 1, "hidden", set(), results=tmp_path / "Doe Jane" / "x.nii.gz")
    assert away.scrub(f"{tmp_path / 'Doe Jane' / 'y.nii.gz'}: damaged") == f"{away.id}/y.nii.gz: damaged"


@pytest.mark.parametrize(
    "damage",
    [
        {"settings": {"weights": [1], "inference": [2]}},
        {"settings": {"weights": {"structures": 3}}},
        {"timings_s": {"network": "long"}, "notes": "text", "versions": {}, "files": [1]},
        {"quality": {"scores": {}, "thresholds": {"fail_below": 0.6, "warn_below": 0.7}}},
        {"volumes_mm3": {"left hippocampus": float("nan")}},
        {"warnings": [{"code": "new", "severity": "info", "message": "of a later version"}]},
        {"warnings": 7},
        {"input": {"path": "s.nii.gz", "sha256": 5}},
    ],
)
def test_a_damaged_record_has_a_page_all_the_same(tmp_path: Path, damage: dict[str, object]) -> None:
    write_result(tmp_path, "s", **damage)
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    assert len(report.pages) == 1
    assert report.cohort_page is not None
    assert "NaN" not in element(report.cohort_page.read_text(), "page-data")


def test_a_name_that_is_no_unicode_is_shown_with_question_marks(tmp_path: Path) -> None:
    write_result(tmp_path, os.fsdecode(b"caf\xe9"))
    for naming in ("files", "hidden"):
        report = write_folder_report(tmp_path, tmp_path / naming, ReportOptions(naming=naming))  # type: ignore[arg-type]
        assert report.pages[0].is_file()
    assert "caf?" in (tmp_path / "report-ids.tsv").read_text()


def test_a_head_without_any_label_is_not_shown_unless_asked_for(tmp_path: Path) -> None:
    write_result(tmp_path, "s")
    empty = nib.load(tmp_path / "s_synthseg.nii.gz")
    nib.save(nib.Nifti1Image(0 * empty.get_fdata(), empty.affine), tmp_path / "s_synthseg.nii.gz")  # type: ignore[attr-defined]
    (page,) = write_folder_report(tmp_path, tmp_path / "a", ReportOptions()).pages
    assert 'id="scan-file"' not in page.read_text()
    (page,) = write_folder_report(tmp_path, tmp_path / "b", ReportOptions(whole_head=True)).pages
    assert 'id="scan-file"' in page.read_text()


def test_decisions_of_a_scan_are_kept_when_others_are_added_but_not_when_it_is_done_again(tmp_path: Path) -> None:
    def keys() -> dict[str, str]:
        page = write_folder_report(tmp_path, tmp_path / "report", ReportOptions(naming="files")).cohort_page
        assert page is not None
        return json.loads(element(page.read_text(), "page-data"))["keys"]

    write_result(tmp_path, "s")
    before = keys()
    write_result(tmp_path, "other", seed=1)
    assert keys()["s"] == before["s"] != keys()["other"]
    write_result(tmp_path, "s", created="2026-02-02T03:04:05+00:00")
    assert keys()["s"] != before["s"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"input": {"path": "a\\u0000b"}, "error": {"message": "no"}}'])
def test_a_damaged_failure_ends_no_report(tmp_path: Path, text: str) -> None:
    write_result(tmp_path, "s")
    (tmp_path / "x_synthseg_failed.json").write_text(text)
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    assert len(report.pages) >= 1


def test_pages_without_names_hold_no_label_of_a_bids_subject() -> None:
    scan = Path("/data/sub-DoeJohn/ses-late/anat/T1w.nii.gz")
    away = identify(scan, "ab" * 32, 1, "hidden", set())
    assert away.scrub("a child of 9 years (sub-DoeJohn_sessions.tsv)") == f"a child of 9 years ({away.id}_sessions.tsv)"
