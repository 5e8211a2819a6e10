"""Workers of a cluster, through Dask: a local one, any scheduler's address, or the jobs of a queueing system."""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synthseg.cohort.crew import lost
from synthseg.cohort.progress import duration
from synthseg.cohort.work import Job, Report, Settings, Workman, refused
from synthseg.engine.machine import usable_cores
from synthseg.errors import SynthsegError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

LOOPBACK = "127.0.0.1"
QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
AHEAD = 1  # jobs in flight for each worker beside the one it is at, so that none waits for us
_LOOK_EVERY_S = 1.0  # at how many workers there are
_MEND_EVERY_S = 30.0  # where workers are missing
_SILENCE_S = 30.0  # without a scheduler: networks have hiccups
_FIRST_WORD_S = 60.0  # without any worker; told again after twice as long, and so on
PATIENCE_S = {"queue": 24 * 3600.0, "else": 600.0}  # without any worker: jobs may wait for a day in a queue


@dataclass(frozen=True)
class Cluster:
    """Where the work is done.

    Attributes:
        client: connected to it; ``client.cluster`` is None where only a scheduler's address was given.
        wanted: number of workers that should be there, and ``mend``, which starts those that are missing.
    """

    client: Client
    wanted: int = 0
    mend: Callable[[], object] = lambda: None


def start_cluster(where: str, options: Mapping[str, str], *, workers: int | None) -> Cluster:
    """The cluster that ``where`` names.

    Args:
        where: "local:N"; "slurm", "pbs", "sge" or "lsf", whose jobs ``options`` describe (arguments of dask-jobqueue's
            classes: queue, cores, memory, walltime, ...) and ``workers`` counts; or a scheduler's address.
    Raises: UsageError for another place, a wrong option, or a scheduler that does not answer.
    """
    kind, number = _kind(where, workers)
    try:
        import cryptography  # noqa: F401  # makes the certificate
        import dask
        from distributed import Client, LocalCluster
        from distributed.security import Security
    except ImportError as error:
        raise UsageError("--dask", found=f"no package {error.name}", fix="pip install 'synthseg[cohort]'") from error
    # A scan is lost with its worker at once and comes back to us, who count and decide; and no scan waits in the hands
    # of a worker that is at another one, so that none is lost without having been begun.
    # And a worker that takes its time to come back (torch, a busy machine) is waited for before its place is given up.
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.deploy.lost-worker-timeout": "2 min",
        }
    )
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # of workers that come and go we tell ourselves
    try:
        if kind == "local":
            n = number
            # Who reaches a scheduler can have it run anything. Ours listens to this machine only, and to us only: also
            # other users of this machine lack the certificate, which is made for this run.
            cluster: Any = LocalCluster(
                host=LOOPBACK,
                security=Security.temporary(),
                n_workers=n,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=0,
            )
            return Cluster(Client(cluster), n, lambda: cluster.scale(n))
        if kind in QUEUES:
            dask_jobqueue = _import_quietly("dask_jobqueue")
            jobs = number
            given = {"cores": 1, "processes": 1, **{key: plain(value) for key, value in options.items()}}
            cluster = getattr(dask_jobqueue, QUEUES[kind])(**given)
            cluster.scale(jobs=jobs)
            return Cluster(Client(cluster), jobs * int(given["processes"]), lambda: cluster.scale(jobs=jobs))
        return Cluster(Client(where, timeout=_SILENCE_S))
    except (ImportError, TypeError, ValueError, OSError) as error:
        fix = f"use local:N, {', '.join(QUEUES)} with --dask-option, or a scheduler's address like tcp://node7:8786"
        raise UsageError(f"--dask {where}", found=f"no cluster there ({error})", fix=fix) from error


def _kind(where: str, workers: int | None) -> tuple[str, int]:
    """What a place is, "" for a scheduler's address, and how many processes or jobs are wanted there."""
    kind, separator, number = where.partition(":")
    if where in QUEUES:
        return where, workers or 1
    if kind != "local":
        return "", 0
    n = int(number) if number.isdecimal() else 0 if separator else workers or 1
    if n < 1 or (separator and workers not in (None, n)):
        found = where if n < 1 else f"{where} and {workers} workers"
        raise UsageError("--dask", found=found, fix="use local:N, with N workers, at least 1")
    return kind, n


def _import_quietly(name: str) -> Any:
    """Import a module that takes Ctrl-C for itself as it is loaded (dask_jobqueue.runner), and give it back."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(name)
    finally:
        if signal.getsignal(signal.SIGINT) is not before and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def share_of_threads(where: str, options: Mapping[str, str], *, workers: int | None) -> int | None:
    """CPU threads of each worker where nobody has said: the cores of its job, its share of this machine, or unknown."""
    kind, number = _kind(where, workers)
    if kind in QUEUES:
        cores, processes = options.get("cores", "1"), options.get("processes", "1")
        if not (cores.isdecimal() and processes.isdecimal() and int(processes)):
            found = f"cores={cores}, processes={processes}"
            raise UsageError("--dask-option", found=found, fix="use whole numbers of at least 1")
        return max(1, int(cores) // int(processes))
    return max(1, usable_cores() // number) if kind else None


def patience_of(where: str) -> float:
    """Seconds that a run goes without any worker where nobody has said how long."""
    return PATIENCE_S["queue" if where in QUEUES else "else"]


def plain(text: str) -> Any:
    """The value of an option: a number, yes or no, a list with commas in brackets, or the text itself."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.startswith("[") and text.endswith("]"):
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    return text


