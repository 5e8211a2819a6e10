"""Pages: no names, nothing from elsewhere, everything escaped, every failure told."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest

from report_helpers import (
    embedded_volume,
    make_scan,
    quality,
    text_of,
    write_failure,
    write_result,
)
from synthseg.cli.report import register
from synthseg.errors import UsageError
from synthseg.report.findings import find_results
from synthseg.report.folder import ReportOptions, write_folder_report, write_pair_report
from synthseg.report.html import NIIVUE, static_text
from synthseg.report.identity import identify
from synthseg.volumes import write_volume

NAME = "DOE_John_19560101"


@pytest.fixture
def report_command(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`synthseg report`, also where it is not among the commands yet."""
    import synthseg.cli

    build = synthseg.cli.build_app

    def with_report():  # type: ignore[no-untyped-def]
        app = build()
        if "report" not in {registered.name for registered in app.registered_commands}:
            register(app)
        return app

    monkeypatch.setattr(synthseg.cli, "build_app", with_report)
    return lambda *arguments: command("report", *arguments)


# --- who it is of


@pytest.mark.parametrize("naming", ["hidden", "bids"])
def test_no_name_is_on_any_page_and_the_key_is_not_beside_them(tmp_path: Path, naming: str) -> None:
    out = tmp_path / "results"
    private = tmp_path / "DOE^JOHN clinic"
    private.mkdir()
    out.mkdir()
    more = {"notes": [f"{private / NAME}.nii.gz: read from {private}/{NAME}.nii.gz", f"{NAME} has few slices"]}
    write_result(out, NAME, scans=private, quality=quality(0.6), **more)
    write_failure(
        out, "Mueller_4711", "/clinic/Mueller_4711.nii.gz: found no image. Fix: copy Mueller_4711.nii.gz again"
    )
    report = write_folder_report(out, tmp_path / "pages", ReportOptions(naming=naming))  # type: ignore[arg-type]
    for page in (tmp_path / "pages").iterdir():
        assert not re.search("DOE|John|1956|clinic|Mueller|4711", page.name + text_of(page.read_text()))
    assert {page.name for page in (tmp_path / "pages").iterdir()} == {
        p.name for p in (*report.pages, report.cohort_page)
    }  # type: ignore[union-attr]
    assert report.key is not None
    lines = list(csv.DictReader(report.key.open(), delimiter="\t"))
    assert {line["scan"] for line in lines} == {str(private / f"{NAME}.nii.gz"), "/clinic/Mueller_4711.nii.gz"}
    assert {f"{line['id']}.html" for line in lines} == {page.name for page in report.pages}


def test_an_embedded_header_carries_nothing_of_the_scans(tmp_path: Path) -> None:
    record = write_result(tmp_path, "one")
    image = nib.load(tmp_path / "one.nii.gz")
    image.header["descrip"] = b"DOE JOHN"
    image.header["db_name"] = b"Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE JOHN"))
    nib.save(image, tmp_path / "two.nii.gz")
    write_pair_report(
        tmp_path / "two.nii.gz", tmp_path / "one_synthseg.nii.gz", tmp_path / "page.html", ReportOptions()
    )
    header = embedded_volume((tmp_path / "page.html").read_text(), "scan-file")
    assert b"doe" not in header.to_bytes()[:600].lower()
    assert not header.header.extensions
    assert record.is_file()


@pytest.mark.parametrize(
    ("naming", "name", "wanted"),
    [
        ("hidden", "sub-01_T1w.nii.gz", "scan-0123456789"),
        ("bids", "sub-01_ses-02_acq-fast_T1w.nii.gz", "sub-01_ses-02_acq-fast_T1w"),
        ("bids", "Doe.nii.gz", "scan-0123456789"),
        ("files", "Doe.nii.gz", "Doe"),
    ],
)
def test_ids_show_what_was_asked_for(naming: str, name: str, wanted: str) -> None:
    identity = identify(Path("/x") / name, "0123456789abcdef", 7, naming, set())  # type: ignore[arg-type]
    assert identity.id == wanted


