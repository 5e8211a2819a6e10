"""The command: from scans to one table, interrupted, told and refused as a user meets it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cohort_run_helpers import Script, make_jobs
from inference_helpers import coarse_scan, save_random_weights
from synthseg.cohort import coordinate, slurm
from synthseg.cohort.ledger import Ledger
from synthseg.cohort.slurm import ArrayOptions, array_script
from synthseg.cohort.work import Described, Job, Report
from synthseg.errors import UsageError

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Workers that follow it."""
    follows = Script()
    monkeypatch.setattr(coordinate, "load_segmenter", lambda *_, **__: None)
    monkeypatch.setattr(coordinate, "describe", lambda *_: Described({}, "d"))
    monkeypatch.setattr(coordinate, "_crew", lambda *_: follows)
    return follows


def test_a_run_ends_with_counts_places_and_what_to_cite(tmp_path: Path, script: Script, command: Command) -> None:
    make_jobs(tmp_path, 4)
    script.fates = {"s2": ["failed"]}
    code, out, err = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1
    assert out.startswith("3 scan(s) done in ")
    assert ", 1 failed; ledger and table (cohort.tsv" in out
    assert "Please cite: Billot et al., SynthSeg" in out
    assert "4 of 4 scans to do" in err
    assert "s2.nii.gz: bad" in err
    assert f"`synthseg cohort retry {tmp_path / 'out'}` tries the failed ones again" in err
    code, out, _ = command("cohort", "status", tmp_path / "out")
    assert code == 0
    assert out.startswith("4 scan(s): 3 done, 1 failed\n  failed: s2 (1 attempt(s)): ")
    code, out, err = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert (code, len(script.given)) == (1, 4)
    assert out.startswith("0 scan(s) done in ")
    assert ", 3 done before, 1 failed" in out
    code, out, err = command("cohort", "retry", tmp_path / "out")
    assert (code, script.given[-1]) == (0, "s2")
    assert "1 scan(s) done" in out
    assert "3 done before, 0 failed" in out


def test_json_lines_tell_everything_and_nothing_else_is_on_standard_output(
    tmp_path: Path, script: Script, command: Command
) -> None:
    make_jobs(tmp_path, 3)
    script.fates = {"s1": ["lost", "done"]}
    code, out, _ = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out", "--log-json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["event"] for event in events if event["event"] != "begun"] == ["planned", *["finished"] * 4, "ended"]
    assert [event["state"] for event in events if event.get("subject") == "s1" and "state" in event] == [
        "waiting",
        "done",
    ]
    assert {key: events[-1][key] for key in ("done", "failed", "remaining")} == {"done": 3, "failed": 0, "remaining": 0}
    assert Path(events[-1]["table"]).is_file()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, script: Script, command: Command) -> None:
    make_jobs(tmp_path, 6)
    script.before = lambda subject: os.kill(os.getpid(), 2) if subject == "s1" else None
    code, _, err = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 130
    assert "scan(s) in hand are finished first; once more stops at once" in err
    assert "scan(s) left; the same command again goes on from here" in err
    script.before = lambda _: None
    assert command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    assert sorted(script.given) == [f"s{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--dask-option", "queue"], "--dask-option: found 'queue'. Fix: write it as key=value"),
        (["--dask-option", "queue=long"], "--dask-option: found without --dask"),
        (["--repeat", "1"], "repeat"),
        (["--dask", "local:2", "--limit", "5"], "--limit: found together with --dask"),
        (["--dask", "local:2", "--dask-option", "queue=long"], "--dask-option: found together with --dask local:2"),
        (["--dask", "tcp://node7:1", "--workers", "3"], "--workers: found together with --dask tcp://node7:1"),
        (["--dask-wait", "5"], "--dask-wait: found without --dask"),
        (["--mode", "fast", "--robust"], "--mode fast: found together with the short form of robust"),
        (["--participants", "nowhere.tsv"], "nowhere.tsv: found no such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    tmp_path: Path, command: Command, arguments: list[str], found: str
) -> None:
    make_jobs(tmp_path, 1)
    code, _, err = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert found in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["status", "retry", "table", "collect", "slurm-script"])
def test_a_folder_without_a_cohort_is_refused_and_left_alone(tmp_path: Path, command: Command, verb: str) -> None:
    code, _, err = command("cohort", verb, tmp_path)
    assert code == 2
    assert "found no ledger of a cohort (cohort.sqlite)" in err
    assert not any(tmp_path.iterdir())


def test_an_array_script_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    place = tmp_path / "it's a folder"
    options = ArrayOptions(tasks=7, at_once=3, cores=2, hours=1.5, more=("--partition=long",))
    text = array_script(place, options)
    for line in ("--array=0-6%3", "--cpus-per-task=2", "--time=1:30:00", "--partition=long"):
        assert f"#SBATCH {line}\n" in text
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in ("sbatch", "synthseg"):
        (stubs / name).write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@" >> "{tmp_path}/calls"\n')
        (stubs / name).chmod(0o755)
    (tmp_path / "array.sh").write_text(text)
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "42"}
    subprocess.run(["bash", "-u", str(tmp_path / "array.sh")], env=environment, check=True)
    calls = (tmp_path / "calls").read_text()
    assert "sbatch|--job-name=synthseg-collect|--dependency=afterany:42|" in calls
    assert f"synthseg|cohort|part|{place}|--part|0|--of|7|--threads|2|--draw|42|" in calls
    with pytest.raises(UsageError, match="hours: found 0"):
        ArrayOptions(hours=0)


