"""Many scans, one after another: what is finished is skipped, what fails is told, nothing done is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.discovery import Job, require_writable
from synthseg.inference.outputs import Outputs, OverlayWriter, apply_choices, write_outputs
from synthseg.inference.record import describe_input, make_record, read_record, settings_of, write_record
from synthseg.inference.segmentation import CSF_VALUE, Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.structures import find_structures
from synthseg.inference.tables import VolumeTable
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
    seconds: float = 0.0
    error: BaseException | None = None


@dataclass(frozen=True)
class BatchResult:
    """Outcomes in order; ``remaining`` are the jobs not begun or not finished when the user interrupted."""

    outcomes: tuple[Outcome, ...]
    remaining: tuple[Job, ...] = ()

    @property
    def interrupted(self) -> bool:
        return bool(self.remaining)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def count(self, status: Status) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is run: ``table`` collects volumes, ``overlay`` draws pictures, ``progress`` hears each outcome."""

    overwrite: bool = False
    table: Path | None = None
    overlay: OverlayWriter | None = None
    starting: Callable[[Job], object] | None = None
    progress: Callable[[Outcome], object] | None = None


def run_batch(
    segmenter: Segmenter, jobs: Sequence[Job], outputs: Outputs, options: BatchOptions | None = None
) -> BatchResult:
    """Segment every job's scan and write its files.

    One scan's failure, of whatever kind, is an outcome and does not stop the rest. A scan is finished when all its
    files are there and its record tells of the same settings and the same scan; finished scans are skipped unless
    ``overwrite``. An interrupt (Ctrl-C) ends the batch cleanly: files are written whole, so running it again resumes.

    Raises: UsageError or OutputError for what is wrong before the first scan: an unknown structure, a table of other
        columns, a folder that cannot be written to.
    """
    options = options or BatchOptions()
    batch = _Batch(segmenter, outputs, options)
    for folder in dict.fromkeys(job.files["record"].parent for job in jobs):
        require_writable(folder)
    if options.table is not None:
        require_writable(options.table.parent)
    outcomes: list[Outcome] = []
    for index, job in enumerate(jobs):
        try:
            if options.starting:
                options.starting(job)
            outcome = batch.run(job)
        except KeyboardInterrupt:
            return BatchResult(tuple(outcomes), tuple(jobs[index:]))
        outcomes.append(outcome)
        if options.progress:
            options.progress(outcome)
    return BatchResult(tuple(outcomes))


class _Batch:
    def __init__(self, segmenter: Segmenter, outputs: Outputs, options: BatchOptions) -> None:
        self.segmenter, self.outputs, self.options = segmenter, outputs, options
        self.settings = settings_of(segmenter, outputs)
        structures = segmenter.model.channels.structures
        find_structures(outputs.structures, structures)
        if outputs.overlay and options.overlay is None:
            fix = "pass BatchOptions(overlay=synthseg.report.overlay.write_overlay)"
            raise UsageError("overlay", found="asked for, but nothing to draw it with", fix=fix)
        self.table: VolumeTable | None = None
        if options.table is not None:
            template = apply_choices(_empty_like(segmenter), outputs)
            values = {structure.name: structure.value for structure in template.structures}
            names = list(template.volumes_by_name())
            # As in the original's 1.0 tables: without CSF there is no intracranial volume, so no such column.
            self.table = VolumeTable(options.table, names if template.intracranial else names[1:], values)

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
        seconds = round(time.perf_counter() - start, 2)
        return Outcome(**{**vars(outcome), "seconds": seconds})

    def _finished(self, job: Job) -> Outcome | None:
        """The skipped outcome of a scan that needs nothing done; its row is put back if the table lacks it."""
        record = read_record(job.files["record"])
        if self.options.overwrite or record is None or record.get("settings") != self.settings:
            return None
        if not all(path.exists() for path in job.files.values()) or not job.scan.is_file():
            return None
        if record["input"]["sha256"] != describe_input(job.scan)["sha256"]:
            return None
        volumes: dict[str, float] = record["volumes_mm3"]
        if self.table is not None and job.subject not in self.table.rows:
            self.table.add(job.subject, volumes)
        message = "finished earlier with the same settings; --overwrite does it again"
        return Outcome(job, "skipped", message, volumes_mm3=volumes)

    def _segment(self, job: Job) -> Outcome:
        start = time.perf_counter()
        scan = read_volume(job.scan)
        read = round(time.perf_counter() - start, 3)
        segmentation = self.segmenter.segment(scan, self.outputs.want)
        start = time.perf_counter()
        job.files["record"].unlink(missing_ok=True)  # an old one must not vouch for files half replaced
        write_outputs(segmentation, scan, job.files, self.outputs, self.options.overlay)
        timings = {**segmentation.timings_s, "read": read, "write": round(time.perf_counter() - start, 3)}
        chosen = replace(apply_choices(segmentation, self.outputs), timings_s=timings)
        if self.table is not None:
            self.table.add(job.subject, chosen.volumes_by_name())
        record = self._record(job, chosen)
        write_record(job.files["record"], record)  # last: its presence says that everything else is there
        return Outcome(job, "done", notes=segmentation.notes, volumes_mm3=record["volumes_mm3"])

    def _record(self, job: Job, chosen: Segmentation) -> dict[str, Any]:
        return make_record(chosen, self.segmenter, self.outputs, describe_input(job.scan), job.files)


def _empty_like(segmenter: Segmenter) -> Segmentation:
    """A segmentation of nothing, to learn what columns the tables will have."""
    structures = segmenter.model.channels.structures
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
