"""Workers as processes: they are killed, and every scan is still done once."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cohort_run_helpers import make_jobs
from inference_helpers import coarse_scan, run_scans, save_random_weights
from synthseg.cohort import Place, Settings, coordinate, run
from synthseg.cohort.crew import Crew
from synthseg.cohort.ledger import Ledger
from synthseg.cohort.naming import plan_cohort
from synthseg.cohort.pool import Layout, Pool, lay_out
from synthseg.cohort.progress import Silent
from synthseg.cohort.work import Described, Job, Report, describe, load_segmenter
from synthseg.engine.machine import usable_cores
from synthseg.errors import SynthsegError, UsageError, WeightsError
from synthseg.inference import Segmenter

WORKER = Path(__file__).with_name("cohort_worker.py")


def named_jobs(folder: Path, names: list[str]) -> list[Job]:
    found = make_jobs(folder, len(names))
    paths = [
        {k: p.with_name(p.name.replace(j.subject, n, 1)) for k, p in j.files.items()}
        for j, n in zip(found, names, strict=True)
    ]
    return [Job(job.source, name, files) for job, name, files in zip(found, names, paths, strict=True)]


def small_pool(place: Path, workers: int = 2, limit_s: float | None = None, *more: str) -> Pool:
    command = (sys.executable, str(WORKER), str(place), *more)
    return Pool(Settings(), "d", Layout(("cpu",) * workers, 1), limit_s=limit_s, command=command)


def listen_for(pool: Pool, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pool.reports(0.1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers without networks, which need no description."""
    monkeypatch.setattr(coordinate, "load_segmenter", lambda *_, **__: None)
    monkeypatch.setattr(coordinate, "describe", lambda *_: Described({}, "d"))

    def crew(_settings: Settings, _described: Described, place: Place, _tell: object) -> Crew:
        return small_pool(place.out, place.workers or 2, place.limit_s)

    monkeypatch.setattr(coordinate, "_crew", crew)


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    rows = list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))
    assert len({row["subject"] for row in rows}) == len(rows)
    return {row["subject"]: row for row in rows}


@pytest.mark.usefixtures("quick")
def test_a_worker_that_dies_is_replaced_its_scan_tried_again_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = named_jobs(tmp_path, ["a", "once1", "b", "deadly", "c", "once2"])
    counts = run(jobs, Settings(), Place(out=tmp_path / "out", workers=2))
    assert (counts.done, counts.failed, counts.remaining) == (5, 1, 0)
    rows = rows_of(counts.table.tsv)
    assert {name: row["state"] for name, row in rows.items()} == {**dict.fromkeys(rows, "done"), "deadly": "failed"}
    assert "killed by signal 9, as systems do to a process when memory runs out," in rows["deadly"]["error"]
    assert "its last words 'out of memory, says a library'" in rows["deadly"]["error"]
    assert {name: int(row["attempts"]) for name, row in rows.items()} == {
        **dict.fromkeys("abc", 1),
        "once1": 2,
        "once2": 2,
        "deadly": 3,
    }
    assert Counter((tmp_path / "out" / "calls.txt").read_text().split()) == dict.fromkeys(
        ["a", "b", "c", "once1", "once2"], 1
    )


class Murderer(Silent):
    """Kills a worker now and then, as often as it was told to."""

    def __init__(self, victims: int) -> None:
        self.victims = victims

    def finished(self, report: Report, *_: object) -> None:
        if self.victims and report.status == "done":
            self.victims -= 1
            os.kill(int(report.worker.partition(":")[2]), signal.SIGKILL)


@pytest.mark.usefixtures("quick")
def test_workers_killed_between_scans_cost_nothing(tmp_path: Path) -> None:
    jobs = named_jobs(tmp_path, [f"s{i}" for i in range(12)])
    counts = run(jobs, Settings(), Place(out=tmp_path / "out", workers=2), Murderer(4))
    assert (counts.done, counts.failed) == (12, 0)
    assert {row["state"] for row in rows_of(counts.table.tsv).values()} == {"done"}


def test_a_scan_that_takes_too_long_is_given_up_with_its_worker(tmp_path: Path) -> None:
    pool = small_pool(tmp_path, 1, 0.5)
    (job,) = named_jobs(tmp_path, ["slow"])
    try:
        reports: list[Report] = []
        while not pool.room():
            reports += pool.reports(0.1)
        before = pool.processes
        pool.give(job, overwrite=False)
        while not reports:
            reports += pool.reports(0.1)
        assert "was stopped after 0.5 s, the limit for a scan," in reports[0].message
        assert reports[0].status == "lost"
        while not pool.room():  # another one takes its place
            pool.reports(0.1)
        assert pool.processes != before
    finally:
        pool.close()


