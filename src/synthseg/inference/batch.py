"""Many scans, one after another: what is finished is skipped, what fails is told, nothing done is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.discovery import Job, require_writable
from synthseg.inference.layouts import quality_cells, quality_layout, volume_cells, volume_layout
from synthseg.inference.outputs import Outputs, OverlayWriter, apply_choices, write_outputs
from synthseg.inference.quality import Quality, Verdict
from synthseg.inference.record import (
    describe_input,
    failure_file,
    intervals_by_name,
    make_failure,
    make_record,
    read_record,
    recorded_intervals,
    recorded_quality,
    settings_of,
    still_holds,
    write_record,
)
from synthseg.inference.repeat import segment_copies, with_intervals
from synthseg.inference.segmentation import Interval, Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.structures import CSF_VALUE, find_structures
from synthseg.inference.tables import ScanTable
from synthseg.inference.tissue_maps import require_tissues
from synthseg.volumes import Volume, read_volume

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one scan. ``message`` says why it failed or was skipped; ``error`` is the exception itself."""

    job: Job
    status: Status
    message: str = ""
    notes: tuple[str, ...] = ()
    volumes_mm3: dict[str, float] = field(default_factory=dict)
    intervals_mm3: dict[str, Interval] | None = None
    quality: Quality | None = None
    seconds: float = 0.0
    error: BaseException | None = None


