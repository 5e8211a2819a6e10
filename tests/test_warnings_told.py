"""Where warnings are told: screen, record, tables, cohort, BIDS, pages. They never fail a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cohort_run_helpers import Runner, Script, make_jobs, run_script
from inference_helpers import COARSE, band_model, phantom, phantom_affine, run_scans, save_scan
from outputs_helpers import GOOD, cortex_model, quality_model, save_cortex_weights
from report_helpers import write_result
from synthseg.errors import UsageError
from synthseg.inference import Segmenter
from synthseg.inference.age import Age
from synthseg.inference.record import recorded_warnings
from synthseg.inference.scan_warnings import RESEARCH_USE, ScanWarning
from synthseg.inference.segmenter import NO_QUALITY
from synthseg.report.cohort_page import outliers_first, row_of
from synthseg.report.findings import find_results
from synthseg.report.folder import ReportOptions, write_folder_report
from synthseg.report.identity import identify
from synthseg.report.standing import Cohort

__all__ = ["run_script"]  # a fixture
Command = Callable[..., tuple[int, str, str]]
CUT = ScanWarning("brain-cut", "serious", "the brain is cut off at the top")
THICK = ScanWarning("thick-slices", "caution", "slices are 12 mm apart <b>")


def cut_scan(path: Path) -> Path:
    """The phantom without its upper half: some 20 cm2 of it touch the top."""
    return save_scan(path, np.ascontiguousarray(noisy()[:, :, :16]), phantom_affine(COARSE))


def whole_scan(path: Path) -> Path:
    return save_scan(path, noisy(), phantom_affine(COARSE))


def noisy() -> np.ndarray:
    """The phantom at 2 mm with a little noise inside: without, it would be a label map."""
    data = phantom(spacing_mm=COARSE)
    noise = np.random.default_rng(0).normal(0, 5, data.shape).astype(np.float32)
    return np.where(data > 0, data + noise, 0).astype(np.float32)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(cortex_model(), "fast")


def test_a_warned_scan_is_done_and_its_warnings_are_in_outcome_record_and_table(
    tmp_path: Path, segmenter: Segmenter
) -> None:
    scans = [cut_scan(tmp_path / "cut.nii.gz"), whole_scan(tmp_path / "whole.nii.gz")]
    result = run_scans(segmenter, scans, tmp_path / "out", warnings_table=tmp_path / "w.csv")
    assert [outcome.status for outcome in result.outcomes] == ["done", "done"]
    cut, whole = result.outcomes
    assert [warning.code for warning in cut.warnings] == ["brain-cut"]
    assert "the top" in cut.warnings[0].message
    assert whole.warnings == ()
    assert result.warned == (cut,)
    record = json.loads(cut.job.files["record"].read_text())
    assert recorded_warnings(record) == cut.warnings
    assert record["use"] == RESEARCH_USE
    rows = list(csv.DictReader((tmp_path / "w.csv").open(newline="")))
    assert [(row["subject"], row["warned"], row["warnings"]) for row in rows] == [
        ("cut", "serious", "brain-cut"),
        ("whole", "none", ""),
    ]
    assert rows[0]["sentences"] == cut.warnings[0].message


def test_finished_scans_keep_their_warnings(tmp_path: Path, segmenter: Segmenter) -> None:
    scan = cut_scan(tmp_path / "cut.nii.gz")
    first = run_scans(segmenter, [scan], tmp_path / "out", warnings_table=tmp_path / "w.tsv")
    again = run_scans(segmenter, [scan], tmp_path / "out", warnings_table=tmp_path / "again.tsv")
    assert again.outcomes[0].status == "skipped"
    assert again.outcomes[0].warnings == first.outcomes[0].warnings
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "w.tsv").read_bytes()


def test_the_other_tables_are_as_without_warnings(tmp_path: Path, segmenter: Segmenter) -> None:
    scan = cut_scan(tmp_path / "cut.nii.gz")
    for name in ("with", "without"):
        tables = {"warnings_table": tmp_path / "w.csv"} if name == "with" else {}
        run_scans(segmenter, [scan], tmp_path / name, table=tmp_path / f"{name}.csv", **tables)
    assert (tmp_path / "with.csv").read_bytes() == (tmp_path / "without.csv").read_bytes()
    with pytest.raises(UsageError, match="volumes and of warnings"):
        run_scans(segmenter, [scan], tmp_path / "o", table=tmp_path / "x.csv", warnings_table=tmp_path / "x.csv")


def test_children_are_warned_of_where_the_age_is_known(tmp_path: Path, segmenter: Segmenter) -> None:
    scan = whole_scan(tmp_path / "scan.nii.gz")
    outcome = run_scans(segmenter, [scan], tmp_path / "out", age_of=lambda _: Age(9.0, "participants.tsv")).outcomes[0]
    assert [warning.code for warning in outcome.warnings] == ["child"]


@pytest.mark.parametrize("damage", ["text", [1], [{"code": "x"}], [{"code": "x", "severity": "huge", "message": "y"}]])
def test_damaged_warnings_in_a_record_are_refused(damage: object) -> None:
    with pytest.raises(ValueError, match="warnings"):
        recorded_warnings({"warnings": damage})


def test_a_record_from_before_there_were_warnings_has_none() -> None:
    assert recorded_warnings({}) == ()


# -- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cortex_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def test_the_command_tells_warnings_and_ends_with_0(tmp_path: Path, command: Command, weights: Path) -> None:
    scan, volumes = cut_scan(tmp_path / "cut.nii.gz"), tmp_path / "v.csv"
    options = ("--weights", weights, "--fast", "--no-qc", "--volumes", volumes)
    code, out, _ = command("segment", scan, "-o", tmp_path / "out", *options)
    assert code == 0
    assert "warning: [" in out
    with (tmp_path / "v_warnings.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["subject"] == "cut"
    assert row["warnings"]
    again = command("segment", scan, "-o", tmp_path / "out", *options)
    assert again[0] == 0
    assert "warning: [" in again[1]  # a skipped scan's result is still to be looked at


def test_quality_is_predicted_unless_left_out(tmp_path: Path, command: Command, weights: Path) -> None:
    scan = whole_scan(tmp_path / "scan.nii.gz")
    options = ("--weights", weights, "--fast")
    assert "quality: " in command("segment", scan, "-o", tmp_path / "a", *options)[1]
    assert "quality: " not in command("segment", scan, "-o", tmp_path / "b", *options, "--no-qc")[1]
    code, _, err = command("segment", scan, "-o", tmp_path / "c", *options, "--no-qc", "--qc", tmp_path / "q.csv")
    assert code == 2
    assert "--no-qc" in err


def test_weights_without_a_quality_network_go_without_and_say_so(tmp_path: Path) -> None:
    scan = whole_scan(tmp_path / "scan.nii.gz")
    outcome = run_scans(Segmenter(band_model(), "fast", quality=None), [scan], tmp_path / "out").outcomes[0]
    assert outcome.quality is None
    assert NO_QUALITY in outcome.notes
    silent = run_scans(Segmenter(band_model(), "fast"), [scan], tmp_path / "off").outcomes[0]
    assert NO_QUALITY not in silent.notes


def test_help_and_version_say_what_this_is_not_for(command: Command) -> None:
    assert RESEARCH_USE in " ".join(command("--help")[1].split())
    assert RESEARCH_USE in command("--version")[1]


# -- cohorts and pages


def test_the_cohorts_table_has_a_column_of_codes(tmp_path: Path, run_script: Runner) -> None:
    table = run_script(make_jobs(tmp_path, 1), tmp_path / "out", Script({})).table
    from synthseg.cohort.ledger import Ledger
    from synthseg.cohort.tables import tabulate

    with Ledger(tmp_path / "out") as ledger:
        row = next(iter(ledger.rows()))
    assert "warnings" not in table.tsv.read_text()  # of a record from before there were any
    row.result["warnings"] = [vars(CUT), vars(THICK)]
    columns, cells = tabulate([row], {})
    assert cells[0][list(columns).index("warnings")] == "brain-cut thick-slices"
    row.result["warnings"] = []
    columns, cells = tabulate([row], {})
    assert cells[0][list(columns).index("warnings")] == "none"


def test_pages_tell_warnings_and_put_serious_ones_first(tmp_path: Path) -> None:
    write_result(tmp_path, "a")
    write_result(tmp_path, "b", warnings=[vars(THICK)])
    write_result(tmp_path, "c", warnings=[vars(CUT), vars(THICK)])
    findings = find_results(tmp_path)
    cohort = Cohort([finding.volumes_mm3 for finding in findings])
    rows = [row_of(f, identify(f.scan, f.sha256, i, "files", set()), cohort) for i, f in enumerate(findings)]
    assert [row.finding.scan.name for row in outliers_first(rows)] == ["c.nii.gz", "b.nii.gz", "a.nii.gz"]
    made = write_folder_report(tmp_path, tmp_path / "pages", ReportOptions())
    texts = [page.read_text(encoding="utf-8") for page in made.pages]
    told = [text for text in texts if "serious warning [brain-cut]: the brain is cut off at the top" in text]
    assert len(told) == 1
    assert "12 mm apart &lt;b&gt;" in told[0]  # escaped
    assert "not a medical device" in told[0]


def test_quality_scores_are_not_changed_by_warnings(tmp_path: Path) -> None:
    scan = cut_scan(tmp_path / "cut.nii.gz")
    scored = Segmenter(cortex_model(), "fast", quality=quality_model(*GOOD))
    outcome = run_scans(scored, [scan], tmp_path / "out").outcomes[0]
    assert outcome.quality is not None
    assert outcome.quality.verdict == "pass"  # and yet there is a warning: the network did not see what is not there
    assert outcome.warnings