class DaskCrew:
    """A crew of Dask workers (:class:`synthseg.cohort.crew.Crew`), which may come and go.

    Few jobs are in flight at any time, however many scans there are: the rest stays with the coordinator. Each worker
    process loads the weights once and does one scan at a time, whatever its number of threads.

    Args:
        cluster: its client is closed with the crew, and itself, if we started it. Workers that went for good, with a
            job whose time was over or a machine, are started again.
        threads: CPU threads of every worker; None leaves torch's choice.
        patience_s: without any worker; then :meth:`reports` raises. ``tell`` hears of it before.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        digest: str,
        *,
        threads: int | None,
        patience_s: float = PATIENCE_S["else"],
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._cluster, self._client, self._how = cluster, cluster.client, (settings.to_dict(), digest, threads)
        self._jobs: dict[str, tuple[Job, Future, float]] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._workers, self._looked, self._mended = 0, -_LOOK_EVERY_S, time.monotonic()
        self._patience_s, self._say = patience_s, tell
        self._seen, self._next_word_s = time.monotonic(), _FIRST_WORD_S  # a worker; when its absence is told

    @property
    def busy(self) -> int:
        return len(self._jobs)

    def room(self) -> int:
        self._look()
        return max(0, (AHEAD + 1) * max(1, self._workers) - self.busy)

    def give(self, job: Job, *, overwrite: bool) -> None:
        future = self._client.submit(do_scan, self._how, job.to_dict(), overwrite, pure=False)
        self._jobs[job.subject] = (job, future, time.monotonic())
        future.add_done_callback(self._teller(job.subject))

    def reports(self, timeout_s: float) -> list[Report]:
        found: list[Report] = []
        try:
            found += self._report_of(self._finished.get(timeout=timeout_s))
            while True:
                found += self._report_of(self._finished.get_nowait())
        except queue.Empty:
            if self._client.status not in ("running", "connecting"):
                fix = "start the scheduler and run the same command again: what is done stays done"
                raise SynthsegError("--dask", found="a scheduler that is gone", fix=fix) from None
            self._mind_absence()
            return found

    def recall(self) -> list[str]:
        begun = {str(key) for keys in self._client.processing().values() for key in keys}
        waiting = [name for name, (_, future, _) in self._jobs.items() if str(future.key) not in begun]
        waiting = [name for name in waiting if not self._jobs[name][1].done()]
        for name in waiting:
            self._jobs.pop(name)[1].cancel()
        return waiting

    def close(self) -> None:
        cluster = self._client.cluster  # None where only an address was given
        with contextlib.suppress(Exception):  # it may be gone already
            self._client.cancel([future for _, future, _ in self._jobs.values()])
            self._client.close(timeout=5)
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close(timeout=5)

    def _look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):  # a scheduler that is away: `reports` says so when it stays away
            self._workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        if self._workers < self._cluster.wanted and self._looked - self._mended >= _MEND_EVERY_S:
            self._mended = self._looked
            self._cluster.mend()

    def _mind_absence(self) -> None:
        """Say that there is no worker, and after a while give up."""
        self._look()
        if self._workers:
            self._seen, self._next_word_s = time.monotonic(), _FIRST_WORD_S
            return
        absent_s = time.monotonic() - self._seen
        if absent_s >= self._patience_s:
            found = f"no worker for {duration(self._patience_s)}"
            fix = "see that workers start and reach the scheduler, or allow longer with --dask-wait; what is done stays"
            raise SynthsegError("--dask", found=found, fix=fix)
        if absent_s >= self._next_word_s:
            self._next_word_s = 2 * absent_s
            self._say(
                f"no Dask worker for {duration(absent_s)}: waiting; gives up after {duration(self._patience_s)} "
                "(--dask-wait)"
            )

    def _teller(self, subject: str) -> Callable[[Future], None]:
        return lambda _: self._finished.put(subject)

    def _report_of(self, subject: str) -> list[Report]:
        if subject not in self._jobs:  # taken back meanwhile
            return []
        job, future, since = self._jobs.pop(subject)
        if future.status == "finished":
            report = Report(**future.result())
            if report.status == "failed" and report.kind == _STRANGER:
                raise UsageError("--dask", found=report.message, fix="make all workers alike")
            return [report]
        error = future.exception() if future.status == "error" else None
        worker = str(getattr(getattr(error, "last_worker", None), "address", ""))
        how = "died" if error is None or type(error).__name__ == "KilledWorker" else f"failed ({error})"
        return [lost(job, how, worker=worker, seconds=time.monotonic() - since)]


_STRANGER = "StrangeWorker"  # a worker with other weights or another version than ours
_workmen: dict[str, Workman] = {}
_one_at_a_time = threading.Lock()


def do_scan(how: tuple[dict[str, Any], str, int | None], job: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Runs on a worker: one scan, with networks that stay loaded for the next one. Plain values in and out."""
    values, digest, threads = how
    one, started = Job.from_dict(job), time.time()
    with _one_at_a_time:
        try:
            key = f"{digest} {values} {threads}"
            if key not in _workmen:
                _workmen.clear()
                _workmen[key] = Workman(Settings.from_dict(values), digest=digest, threads=threads)
        except SynthsegError as error:
            return asdict(refused(one.subject, error, started)) | {"kind": _STRANGER}
        try:
            return asdict(_workmen[key].do(one, overwrite=overwrite))
        except Exception as error:
            return asdict(refused(one.subject, error, started))
