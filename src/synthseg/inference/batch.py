"""Many scans, one after another: what is finished is skipped, what fails is told, nothing done is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from synthseg.errors import SynthsegError, UsageError
from synthseg.files import require_writable, sweep_parts
from synthseg.inference.age import age_warnings
from synthseg.inference.batch_tables import BatchTables
from synthseg.inference.discovery import Job
from synthseg.inference.outcome import BatchOptions, BatchResult, Outcome, Status
from synthseg.inference.outputs import Outputs, apply_choices, write_outputs
from synthseg.inference.pipeline import run_stages
from synthseg.inference.prepare import Prepared
from synthseg.inference.record import (
    describe_input,
    failure_file,
    intervals_by_name,
    make_failure,
    make_record,
    ran_with,
    read_record,
    recorded_intervals,
    recorded_quality,
    recorded_warnings,
    settings_of,
    still_holds,
    write_record,
)
from synthseg.inference.repeat import segment_copies, with_intervals
from synthseg.inference.scan_warnings import ScanWarning
from synthseg.inference.segmentation import Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.structures import find_structures
from synthseg.inference.tissue_maps import require_tissues
from synthseg.locks import lock_beside, sweep_locks
from synthseg.volumes import Volume, read_volume
from synthseg.weights.card import BRAIN

__all__ = ["BatchOptions", "BatchResult", "Outcome", "Status", "run_batch"]

T = TypeVar("T")


def run_batch(
    segmenter: Segmenter, jobs: Sequence[Job], outputs: Outputs, options: BatchOptions | None = None
) -> BatchResult:
    """Segment every job's scan and write its files.

    One scan's failure, of whatever kind, is an outcome and does not stop the rest; a file beside the place of its
    record keeps the reason until the scan is done. A scan is finished when all its files are there and its record tells
    of the same settings, the same version of synthseg and the same scan; finished scans are skipped unless
    ``overwrite``. A scan whose predicted quality fails is done like any other: that is for a person to judge. Several
    runs may share a folder and a table.

    While one scan is computed, the next is read and the last one written (``BatchOptions.overlap``). An interrupt
    (Ctrl-C) ends the batch cleanly: what has been computed is written to the end, files are written whole, and running
    it again resumes.

    Raises: UsageError or OutputError for what is wrong before the first scan: an unknown structure, a table of other
        columns, structures without tissues, a folder that cannot be written to.
    """
    options = options or BatchOptions()
    batch = _Batch(segmenter, outputs, options)
    for folder in dict.fromkeys(job.files["record"].parent for job in jobs):
        require_writable(folder)
    tables = [table for table in (options.table, options.quality_table, options.warnings_table) if table is not None]
    for table in tables:
        require_writable(table.parent)
    sweep_parts([*tables, *(path for job in jobs for path in job.files.values())])  # what a killed run has left
    sweep_locks([*tables, *(job.files["record"] for job in jobs)])
    overlap = options.overlap
    if overlap is None:
        overlap = torch.get_num_threads() > 1 and not outputs.posteriors and not segmenter.placement.limits_main_memory
    remaining: tuple[Job, ...] = ()
    try:
        run_stages(jobs, batch.begin, batch.read, batch.compute, batch.finish, overlap=overlap and len(jobs) > 1)
    except KeyboardInterrupt:
        remaining = tuple(jobs[len(batch.outcomes) :])
    finally:  # also when whoever is told of an outcome fails, like a terminal that is gone
        table_error = batch.tables.save()
    return BatchResult(tuple(batch.outcomes), remaining, table_error)


@dataclass(frozen=True)
class _Loaded:
    """A scan that has been read and prepared, and what its file was like then."""

    scan: Volume
    prepared: Prepared
    described: dict[str, Any]
    read_s: float
    prepare_s: float


@dataclass(frozen=True)
class _Computed:
    loaded: _Loaded
    segmentation: Segmentation
    copies: tuple[Segmentation, ...]
    repeat_s: float
    ran: dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """A scan on its way: the last stage's product, or its outcome where that is known early; seconds spent so far."""

    job: Job
    product: _Loaded | _Computed | Outcome
    seconds: float