def test_workers_that_never_start_end_the_run_with_what_to_do(tmp_path: Path) -> None:
    told: list[str] = []
    pool = small_pool(tmp_path, 2, None, "stillborn")
    pool._say = told.append
    try:
        with pytest.raises(SynthsegError, match="workers: found 3 workers in every place that died before their first"):
            listen_for(pool, 600)
    finally:
        pool.close()
    assert [text.split(":")[0] for text in told] == [
        f"a place for a worker (cpu) stays empty, {left} are left" for left in (1, 0)
    ]


KILLED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthseg.cohort import Place, Settings, coordinate, run
from synthseg.cohort.work import Described, Job
from test_cohort_pool import small_pool
coordinate.load_segmenter = lambda *_, **__: None
coordinate.describe = lambda *_: Described({}, "d")
coordinate._crew = lambda settings, described, place, tell: small_pool(place.out, 2)
jobs = [Job.from_dict(job) for job in json.loads(Path(sys.argv[1]).read_text())]
run(jobs, Settings(), Place(out=jobs[0].files["record"].parent))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_killed_coordinator_loses_nothing_and_its_workers_end(tmp_path: Path) -> None:
    names, out = [*(f"s{i}" for i in range(4)), *(f"wait{i}" for i in range(4))], tmp_path / "out"
    jobs = named_jobs(tmp_path, names)
    (tmp_path / "jobs.json").write_text(json.dumps([job.to_dict() for job in jobs]))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "jobs.json"), str(WORKER.parent)]
    with subprocess.Popen(command) as process:
        while not all((out / f"wait{i}.begun").exists() for i in range(2)):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    with (out / "alive.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its workers hear the end of their input, and are gone
    with Ledger(out) as ledger:
        assert ledger.counts() == {"waiting": 2, "running": 2, "done": 4, "failed": 0}
    (out / "go").touch()
    counts = run(jobs, Settings(), Place(out=out, workers=2))
    assert (counts.finished, counts.done) == (4, 4)
    assert {row["state"] for row in rows_of(counts.table.tsv).values()} == {"done"}
    assert sorted((out / "calls.txt").read_text().split()) == sorted(names)  # each once


def test_workers_share_devices_and_cores() -> None:
    cores = usable_cores()
    assert lay_out("cpu", None, None).devices == ("cpu",) * max(1, cores // 4)
    assert lay_out("cpu", 3, None).threads == max(1, cores // 3)
    assert lay_out("cuda:1", 2, 5) == Layout(("cuda:1", "cuda:1"), 5)
    with pytest.raises(UsageError, match="workers: found 0"):
        lay_out("cpu", 0, None)


def test_what_is_wrong_with_the_settings_is_told_before_the_first_scan(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1)
    with pytest.raises(WeightsError, match="nowhere"):
        run(jobs, Settings(weights=(str(tmp_path / "nowhere.safetensors"),), device="cpu"), Place(out=tmp_path / "out"))
    assert not (tmp_path / "out" / "cohort.tsv").exists()


@pytest.mark.slow
def test_the_pool_gives_what_the_segment_command_gives_and_refuses_other_weights(tmp_path: Path) -> None:
    weights, out = str(save_random_weights(tmp_path / "tiny.safetensors")), tmp_path / "out"
    scans = [coarse_scan(tmp_path / "in" / f"{name}.nii.gz", 1 + i / 10) for i, name in enumerate("ab")]
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no")
    settings = Settings(weights=(weights,), mode="fast", device="cpu")
    jobs = plan_cohort([(scan, {}) for scan in [*scans, tmp_path / "in" / "broken.nii.gz"]], out, settings.outputs)
    counts = run(jobs, settings, Place(out=out, workers=1, threads=1))
    assert (counts.done, counts.failed) == (2, 1)
    expected = run_scans(Segmenter(weights, "fast", device="cpu"), scans, tmp_path / "expected")
    rows = rows_of(counts.table.tsv)
    for outcome in expected.outcomes:
        subject = outcome.job.subject
        ours, theirs = (nib.load(tmp_path / d / f"{subject}_synthseg.nii.gz").get_fdata() for d in ("out", "expected"))
        np.testing.assert_array_equal(ours, theirs)
        for name, volume in outcome.volumes_mm3.items():
            assert float(rows[subject][name]) == pytest.approx(volume, rel=1e-9, abs=1e-3)
    digest = describe(load_segmenter(settings), settings.outputs).digest
    pool = Pool(settings, f"not-{digest}", lay_out("cpu", 1, 1))
    try:
        with pytest.raises(UsageError, match=f"other weights or another version \\({digest}, not not-{digest}\\)"):
            listen_for(pool, 600)
    finally:
        pool.close()