def test_scans_of_one_content_or_one_name_have_different_ids() -> None:
    taken: set[str] = {"index"}
    ids = [identify(Path(f"/{n}/Index.nii"), "ab" * 32, n, "hidden", taken).id for n in range(3)]
    ids += [identify(Path(f"/{n}/Index.nii"), None, n, "files", taken).id for n in range(2)]
    assert len({name.casefold() for name in ids} | {"index"}) == 6


def test_an_id_cannot_be_found_from_the_name() -> None:
    one, other = (identify(Path(f"/x/{name}.nii.gz"), "cd" * 32, 1, "hidden", set()) for name in ("Doe", "Roe"))
    assert one.id == other.id  # of the content alone


# --- pages


def test_all_that_comes_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    record = write_result(tmp_path, "one", notes=[evil], versions={"synthseg": evil})
    told = json.loads(record.read_text())
    told["volumes_mm3"][evil] = 5.0
    told["settings"]["weights"]["structures"]["name"] = evil
    told["quality"] = {"scores": {evil: 0.5}, "thresholds": {"fail_below": 0.65, "warn_below": 0.75}}
    record.write_text(json.dumps(told))
    write_failure(tmp_path, "two", evil)
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    for page in (*report.pages, report.cohort_page):
        assert page is not None
        text = page.read_text()
        assert "<img src=x" not in text
        assert "<script>alert" not in text


def test_the_policy_names_every_script_of_the_page_and_lets_nothing_in(tmp_path: Path) -> None:
    write_result(tmp_path, "one")
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    for page in (*report.pages, report.cohort_page):
        assert page is not None
        text = page.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
        assert policy is not None
        allowed = policy[1].replace("&#39;", "'")
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert len(scripts) == 1
        for script in scripts:
            total = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{total}'" in allowed
        assert "default-src 'none'" in allowed
        assert not re.search(r"https?:|\*|unsafe-eval|script-src[^;]*unsafe-inline", allowed)
        assert not re.search(r"""(?:src|href)="(?!data:|#)[a-z]+:""", text)


def test_the_viewer_is_the_file_whose_sum_is_written_beside_it() -> None:
    total = hashlib.sha256(static_text(NIIVUE).encode()).hexdigest()
    assert total in static_text("niivue-BUILD.md")
    assert "BSD 2-Clause" in static_text("niivue-LICENSES.txt")


def test_provenance_says_weights_settings_and_versions(tmp_path: Path) -> None:
    write_result(tmp_path, "one")
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions())
    text = report.pages[0].read_text()
    for told in (
        "ab" * 32,
        "tiny (2.0 mm",
        "flip on, percentiles 1.0 to 99.0, ct automatic",
        "synthseg 0.1.0",
        "network 1.2",
    ):
        assert told in text


def test_a_scan_that_is_gone_or_changed_has_a_page_that_says_so(tmp_path: Path) -> None:
    write_result(tmp_path, "gone")
    write_result(tmp_path, "other", seed=1)
    (tmp_path / "gone.nii.gz").unlink()
    write_volume(make_scan(seed=5), tmp_path / "other.nii.gz")
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions(naming="files"))
    why = dict(report.without_picture)
    assert "not where it was" in why["gone"]
    assert "not the one that was segmented" in why["other"]
    assert "not where it was" in (tmp_path / "report" / "gone.html").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    write_volume(make_scan(), moved / "gone.nii.gz")
    report = write_folder_report(tmp_path, tmp_path / "report", ReportOptions(naming="files", scans=moved))
    assert [name for name, _ in report.without_picture] == ["other"]


