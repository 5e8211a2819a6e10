"""The cohort's table: one row a scan, the same in TSV and Parquet, with covariates; names of scans."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cohort_run_helpers import VOLUMES, Runner, Script, make_jobs, run_script
from synthseg.cohort.naming import name_scans, plan_cohort
from synthseg.cohort.progress import Tally, duration
from synthseg.cohort.tables import cohort_table, read_participants
from synthseg.cohort.work import Job, Settings
from synthseg.errors import UsageError
from synthseg.inference import Outputs

__all__ = ["run_script"]  # a fixture


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_every_scan_has_one_row_with_its_volumes_or_why_it_has_none(tmp_path: Path, run_script: Runner) -> None:
    jobs = make_jobs(tmp_path, 3)
    table = run_script(jobs, tmp_path / "out", Script({"s1": ["failed"]})).table
    rows = read(table.tsv)
    assert [(row["subject"], row["state"]) for row in rows] == [("s0", "done"), ("s1", "failed"), ("s2", "done")]
    assert rows[1]["error"].endswith("s1.nii.gz: bad")
    assert {rows[1][name] for name in (*VOLUMES, "seconds", "input_sha256")} == {"n/a"}
    assert {name: float(rows[2][name]) for name in VOLUMES} == VOLUMES
    meanings = json.loads(table.dictionary.read_text())
    assert list(meanings) == list(rows[0])
    assert meanings["left hippocampus"]["Units"] == "mm^3"


def test_parquet_holds_what_the_text_holds_with_types(tmp_path: Path, run_script: Runner) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    jobs = make_jobs(tmp_path, 3)
    table = run_script(jobs, tmp_path / "out", Script({"s1": ["failed"]})).table
    columns, rows = pq.read_table(table.parquet).to_pydict(), read(table.tsv)
    assert list(columns) == list(rows[0])
    assert columns["left hippocampus"] == [4.25, None, 4.25]
    for name, values in columns.items():
        assert [("n/a" if v is None else f"{v:.10g}" if isinstance(v, float) else str(v)) for v in values] == [
            row[name] for row in rows
        ]


def test_covariates_join_by_participant_with_or_without_sub(tmp_path: Path, run_script: Runner) -> None:
    jobs = [
        Job(job.source, name, job.files, entities)
        for job, name, entities in zip(
            make_jobs(tmp_path, 3),
            ["sub-01_ses-1_T1w", "sub-02_T1w", "plain"],
            [{"sub": "01", "ses": "1"}, {}, {}],
            strict=True,
        )
    ]
    participants = tmp_path / "participants.tsv"
    participants.write_text("participant_id\tage\tsex\tstate\nsub-01\t71\tF\tx\n02\tn/a\tM\ty\nplain\t30.5\tn/a\tz\n")
    table = run_script(jobs, tmp_path / "out", Script(), participants=participants).table
    rows = read(table.tsv)
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02", "plain"]
    assert [(row["age"], row["sex"], row["participant_state"], row["state"]) for row in rows] == [
        ("71", "F", "x", "done"),
        ("n/a", "M", "y", "done"),
        ("30.5", "n/a", "z", "done"),
    ]
    assert (rows[0]["ses"], rows[1]["ses"], table.notes) == ("1", "n/a", ())
    participants.write_text("participant_id\tage\nsub-01\t71\n")
    assert "no line for 2 participant(s): 02, plain" in cohort_table(tmp_path / "out", participants).notes[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("age\n3\n", "found the columns age"),
        ("participant_id\tage\nsub-1\t3\n1\t4\n", "two lines of participant 1"),
        ("participant_id\tage\tage\n1\t3\t4\n", "two columns called age"),
        ("participant_id\tage\nsub-1\n", "1 cells in line 2, 2 in the header"),
    ],
)
def test_participants_that_cannot_be_joined_are_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text(text)
    with pytest.raises(UsageError, match=found):
        read_participants(path)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2.5", "1e-3", ".5", "n/a", "NaN", ""], [1.0, -2.5, 1e-3, 0.5, None, None, None]),
        (["007", "12"], ["007", "12"]),
        (["1_2", "3"], ["1_2", "3"]),
        (["inf", "3"], ["inf", "3"]),
        (["1234567890123456789", "3"], ["1234567890123456789", "3"]),
        (['"a', 'b"'], ['"a', 'b"']),
    ],
)
def test_codes_stay_text_and_numbers_become_ones(tmp_path: Path, cells: list[str], values: list[object]) -> None:
    path = tmp_path / "participants.tsv"
    lines = [f"s{i}\t{cell}\n" for i, cell in enumerate(cells)]
    path.write_text("participant_id\tx\n" + "".join(lines))
    assert [row["x"] for row in read_participants(path).values()] == values


def test_covariates_called_like_volumes_or_entities_replace_none(tmp_path: Path, run_script: Runner) -> None:
    (job,) = make_jobs(tmp_path, 1)
    participants = tmp_path / "participants.tsv"
    participants.write_text("participant_id\tses\tleft hippocampus\tcode\n1\tx\t7\t20200131123\n")
    jobs = [Job(job.source, job.subject, job.files, {"sub": "1", "ses": "a"})]
    (row,) = read(run_script(jobs, tmp_path / "out", Script(), participants=participants).table.tsv)
    assert (row["ses"], row["participant_ses"]) == ("a", "x")
    assert (row["left hippocampus"], row["participant_left hippocampus"]) == ("4.25", "7")
    assert row["code"] == "20200131123"


def test_a_moved_scan_keeps_its_name_and_another_of_that_name_gets_its_own(tmp_path: Path, run_script: Runner) -> None:
    out, names = tmp_path / "out", ("a", "b")
    sources = [tmp_path / name / "T1.nii.gz" for name in names]
    for source in sources:
        source.parent.mkdir()
        source.write_bytes(source.parent.name.encode())
    run_script(plan_cohort([(source, {}) for source in sources], out, Outputs()), out, Script())
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "d")
    (tmp_path / "d" / "T1.nii.gz").write_bytes(b"x")
    moved = [(tmp_path / name / "T1.nii.gz", {}) for name in "cd"]
    jobs = plan_cohort(moved, out, Outputs())
    assert [job.subject for job in jobs] == ["a_T1", "T1"]
    script = Script()
    assert run_script(jobs, out, script).finished == 1
    assert script.given == ["T1"]


PARTS = st.lists(st.sampled_from(["a", "b", "T1", "T2"]), min_size=2, max_size=4)


@example(paths=[["a", "a"], ["a", "a", "a", "a"]], later=[["a", "a", "a"], ["b", "a"]])
@given(paths=st.lists(PARTS, min_size=1, max_size=8), later=st.lists(PARTS, max_size=4))
def test_names_differ_and_never_change_when_scans_join(paths: list[list[str]], later: list[list[str]]) -> None:
    first = list(dict.fromkeys(Path("/").joinpath(*p[:-1], f"{p[-1]}.nii.gz") for p in paths))
    names = name_scans(first, {})
    assert len(set(names)) == len(names)
    both = list(dict.fromkeys([*first, *(Path("/").joinpath(*p[:-1], f"{p[-1]}.nii.gz") for p in later)]))
    known = dict(zip(first, names, strict=True))
    again = dict(zip(both, name_scans(both, known), strict=True))
    assert {source: again[source] for source in first} == known
    assert len(set(again.values())) == len(both)


def test_scans_are_called_by_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    paths = [Path("/d/01/T1.nii.gz"), Path("/d/02/T1.nii.gz"), Path("/d/02/T2.mgz")]
    assert name_scans(paths, {}) == ["01_T1", "02_T1", "T2"]
    alike = [Path("/d/a b.nii"), Path("/d/a-b.nii"), Path("/d/a/a.nii"), Path("/a.nii"), Path("/a/a.nii")]
    assert len(set(name_scans(alike, {Path("/x"): "a_a"}))) == 5
    (tmp_path / "x_synthseg.nii.gz").touch()
    scans = [(tmp_path / "x.nii.gz", {}), (tmp_path / "x_synthseg.nii.gz", {})]
    with pytest.raises(UsageError, match="would replace a scan"):
        plan_cohort(scans, tmp_path, Outputs())


@pytest.mark.parametrize("quality", [None, False, True])
def test_settings_cross_borders_as_plain_values(quality: bool | None) -> None:
    settings = Settings(
        quality=quality,
        weights=("a", "b"),
        merge="max",
        percentiles=(0.5, 99.5),
        ct=True,
        outputs=Outputs(structures=("16",), mask=True),
    )
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_rate_and_remaining_time_follow_the_clock() -> None:
    seconds = [0.0]
    tally = Tally(total=1000, finished=100, clock=lambda: seconds[0])
    assert (tally.rate, tally.remaining_s, tally.left) == (None, None, 900)
    for _ in range(300):  # 2 s a scan
        seconds[0] += 2
        tally.count("done")
    for _ in range(200):  # then 4 s
        seconds[0] += 4
        tally.count("failed")
    tally.count("waiting")
    assert tally.left == 400
    assert tally.rate == pytest.approx(1 / 4)
    assert tally.remaining_s == pytest.approx(1600)
    assert tally.sentence == "600 of 1000 scans, 200 failed; 15.0 a minute, about 27 min left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "1 h"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_read_like_ones(seconds: float, said: str) -> None:
    assert duration(seconds) == said
