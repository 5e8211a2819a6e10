"""A Dask cluster on this machine: bounded work in flight, killed workers, jobs of a queueing system."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cohort_run_helpers import make_jobs
from cohort_worker import act
from synthseg.cohort import Place, Settings, coordinate, run
from synthseg.cohort.ledger import Ledger
from synthseg.cohort.progress import Silent
from synthseg.cohort.work import Described, Job, Report
from synthseg.errors import SynthsegError, UsageError

distributed = pytest.importorskip("distributed")

from synthseg.cohort import dask_run  # noqa: E402
from synthseg.cohort.dask_run import Cluster, DaskCrew, plain, share_of_threads, start_cluster  # noqa: E402


class Watcher(Silent):
    """Sees the most scans in hand at a time."""

    def __init__(self, out: Path) -> None:
        self.out, self.most = out, 0

    def finished(self, report: Report, *_: object) -> None:
        del report
        with Ledger(self.out) as ledger:
            self.most = max(self.most, ledger.counts()["running"])


@pytest.mark.slow
def test_killed_workers_cost_no_scan_and_few_are_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate, "load_segmenter", lambda *_, **__: None)
    monkeypatch.setattr(coordinate, "describe", lambda *_: Described({}, "d"))
    monkeypatch.setattr(dask_run, "do_scan", act)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    out, names = tmp_path / "out", ["a", "once1", *(f"s{i}" for i in range(18))]
    jobs = [
        Job(job.source, name, {k: p.with_name(p.name.replace(job.subject, name, 1)) for k, p in job.files.items()})
        for job, name in zip(make_jobs(tmp_path, len(names)), names, strict=True)
    ]
    watcher = Watcher(out)
    counts = run(jobs, Settings(), Place(out=out, dask="local:2"), watcher)
    assert (counts.done, counts.failed, counts.remaining) == (20, 0, 0)
    assert watcher.most <= 4  # two workers: one scan each at work, one each ahead
    assert sorted((out / "calls.txt").read_text().split()) == sorted(names)  # each once
    with Ledger(out) as ledger:
        first, *_, last = ledger.history("once1")
        assert (first["status"], first["error_kind"], last["status"]) == ("lost", "WorkerLost", "done")
        assert "found a worker that died while at work on it" in first["error"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("8GB", "8GB"),
        ("true", True),
        ("[-p long, -x]", ["-p long", "-x"]),
        ("01:00:00", "01:00:00"),
    ],
)
def test_options_of_a_queue_are_read_as_what_they_look_like(text: str, value: object) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_threads_follow_the_cores_of_a_job() -> None:
    assert share_of_threads("slurm", {"cores": "8", "processes": "2"}, workers=5) == 4
    assert share_of_threads("local:1000", {}, workers=None) == 1
    assert share_of_threads("tcp://node7:8786", {}, workers=None) is None
    with pytest.raises(UsageError, match="--dask-option: found cores=two"):
        share_of_threads("slurm", {"cores": "two"}, workers=None)


@pytest.mark.parametrize("where", ["local:0", "local:two", "local:"])
def test_a_number_of_workers_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(UsageError, match=f"--dask: found {where}"):
        start_cluster(where, {}, workers=2)


@pytest.mark.parametrize(("where", "options"), [("nowhere", {}), ("slurm", {"no_such_option": "1"}), ("slurm", {})])
def test_a_place_that_is_none_is_refused(where: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_run, "_SILENCE_S", 1.0)
    with pytest.raises(UsageError, match=rf"--dask {where}: found no cluster there"):
        start_cluster(where, options, workers=1)


SBATCH = """#!/bin/sh
# A queueing system that keeps every script, as they all do, and starts the job at once on this machine.
cp "$1" "$0.$$"
sh "$0.$$" > "$0.log" 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.mark.slow
def test_jobs_of_a_queueing_system_do_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "scancel": '#!/bin/sh\nkill "$@"\n'}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dask_run, "do_scan", act)
    handler = signal.getsignal(signal.SIGINT)
    options = {"cores": "1", "memory": "1GB", "interface": "lo", "python": sys.executable, "queue": "short"}
    cluster = start_cluster("slurm", options, workers=1)
    crew = DaskCrew(cluster, Settings(), "d", threads=1)
    try:
        assert signal.getsignal(signal.SIGINT) is handler  # dask_jobqueue takes Ctrl-C for itself when it is imported
        assert "#SBATCH -p short" in cluster.client.cluster.job_script()
        (job,) = make_jobs(tmp_path, 1)
        (tmp_path / "out").mkdir()
        crew.give(job, overwrite=False)
        reports: list[Report] = []
        until = time.monotonic() + 300
        while not reports and time.monotonic() < until:
            reports += crew.reports(0.5)
        assert [(report.subject, report.status) for report in reports] == [("s0", "done")]
    finally:
        crew.close()


class OneWorkerLeft:
    """A client of a cluster of which little is left."""

    status, cluster = "running", None
    workers: dict[str, int] = {"tcp://one": 1}  # noqa: RUF012 (replaced, not changed)

    def scheduler_info(self, n_workers: int) -> dict[str, dict[str, int]]:
        del n_workers
        return {"workers": self.workers}


def test_workers_that_went_for_good_are_started_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_run, "_LOOK_EVERY_S", 0.0)
    mended: list[float] = []
    cluster = Cluster(OneWorkerLeft(), 2, lambda: mended.append(time.monotonic()))  # type: ignore[arg-type]
    crew = DaskCrew(cluster, Settings(), "d", threads=1)
    assert crew.room() == 2  # one scan at work, one ahead
    assert not mended  # it may be coming back by itself
    monkeypatch.setattr(dask_run, "_MEND_EVERY_S", 0.0)
    crew.room()
    assert len(mended) == 1
    whole = DaskCrew(Cluster(OneWorkerLeft(), 1, lambda: mended.append(0.0)), Settings(), "d", threads=1)  # type: ignore[arg-type]
    whole.room()
    assert len(mended) == 1


def test_a_cluster_without_workers_is_told_of_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = [0.0]
    told: list[str] = []
    monkeypatch.setattr(dask_run.time, "monotonic", lambda: seconds[0])
    client = OneWorkerLeft()
    crew = DaskCrew(Cluster(client), Settings(), "d", threads=1, patience_s=600, tell=told.append)  # type: ignore[arg-type]
    assert crew.reports(0.0) == []
    client.workers = {}
    for second in range(0, 600, 5):
        seconds[0] = float(second)
        crew.reports(0.0)
    assert [text.split(":")[0] for text in told] == [
        f"no Dask worker for {said}" for said in ("60 s", "2 min", "4 min", "8 min")
    ]
    seconds[0] = 601.0
    with pytest.raises(SynthsegError, match=r"--dask: found no worker for 10 min. Fix: .*--dask-wait"):
        crew.reports(0.0)


def test_a_scheduler_that_is_away_for_a_moment_ends_nothing() -> None:
    client = OneWorkerLeft()

    def away(n_workers: int) -> dict[str, dict[str, int]]:
        raise OSError(n_workers)

    client.scheduler_info = away  # type: ignore[method-assign]
    crew = DaskCrew(Cluster(client), Settings(), "d", threads=1)  # type: ignore[arg-type]
    assert crew.room() == 2
    assert crew.reports(0.0) == []
    client.status = "closed"
    with pytest.raises(SynthsegError, match="a scheduler that is gone"):
        crew.reports(0.0)