def test_records_of_a_bids_derivative_are_found(tmp_path: Path) -> None:
    flat, logs, anat = tmp_path / "flat", tmp_path / "out" / "logs" / "sub-01", tmp_path / "out" / "sub-01" / "anat"
    for folder in (flat, logs, anat):
        folder.mkdir(parents=True)
    record = write_result(flat, "sub-01_T1w", files={"labels": "sub-01_desc-synthseg_dseg.nii.gz"})
    record.rename(logs / "sub-01_desc-synthseg.json")
    (flat / "sub-01_T1w_synthseg.nii.gz").rename(anat / "sub-01_desc-synthseg_dseg.nii.gz")
    write_failure(logs, "sub-01_T2w", "no").rename(logs / "sub-01_desc-synthsegT2w_failed.json")
    (logs / "sub-01_desc-synthseg_channels.json").write_text("{}")
    report = write_folder_report(tmp_path / "out", tmp_path / "out" / "report", ReportOptions(naming="bids"))
    assert {page.name for page in report.pages} == {"sub-01_T1w.html", "sub-01_T2w.html"}
    assert not report.without_picture


def test_a_scan_that_failed_and_was_done_later_counts_once(tmp_path: Path) -> None:
    write_result(tmp_path, "one")
    write_failure(tmp_path, "one", "one: found nothing. Fix: none")
    assert [finding.verdict for finding in find_results(tmp_path)] == ["not scored"]


def test_pages_that_an_earlier_report_left_are_counted(
    tmp_path: Path, report_command: Callable[..., tuple[int, str, str]]
) -> None:
    write_result(tmp_path, "one")
    assert report_command(tmp_path, "--names", "files")[0] == 0
    code, out, _ = report_command(tmp_path)
    assert code == 0
    assert "older pages that are not part of this report are still there: 1" in out


# --- the command


def test_a_wrong_call_ends_in_a_sentence(tmp_path: Path, report_command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "empty").mkdir()
    write_result(tmp_path, "one")
    scan, labels = tmp_path / "one.nii.gz", tmp_path / "one_synthseg.nii.gz"
    calls = {
        (tmp_path / "empty",): "no records of results",
        (tmp_path / "nowhere",): "no such folder",
        (scan, labels, scan): "3 places",
        (scan, labels, "-o", tmp_path / "page.pdf"): "name it .html",
        (tmp_path, "--names", "all"): "hidden, bids, files",
        (tmp_path / "gone.nii.gz", labels): "no such file",
    }
    for arguments, told in calls.items():
        code, _, err = report_command(*arguments)
        assert code == 2
        assert told in err


def test_a_pair_becomes_one_page(tmp_path: Path, report_command: Callable[..., tuple[int, str, str]]) -> None:
    write_result(tmp_path, "one", quality=quality(0.7))
    page = tmp_path / "page.html"
    code, out, err = report_command(tmp_path / "one.nii.gz", tmp_path / "one_synthseg.nii.gz", "-o", page)
    assert (code, err) == (0, "")
    assert str(page) in out
    assert "quality: warn" in page.read_text()


def test_missing_tools_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UsageError, match=re.escape("synthseg[report]")):
        write_folder_report(tmp_path, tmp_path / "report", ReportOptions())


def test_volumes_are_compared_with_a_table_that_is_given(
    tmp_path: Path, report_command: Callable[..., tuple[int, str, str]]
) -> None:
    write_result(tmp_path, "one")
    table = tmp_path / "volumes.tsv"
    lines = [f"Doe{n}\t17\tleft hippocampus\t{1000 * n}" for n in range(10, 30)]
    table.write_text("\n".join(["subject\tvalue\tstructure\tvolume_mm3", *lines]))
    code, out, err = report_command(tmp_path, "--cohort", table)
    assert (code, err) == (0, "")
    assert "begin with" in out
    page = next((tmp_path / "report").glob("scan-*.html")).read_text()
    assert "among 20 scans of the table that was given" in page
    assert "Doe" not in text_of(page)
    assert re.search(
        r"left hippocampus</td>\s*<td class=\"number\">17\.00</td>\s*<td class=\"number\">38 ", page
    )  # 7.5 of 20
