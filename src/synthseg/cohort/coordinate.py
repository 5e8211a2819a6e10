"""The one who hands out scans, takes in reports and writes the ledger."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from synthseg.cohort.crew import Crew
from synthseg.cohort.lease import Lease
from synthseg.cohort.ledger import Ledger, State
from synthseg.cohort.plan import Plan, make_plan, stamp_of
from synthseg.cohort.progress import Listener, Silent, Tally
from synthseg.cohort.tables import CohortTable, cohort_table, read_participants
from synthseg.cohort.work import Described, Job, Report, Settings, describe, load_segmenter
from synthseg.errors import UsageError
from synthseg.files import require_writable

MAX_LOSSES = 3  # workers that one scan may take with it
_PATIENCE_S = 0.5  # how long a report is waited for before signals and the lease are looked at


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a cohort's results go and who works on it.

    Attributes:
        out: the folder of the ledger and the tables; results lie wherever the jobs say, usually in it.
        workers, threads: of the pool on this machine (:func:`synthseg.cohort.pool.lay_out`); with Dask, ``threads`` are
            those of every worker.
        dask: instead of the pool: "local:N", the address of a scheduler, or "slurm", "pbs", "sge", "lsf", whose jobs
            ``dask_options`` describe.
        patience_s: how long a cluster may be without any worker before the run gives up
            (:data:`synthseg.cohort.dask_run.PATIENCE_S`).
        limit_s: the pool gives up a scan that takes longer; not with Dask.
        overwrite: do all scans again.
        participants: a table of covariates for the cohort's table.
    Raises: UsageError for a limit with Dask, which cannot stop a scan.
    """

    out: Path
    workers: int | None = None
    threads: int | None = None
    dask: str | None = None
    dask_options: Mapping[str, str] = field(default_factory=dict)
    patience_s: float | None = None
    limit_s: float | None = None
    overwrite: bool = False
    participants: Path | None = None

    def __post_init__(self) -> None:
        if self.dask is not None and self.limit_s is not None:
            raise UsageError("--limit", found="together with --dask", fix="leave it out; let jobs have a walltime")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the scans of a run.

    Attributes:
        done: segmented by this run; finished: before it; failed: now or earlier; remaining: after an interrupt.
        failures: the reports of those that failed in this run.
        table: the cohort's table, of all scans in the ledger.
        explained: what was done again, and why.
    """

    done: int
    finished: int
    failed: int
    remaining: int
    seconds: float
    failures: tuple[Report, ...]
    table: CohortTable
    explained: tuple[str, ...]

    @property
    def interrupted(self) -> bool:
        return self.remaining > 0


def run(jobs: Sequence[Job], settings: Settings, place: Place, listener: Listener | None = None) -> Counts:
    """Segment the scans of a cohort that are not done yet, on many workers, and write its table.

    What becomes of each scan is in the ledger before the next one is handed out in its place. Killed at any moment,
    this process or a worker, a run goes on where it was when it is started again. The first interrupt (Ctrl-C, SIGTERM)
    lets the scans in hand be finished, a second one does not.

    Args:
        listener: is told of the progress.
    Raises: UsageError, WeightsError, OutputError for what is wrong before the first scan, or when no worker can work.
    """
    return _run(place, listener, lambda _: (jobs, settings))


def retry(place: Place, listener: Listener | None = None, *, failed: bool = True) -> Counts:
    """Go on with all scans in the ledger, those that failed included unless ``failed`` is False.

    Raises: as :func:`run`; UsageError where there is no ledger.
    """
    with Ledger(place.out):
        pass  # no lease, and no file, in a folder that is not a cohort's

    def of_ledger(ledger: Ledger) -> tuple[Sequence[Job], Settings]:
        if failed:
            ledger.put_back([row.job.subject for row in ledger.rows("failed")], why="tried again", forgiven=True)
        return [row.job for row in ledger.rows()], ledger.settings()

    return _run(place, listener, of_ledger)


def collect(jobs: Sequence[Job], settings: Settings, out: Path, *, failures: bool = False) -> Plan:
    """Bring the ledger up to date without doing any work: what is finished on the disk is taken in as done.

    Args:
        failures: take in those that workers without a coordinator have written down, too.
    Raises: as :func:`run`.
    """
    require_writable(out)
    described = describe(load_segmenter(settings, device="cpu"), settings.outputs)
    with Lease(out), Ledger(out, create=True) as ledger:
        return make_plan(ledger, jobs, settings, described, failures=failures)


def _run(place: Place, listener: Listener | None, work: Callable[[Ledger], tuple[Sequence[Job], Settings]]) -> Counts:
    if place.participants is not None:
        read_participants(place.participants)  # what is wrong with it is told now, not after days of work
    require_writable(place.out)
    listener = listener or Silent()
    with Lease(place.out) as lease, Ledger(place.out, create=True) as ledger:
        jobs, settings = work(ledger)
        # On the CPU: what results hold depends on no device, and the devices' memory is for those who work.
        described = describe(load_segmenter(settings, device="cpu"), settings.outputs)
        plan = make_plan(ledger, jobs, settings, described, overwrite=place.overwrite)
        tally = Tally(total=len(jobs), finished=plan.finished, failed_before=plan.failed)
        listener.planned(tally, plan.explained)
        shift = _Shift(lease, ledger, described, listener, tally, overwrite=place.overwrite)
        try:
            if plan.todo:
                shift.work(plan, lambda: _crew(settings, described, place, listener.note))
        finally:
            table = cohort_table(place.out, place.participants)
        return Counts(
            done=tally.done,
            finished=plan.finished,
            failed=plan.failed + tally.failed,
            remaining=tally.left,
            seconds=time.monotonic() - tally.begun,
            failures=tuple(shift.failures),
            table=table,
            explained=plan.explained,
        )


def _crew(settings: Settings, described: Described, place: Place, tell: Callable[[str], object]) -> Crew:
    if place.dask is not None:
        from synthseg.cohort.dask_run import DaskCrew, patience_of, share_of_threads, start_cluster

        threads = place.threads or share_of_threads(place.dask, place.dask_options, workers=place.workers)
        patience_s = place.patience_s or patience_of(place.dask)
        cluster = start_cluster(place.dask, place.dask_options, workers=place.workers)
        return DaskCrew(cluster, settings, described.digest, threads=threads, patience_s=patience_s, tell=tell)
    from synthseg.cohort.pool import Pool, lay_out

    layout = lay_out(settings.device, place.workers, place.threads)
    return Pool(settings, described.digest, layout, limit_s=place.limit_s, tell=tell)


class _Shift:
    """One run's work, from the first job to the last report."""

    def __init__(
        self, lease: Lease, ledger: Ledger, described: Described, listener: Listener, tally: Tally, *, overwrite: bool
    ) -> None:
        self.lease, self.ledger, self.described, self.listener, self.tally = lease, ledger, described, listener, tally
        self.overwrite = overwrite
        self.failures: list[Report] = []
        self._waiting: deque[Job] = deque()
        self._suspects: deque[Job] = deque()  # a worker died with each of them: they come last
        self._losses: dict[str, int] = {}  # workers that scans took with them, also before a restart
        self._in_hand: dict[str, Job] = {}

    def work(self, plan: Plan, hire: Callable[[], Crew]) -> None:
        self._losses = self.ledger.losses()
        for job in plan.todo:
            (self._suspects if job.subject in self._losses else self._waiting).append(job)
        with _interrupts() as interrupts:
            crew = hire()
            try:
                self._until_done(crew, interrupts)
            finally:
                crew.close()
                if self._in_hand and not self.lease.lost:
                    self.ledger.put_back(self._in_hand, why="left unfinished by an interrupt")

    def _until_done(self, crew: Crew, interrupts: _Interrupts) -> None:
        told = False
        reports: list[Report] = []
        while True:
            self.lease.require()
            if interrupts.count and not told:
                told = True
                self._take_back(crew.recall())
                self.listener.interrupted(len(self._in_hand))
            with self.ledger.together():  # each transaction waits for the disk: one for all that has come together
                for report in reports:
                    self._take_in(report, stopping=bool(interrupts.count))
                begun = [] if interrupts.count else self._choose(crew)
            for job in begun:
                crew.give(job, overwrite=self.overwrite)
                self.listener.begun(job)
            if interrupts.count > 1 or not (self._in_hand or self._open(interrupts)):
                return
            reports = crew.reports(_PATIENCE_S)
            self.listener.tick(self.tally)

    def _open(self, interrupts: _Interrupts) -> bool:
        """Whether more scans are to be handed out."""
        return not interrupts.count and bool(self._waiting or self._suspects)

    def _choose(self, crew: Crew) -> list[Job]:
        """The jobs that are handed out now; the ledger says so first, so that a loss is noticed."""
        chosen: list[Job] = []
        for _ in range(crew.room()):
            job = self._next()
            if job is None:
                break
            self._in_hand[job.subject] = job
            self.ledger.hand_out(job.subject)
            chosen.append(job)
        return chosen

    def _next(self) -> Job | None:
        """The next job that may begin now. The last try of a suspect has the machine to itself: it may need it."""
        if any(self._last_try(subject) for subject in self._in_hand):
            return None
        if self._waiting:
            return self._waiting.popleft()
        if self._suspects and not (self._in_hand and self._last_try(self._suspects[0].subject)):
            return self._suspects.popleft()
        return None

    def _last_try(self, subject: str) -> bool:
        return self._losses.get(subject, 0) == MAX_LOSSES - 1

    def _take_in(self, report: Report, *, stopping: bool) -> None:
        job = self._in_hand.pop(report.subject)
        if report.status == "lost" and stopping:  # whatever stopped us may have stopped it
            self.ledger.put_back([report.subject], why="left unfinished by an interrupt")
            return
        state: State = "failed" if report.status == "failed" else "done"
        if report.status == "lost":
            losses = self._losses[report.subject] = self._losses.get(report.subject, 0) + 1
            state = "failed" if losses >= MAX_LOSSES else "waiting"
            if state == "waiting":
                self._suspects.append(job)
        stamp = report.record.get("input") or stamp_of(job.source)
        self.ledger.settle(report, state, self.described, stamp)
        if state == "failed":
            self.failures.append(report)
        self.tally.count(state)
        self.listener.finished(report, state, self.tally)

    def _take_back(self, subjects: Sequence[str]) -> None:
        self.ledger.put_back(subjects, why="left unfinished by an interrupt")
        for subject in subjects:
            del self._in_hand[subject]


class _Interrupts:
    """How often the user has asked to stop."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Count SIGINT and SIGTERM instead of dying of them; in the main thread only, elsewhere there are none."""
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.add) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