@dataclass(frozen=True)
class BatchResult:
    """Outcomes in order; ``remaining`` are the jobs not begun or not finished when the user interrupted.

    ``table_error`` is why a table lacks rows at the end. The scans themselves are done: the next run puts the rows back
    from their records.
    """

    outcomes: tuple[Outcome, ...]
    remaining: tuple[Job, ...] = ()
    table_error: SynthsegError | None = None

    @property
    def interrupted(self) -> bool:
        return bool(self.remaining)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def count(self, status: Status) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def with_verdict(self, verdict: Verdict) -> tuple[Outcome, ...]:
        """The scans, done now or earlier, whose predicted quality has this verdict."""
        return tuple(outcome for outcome in self.outcomes if outcome.quality and outcome.quality.verdict == verdict)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is run.

    ``table`` collects volumes, ``quality_table`` predicted Dice (the segmenter must predict it), ``overlay`` draws
    pictures, ``progress`` hears each outcome.
    """

    overwrite: bool = False
    table: Path | None = None
    quality_table: Path | None = None
    overlay: OverlayWriter | None = None
    starting: Callable[[Job], object] | None = None
    progress: Callable[[Outcome], object] | None = None


def run_batch(
    segmenter: Segmenter, jobs: Sequence[Job], outputs: Outputs, options: BatchOptions | None = None
) -> BatchResult:
    """Segment every job's scan and write its files.

    One scan's failure, of whatever kind, is an outcome and does not stop the rest; a file beside the place of its
    record keeps the reason until the scan is done. A scan is finished when all its files are there and its record tells
    of the same settings, the same version of synthseg and the same scan; finished scans are skipped unless
    ``overwrite``. A scan whose predicted quality fails is done like any other: that is for a person to judge. Several
    runs may share a folder and a table. An interrupt (Ctrl-C) ends the batch cleanly: files are written whole, so
    running it again resumes.

    Raises: UsageError or OutputError for what is wrong before the first scan: an unknown structure, a table of other
        columns, structures without tissues, a folder that cannot be written to.
    """
    options = options or BatchOptions()
    batch = _Batch(segmenter, outputs, options)
    for folder in dict.fromkeys(job.files["record"].parent for job in jobs):
        require_writable(folder)
    for table in (options.table, options.quality_table):
        if table is not None:
            require_writable(table.parent)
    outcomes: list[Outcome] = []
    remaining: tuple[Job, ...] = ()
    for index, job in enumerate(jobs):
        try:
            if options.starting:
                options.starting(job)
            outcome = batch.run(job)
        except KeyboardInterrupt:
            remaining = tuple(jobs[index:])
            break
        outcomes.append(outcome)
        if options.progress:
            options.progress(outcome)
    return BatchResult(tuple(outcomes), remaining, batch.save_tables())


class _Batch:
    def __init__(self, segmenter: Segmenter, outputs: Outputs, options: BatchOptions) -> None:
        self.segmenter, self.outputs, self.options = segmenter, outputs, options
        self.settings = settings_of(segmenter, outputs)
        find_structures(outputs.structures, segmenter.structures)
        if outputs.tissue_maps:
            require_tissues(segmenter.structures)
        if outputs.overlay and options.overlay is None:
            fix = "pass BatchOptions(overlay=synthseg.report.overlay.write_overlay)"
            raise UsageError("overlay", found="asked for, but nothing to draw it with", fix=fix)
        template = apply_choices(_empty_like(segmenter), outputs)
        self.names = list(template.volumes_by_name())
        self.volumes = self.scores = None
        if options.table is not None:
            values = {structure.name: structure.value for structure in template.structures}
            layout = volume_layout(self.names, values, total=template.intracranial, repeat=outputs.repeat > 0)
            self.volumes = ScanTable(options.table, layout)
        if options.quality_table is not None:
            if options.table is not None and _same_file(options.quality_table, options.table):
                found = "one file for the tables of volumes and of quality"
                raise UsageError(options.quality_table, found=found, fix="give each a file of its own")
            if not segmenter.quality_groups:
                fix = "use Segmenter(quality=True)"
                raise UsageError(options.quality_table, found="a segmenter that predicts no quality", fix=fix)
            self.scores = ScanTable(options.quality_table, quality_layout(segmenter.quality_groups))

    def run(self, job: Job) -> Outcome:
        start = time.perf_counter()
        try:
            outcome = self._finished(job) or self._segment(job)
        except SynthsegError as error:
            outcome = Outcome(job, "failed", str(error), error=error)
        except MemoryError as error:
            fix = "close other programs, crop the scan to the head, or use a machine with more memory"
            found = "more memory needed than there is"
            outcome = Outcome(job, "failed", str(SynthsegError(job.scan, found=found, fix=fix)), error=error)
        except Exception as error:  # whatever it is, the other scans are still done
            found = f"an unexpected error, {type(error).__name__}: {error}"
            message = str(SynthsegError(job.scan, found=found, fix="run it with --debug and report what it prints"))
            outcome = Outcome(job, "failed", message, error=error)
        outcome = self._keep_reason(outcome)
        if outcome.status != "failed":
            self._add_to_tables(outcome)
        for table in self._tables():
            with contextlib.suppress(SynthsegError):  # tried again later, and told at the end
                table.save_if_due()
        return replace(outcome, seconds=round(time.perf_counter() - start, 2))

    def save_tables(self) -> SynthsegError | None:
        """Put the last rows into the tables; what is wrong with one is returned, so that the outcomes are not lost."""
        problem = None
        for table in self._tables():
            try:
                table.save()
            except SynthsegError as error:
                problem = problem or error
        return problem

    def _tables(self) -> list[ScanTable]:
        return [table for table in (self.volumes, self.scores) if table is not None]

    def _add_to_tables(self, outcome: Outcome) -> None:
        if self.volumes is not None:
            self.volumes.add(outcome.job.subject, volume_cells(outcome.volumes_mm3, outcome.intervals_mm3))
        if self.scores is not None and outcome.quality is not None:
            self.scores.add(outcome.job.subject, quality_cells(outcome.quality))

    def _keep_reason(self, outcome: Outcome) -> Outcome:
        """Leave a failure's reason on the disk, or take away one that holds no longer."""
        path = failure_file(outcome.job.files["record"])
        if outcome.error is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return outcome
        try:
            failure = make_failure(outcome.job.scan, outcome.error, outcome.message, self.segmenter, self.outputs)
            write_record(path, failure)
        except SynthsegError as error:
            return replace(outcome, message=f"{outcome.message} (This could not be written down either: {error})")
        return outcome

    def _finished(self, job: Job) -> Outcome | None:
        """The skipped outcome of a scan that needs nothing done."""
        record = read_record(job.files["record"])
        if self.options.overwrite or record is None or not still_holds(record, self.settings, job.scan):
            return None
        volumes: dict[str, float] = record["volumes_mm3"]
        try:
            intervals, quality = recorded_intervals(record), recorded_quality(record)
        except ValueError:
            return None
        told = [list(volumes), list(intervals or {}), list(quality.scores if quality else ())]
        wanted = [self.names, self.names if self.outputs.repeat else [], list(self.segmenter.quality_groups)]
        if told != wanted or not all(path.exists() for path in job.files.values()):
            return None
        message = "finished earlier with the same settings; --overwrite does it again"
        return Outcome(job, "skipped", message, (), volumes, intervals, quality)

    def _segment(self, job: Job) -> Outcome:
        start = time.perf_counter()
        scan = read_volume(job.scan)
        read = round(time.perf_counter() - start, 3)
        described = describe_input(job.scan)  # now: a scan that changes during the computation must not be vouched for
        segmentation = self.segmenter.segment(scan, self.outputs.want)
        start = time.perf_counter()
        copies: tuple[Segmentation, ...] = ()
        if self.outputs.repeat:
            copies = segment_copies(self.segmenter, scan, segmentation, self.outputs.repeat)
        repeated = round(time.perf_counter() - start, 3)
        start = time.perf_counter()
        job.files["record"].unlink(missing_ok=True)  # an old one must not vouch for files half replaced
        write_outputs(segmentation, scan, job.files, self.outputs, self.options.overlay)
        timings = {**segmentation.timings_s, "read": read, "write": round(time.perf_counter() - start, 3)}
        chosen = apply_choices(segmentation, self.outputs)
        if copies:  # chosen and merged first: the spread of a sum does not follow from the spreads of its parts
            chosen = with_intervals(chosen, [apply_choices(copy, self.outputs) for copy in copies])
            timings["repeat"] = repeated
        chosen = replace(chosen, timings_s=timings)
        record = make_record(chosen, self.segmenter, self.outputs, described, job.files)
        write_record(job.files["record"], record)  # last: its presence says that everything else is there
        volumes: dict[str, float] = record["volumes_mm3"]
        return Outcome(job, "done", "", chosen.notes, volumes, intervals_by_name(chosen), chosen.quality)


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths, however spelled, lead to one place, where there need not be a file yet."""
    return os.path.realpath(one) == os.path.realpath(other)


def _empty_like(segmenter: Segmenter) -> Segmentation:
    """A segmentation of nothing, to learn what columns the tables will have."""
    structures = segmenter.structures
    volumes = {structure.value: 0.0 for structure in structures if structure.value != 0}
    nothing = Volume(np.zeros((1, 1, 1), np.int32), np.eye(4))
    return Segmentation(
        subject="",
        native=nothing,
        fine=None,
        structures=structures,
        volumes_mm3=volumes,
        total_mm3=0.0,
        intracranial=CSF_VALUE in volumes,
    )