class _Batch:
    """The stages that a scan goes through. ``read`` and ``finish`` may run in other threads than ``compute``.

    They share nothing that changes but what ``finish`` alone touches: ``outcomes`` and ``tables``.
    """

    def __init__(self, segmenter: Segmenter, outputs: Outputs, options: BatchOptions) -> None:
        self.segmenter, self.outputs, self.options = segmenter, outputs, options
        self.settings = settings_of(segmenter, outputs)
        self.outcomes: list[Outcome] = []
        find_structures(outputs.structures, segmenter.structures)
        if outputs.tissue_maps:
            require_tissues(segmenter.structures)
        if outputs.overlay and options.overlay is None:
            fix = "pass BatchOptions(overlay=synthseg.report.overlay.write_overlay)"
            raise UsageError("overlay", found="asked for, but nothing to draw it with", fix=fix)
        self.tables = BatchTables(segmenter, outputs, options)

    def begin(self, job: Job) -> None:
        if self.options.starting:
            self.options.starting(job)

    def read(self, job: Job) -> _Step:
        start = time.perf_counter()
        product = _guarded(job, lambda: self._finished(job) or self._load(job))
        return _Step(job, product, time.perf_counter() - start)

    def compute(self, step: _Step) -> _Step:
        start, loaded = time.perf_counter(), step.product
        if not isinstance(loaded, _Loaded):
            return step
        product = _guarded(step.job, lambda: self._segment(loaded))
        return _Step(step.job, product, step.seconds + time.perf_counter() - start)

    def finish(self, step: _Step) -> None:
        start, computed = time.perf_counter(), step.product
        if isinstance(computed, _Computed):
            outcome = _guarded(step.job, lambda: self._write(step.job, computed))
        else:
            assert isinstance(computed, Outcome)  # a scan that was read has been computed
            outcome = computed
        outcome = self._keep_reason(outcome)
        self.tables.add(outcome)
        self.tables.save_if_due()
        outcome = replace(outcome, seconds=round(step.seconds + time.perf_counter() - start, 2))
        self.outcomes.append(outcome)
        if self.options.progress:
            self.options.progress(outcome)

    def _finished(self, job: Job) -> Outcome | None:
        """The skipped outcome of a scan that needs nothing done."""
        record = read_record(job.files["record"])
        if self.options.overwrite or record is None or not still_holds(record, self.settings, job.scan):
            return None
        volumes: dict[str, float] = record["volumes_mm3"]
        try:
            intervals, quality = recorded_intervals(record), recorded_quality(record)
            warnings = recorded_warnings(record)
        except ValueError:
            return None
        if "warnings" not in record:  # of before there were any: nobody has looked
            return None
        told = [list(volumes), list(intervals or {}), list(quality.scores if quality else ())]
        names = self.tables.names
        wanted = [names, names if self.outputs.repeat else [], list(self.segmenter.quality_groups)]
        if told != wanted or not all(path.exists() for path in job.files.values()):
            return None
        message = "finished earlier with the same settings; --overwrite does it again"
        return Outcome(job, "skipped", message, (), volumes, intervals, quality, warnings=warnings)

    def _load(self, job: Job) -> _Loaded:
        start = time.perf_counter()
        scan = read_volume(job.scan)
        read = time.perf_counter()
        # Before the computation: a scan that changes meanwhile must not be vouched for.
        described = describe_input(job.scan)
        hashed = time.perf_counter()
        prepared = self.segmenter.prepare(scan)
        prepare_s = round(time.perf_counter() - hashed, 3)
        return _Loaded(scan, prepared, described, round(read - start, 3), prepare_s)

    def _segment(self, loaded: _Loaded) -> _Computed:
        segmentation = self.segmenter.segment(loaded.prepared, self.outputs.want)
        start = time.perf_counter()
        copies: tuple[Segmentation, ...] = ()
        if self.outputs.repeat:
            copies = segment_copies(self.segmenter, loaded.scan, segmentation, self.outputs.repeat)
        repeat_s = round(time.perf_counter() - start, 3)
        return _Computed(loaded, segmentation, copies, repeat_s, ran_with(self.segmenter, segmentation))

    def _write(self, job: Job, computed: _Computed) -> Outcome:
        """The scan's files and their record, which another run in this folder must not mix with its own."""
        with lock_beside(job.files["record"], long=True):
            return self._write_alone(job, computed)

    def _write_alone(self, job: Job, computed: _Computed) -> Outcome:
        loaded, segmentation = computed.loaded, computed.segmentation
        start = time.perf_counter()
        job.files["record"].unlink(missing_ok=True)  # an old one must not vouch for files half replaced
        write_outputs(segmentation, loaded.scan, job.files, self.outputs, self.options.overlay)
        write_s = round(time.perf_counter() - start, 3)
        timings = {"read": loaded.read_s, "prepare": loaded.prepare_s, **segmentation.timings_s, "write": write_s}
        chosen = apply_choices(segmentation, self.outputs)
        if computed.copies:  # chosen and merged first: a sum's spread does not follow from the spreads of its parts
            chosen = with_intervals(chosen, [apply_choices(copy, self.outputs) for copy in computed.copies])
            timings["repeat"] = computed.repeat_s
        chosen = replace(chosen, timings_s=timings, warnings=(*chosen.warnings, *self._age_warnings(job)))
        record = make_record(chosen, self.settings, loaded.described, job.files, computed.ran)
        write_record(job.files["record"], record)  # last: its presence says that everything else is there
        volumes: dict[str, float] = record["volumes_mm3"]
        spread = intervals_by_name(chosen)
        return Outcome(job, "done", "", chosen.notes, volumes, spread, chosen.quality, warnings=chosen.warnings)

    def _age_warnings(self, job: Job) -> tuple[ScanWarning, ...]:
        """On scans of children, where the networks are for adults."""
        if self.options.age_of is None or self.segmenter.model.organ != BRAIN:
            return ()
        return age_warnings(self.options.age_of(job.scan))

    def _keep_reason(self, outcome: Outcome) -> Outcome:
        """Leave a failure's reason on the disk, or take away one that holds no longer."""
        path = failure_file(outcome.job.files["record"])
        if outcome.error is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return outcome
        try:
            ran = ran_with(self.segmenter)
            write_record(path, make_failure(outcome.job.scan, outcome.error, outcome.message, self.settings, ran))
        except SynthsegError as error:
            return replace(outcome, message=f"{outcome.message} (This could not be written down either: {error})")
        return outcome


def _guarded(job: Job, work: Callable[[], T]) -> T | Outcome:
    """What ``work`` returns, or the outcome that tells why it failed, whatever it was: other scans are still done."""
    try:
        return work()
    except SynthsegError as error:
        return Outcome(job, "failed", str(error), error=error)
    except MemoryError as error:
        fix = "close other programs, crop the scan to the head, or use a machine with more memory"
        found = "more memory needed than there is"
        return Outcome(job, "failed", str(SynthsegError(job.scan, found=found, fix=fix)), error=error)
    except Exception as error:
        found = f"an unexpected error, {type(error).__name__}: {' '.join(str(error).split())}"
        message = str(SynthsegError(job.scan, found=found, fix="run it with --debug and report what it prints"))
        return Outcome(job, "failed", message, error=error)
