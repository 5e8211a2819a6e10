"""The ledger of a cohort: scans of any name in it, and any byte of it changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from synthseg.cohort.ledger import LEDGER_NAME, Ledger
from synthseg.cohort.ledger_values import parse_result
from synthseg.cohort.naming import plan_cohort
from synthseg.cohort.plan import make_plan
from synthseg.cohort.tables import cohort_table
from synthseg.cohort.work import Described, Report, Settings
from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.outputs import Outputs

Command = Callable[..., tuple[int, str, str]]
NAMES = (
    "two words",
    "größe 脳 мозг",
    "line\nbreak",
    "tab\tand 'quotes\" here",
    "-rf",
    "$HOME `id` {0} %s",
    "\x1b[31mred",
    os.fsdecode(b"bytes \xff\xfe"),
    "n" * 200,
)


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_keeps_and_finds_scans_of_any_name(tmp_path: Path, name: str) -> None:
    scan, out = tmp_path / "in" / f"{name}.nii.gz", tmp_path / "out"
    scan.parent.mkdir()
    scan.write_bytes(b"scan")
    out.mkdir()
    settings, described = Settings(), Described({}, "0" * 16)
    for _ in range(2):
        jobs = plan_cohort([(scan, {})], out, Outputs())
        with Ledger(out, create=True) as ledger:
            plan = make_plan(ledger, jobs, settings, described)
            row = next(ledger.rows())
            assert row.job.source == scan
            assert row.job.subject.isprintable()
            report = Report(
                subject=row.job.subject,
                status="failed",
                kind="VolumeError",
                message=str(UsageError(scan, found="x", fix="y")),
            )
            ledger.settle(report, "failed", described, {})
            assert len(list(ledger.rows())) == 1
    assert plan.failed + len(plan.todo) == 1
    table = cohort_table(out)
    assert table.scans == 1
    table.tsv.read_text(encoding="utf-8")


def test_names_that_are_no_text_are_told_apart(tmp_path: Path) -> None:
    scans = [tmp_path / os.fsdecode(b"a\xff.nii.gz"), tmp_path / os.fsdecode(b"a\xfe.nii.gz"), tmp_path / "a\n.nii.gz"]
    subjects = [job.subject for job in plan_cohort([(scan, {}) for scan in scans], tmp_path / "out", Outputs())]
    assert len(set(subjects)) == 3
    assert all(subject.isprintable() for subject in subjects)


@pytest.mark.parametrize("damage", ["files", "entities", "result", "source"])
def test_a_damaged_ledger_is_told_with_its_file(tmp_path: Path, damage: str) -> None:
    import sqlite3

    (tmp_path / "s.nii.gz").write_bytes(b"x")
    with Ledger(tmp_path, create=True) as ledger:
        make_plan(
            ledger, plan_cohort([(tmp_path / "s.nii.gz", {})], tmp_path, Outputs()), Settings(), Described({}, "0")
        )
    for value in ("{", "[1]", '{"a": 1}', "3", "[" * 100_000, '{"quality": 3}', '{"volumes_mm3": {"a": "b"}}', 7):
        with sqlite3.connect(tmp_path / LEDGER_NAME) as db:
            db.execute(f"UPDATE scan SET {damage} = ?", (value,))
        with Ledger(tmp_path) as ledger:
            try:
                rows = list(ledger.rows())
            except SynthsegError as error:
                assert LEDGER_NAME in str(error)  # noqa: PT017 - some values are usable
            else:
                assert damage in ("source", "result")
                cohort_table(tmp_path, into=tmp_path / "table")
                assert len(rows) == 1


def test_text_in_a_ledger_that_is_none_is_told_with_its_file(tmp_path: Path) -> None:
    """Found by fuzzing: SQLite's module raises UnicodeDecodeError, which is none of its own errors."""
    (tmp_path / "s.nii.gz").write_bytes(b"x")
    with Ledger(tmp_path, create=True) as ledger:
        jobs = plan_cohort([(tmp_path / "s.nii.gz", {})], tmp_path, Outputs())
        make_plan(ledger, jobs, Settings(), Described({}, "0"))
    file = tmp_path / LEDGER_NAME
    for old, new in ((b"waiting", b"waiti\xff\xff"), (b"CREATE TABLE scan", b"CREATE TABLE \xff\xffan")):
        content = file.read_bytes()
        file.write_bytes(content.replace(old, new))
        with pytest.raises(SynthsegError, match=LEDGER_NAME), Ledger(tmp_path) as ledger:
            list(ledger.rows())
        file.write_bytes(content)


@pytest.mark.parametrize("warnings", [["x"], [{}], {"code": "x"}, "x", 3])
def test_a_result_whose_warnings_are_none_is_refused_by_name(tmp_path: Path, warnings: object) -> None:
    text = json.dumps({"quality": {"scores": {}}, "warnings": warnings})
    with pytest.raises(UsageError, match=r"cohort\.sqlite: found .*a result that is none.*delete it"):
        parse_result(text, tmp_path / "cohort.sqlite")
    assert parse_result('{"warnings": [{"code": "x"}]}', tmp_path / "cohort.sqlite")["warnings"] == [{"code": "x"}]