def test_short_forms_say_the_mode_and_a_report_and_segs_are_made_as_asked(
    tmp_path: Path, script: Script, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthseg.cli import cohort as cli
    from synthseg.cli import cohort_told
    from synthseg.cohort import dicom_seg

    make_jobs(tmp_path, 2)
    (tmp_path / "in" / "s1_source.json").write_text("{}")  # as beside a scan that was converted from DICOM
    pages: list[Path] = []
    monkeypatch.setattr(dicom_seg, "require_highdicom", lambda: None)
    monkeypatch.setattr(cli, "require_report", lambda _: None)
    monkeypatch.setattr(cohort_told, "write_report", pages.append)
    out = tmp_path / "out"
    asked = ("cohort", "run", tmp_path / "in", "-o", out, "--fast", "--robust")
    assert command(*asked, "--dicom-seg", "--report")[0] == 0
    assert pages == [out]
    with Ledger(out) as ledger:
        settings, files = ledger.settings(), {row.job.subject: row.job.files for row in ledger.rows()}
    assert (settings.mode, settings.after) == ("robust-fast", "synthseg.cohort.dicom_seg:write_for")
    assert settings.outputs.color_table
    assert "dicom_seg" not in files["s0"]
    assert files["s1"]["dicom_seg"] == out / "s1_synthseg.dcm"
    files["s1"]["dicom_seg"].unlink()
    script.given.clear()
    assert command(*asked, "--dicom-seg")[0] == 0
    assert script.given == ["s1"]  # it is missed like any other file


def test_tasks_of_one_array_divide_scans_alike_whatever_has_been_collected(
    tmp_path: Path, script: Script, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"s{i}" for i in range(9)}
    make_jobs(tmp_path, 9)
    script.fates = {name: ["failed"] for name in names}
    assert command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out")[0] == 1
    with Ledger(tmp_path / "out") as ledger:
        ledger.put_back(names, why="tried again")

    class Hand:
        def __init__(self, *_: object, **__: object) -> None: ...
        def do(self, job: Job) -> Report:
            return Report(subject=job.subject, status="done")

    monkeypatch.setattr(slurm, "Workman", Hand)

    def share(part: int, draw: str) -> list[str]:
        return [report.subject for report in slurm.do_part(tmp_path / "out", part, 3, draw=draw)]

    shares = [share(part, "41") for part in range(3)]
    assert sorted(name for one in shares for name in one) == sorted(names)
    assert [len(one) for one in shares] == [3, 3, 3]
    assert [share(part, "42") for part in range(3)] != shares
    with Ledger(tmp_path / "out") as ledger, ledger.together():
        for name in shares[0]:
            ledger.hand_out(name)  # done meanwhile
    assert [share(part, "41") for part in range(3)] == [[], *shares[1:]]


@pytest.mark.slow
def test_default_options_are_the_same_to_workers(tmp_path: Path, shared: Path, command: Command) -> None:
    (tmp_path / "in").mkdir()
    scan = shared / "data" / "validation" / "oddities" / "colin27_2mm_t1_head.nii.gz"
    (tmp_path / "in" / "colin.nii.gz").symlink_to(scan)
    code, told, err = command("cohort", "run", tmp_path / "in", "-o", tmp_path / "out", "--mode", "fast")
    assert code == 0, err
    assert told.startswith("1 scan(s) done")
    (row,) = csv.DictReader((tmp_path / "out" / "cohort.tsv").read_text().splitlines(), delimiter="\t")
    assert row["qc"] == "pass"
    assert row["warnings"] == "none"


@pytest.mark.slow
def test_tasks_of_an_array_do_their_shares_and_the_ledger_takes_them_in(tmp_path: Path, command: Command) -> None:
    weights = save_random_weights(tmp_path / "tiny.safetensors")
    for index in range(3):
        coarse_scan(tmp_path / "in" / f"s{index}.nii.gz", 1 + index / 10)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no")
    out = tmp_path / "out"
    options = ("--weights", weights, "--mode", "fast", "--device", "cpu")
    code, told, _ = command("cohort", "run", tmp_path / "in", "-o", out, *options, "--plan-only")
    assert (code, told.split(" scan(s)")[0]) == (0, "4 of 4")
    code, told, _ = command("cohort", "slurm-script", out, "--tasks", 2)
    assert f"4 scan(s) to do; submit them with: sbatch {out / 'cohort.slurm.sh'}" in told
    codes = [command("cohort", "part", out, "--part", part, "--of", 2)[0] for part in (0, 1)]
    assert sorted(codes) == [0, 1]  # one of them has the broken scan
    with Ledger(out) as ledger:
        assert ledger.counts()["waiting"] == 4  # tasks do not write it
    code, told, _ = command("cohort", "collect", out)
    assert told.startswith("4 scan(s): 3 done, 1 failed")
    rows = list(csv.DictReader((out / "cohort.tsv").read_text().splitlines(), delimiter="\t"))
    assert {row["subject"]: row["state"] for row in rows} == {
        "broken": "failed",
        "s0": "done",
        "s1": "done",
        "s2": "done",
    }
    before = [path.stat().st_mtime_ns for path in sorted(out.glob("s*_synthseg.nii.gz"))]
    code, told, _ = command("cohort", "run", tmp_path / "in", "-o", out, *options)
    assert "0 scan(s) done" in told
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("s*_synthseg.nii.gz"))] == before
