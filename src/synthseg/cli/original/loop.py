"""One scan after another: what fails is told and the next one begins, as in the original (reference 6.2)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from synthseg.cli.original.colors import can_embed, embed_colors, write_colors_beside
from synthseg.cli.original.jobs import Job, Plan
from synthseg.cli.original.parser import Options
from synthseg.cli.original.tables import OriginalTable, quality_cells, subject_of, volume_cells
from synthseg.errors import OutputError, SynthsegError

if TYPE_CHECKING:
    from synthseg.inference.original.result import ScanResult
    from synthseg.inference.structures import Structure
    from synthseg.volumes import Volume

FAILED, INTERRUPTED = 1, 130


class Engine(Protocol):
    """What segments a scan: :class:`LikeOriginal` or :class:`StrictSegmenter`."""

    def segment(self, scan: str | Path | Volume, *, posteriors: bool = False, resampled: bool = False) -> ScanResult:
        """The original's outputs for one scan. Raises: SynthsegError."""


@dataclass
class Run:
    """What became of the scans so far.

    Attributes:
        engine: what segments; structures: what the labels can be, background first, parcels last.
        failed: the scans that failed; done: how many did not.
        broken_tables: tables that could not be written the last time, and why.
    """

    engine: Engine
    structures: tuple[Structure, ...]
    plan: Plan
    options: Options
    failed: list[Path] = field(default_factory=list)
    done: int = 0
    broken_tables: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = {kind: OriginalTable(path) for kind, path in self.plan.tables.items()}

    def all(self) -> int:
        """Segment every scan, each with a line that says so; the exit code: 0, 1 if anything failed, 130 for Ctrl-C."""
        jobs = self.plan.jobs
        try:
            for number, job in enumerate(jobs, 1):
                say(f"segmenting {number}/{len(jobs)} {job.scan.name}")
                self._guarded(job)
        except KeyboardInterrupt:
            left = len(jobs) - self.done - len(self.failed)
            tell(f"interrupted with {left} of {len(jobs)} scan(s) left; what was finished is complete")
            return INTERRUPTED
        return FAILED if self.failed or self.broken_tables else 0

    def _guarded(self, job: Job) -> None:
        """One scan; a failure of any kind is a line on stderr."""
        try:
            self._one(job)
        except SynthsegError as error:
            self._fail(job, str(error), error)
        except MemoryError as error:
            fix = "close other programs, or give --memory, --crop or a machine with more memory"
            self._fail(job, str(SynthsegError(job.scan, found="more memory needed than there is", fix=fix)), error)
        except Exception as error:
            found = f"an unexpected error, {type(error).__name__}: {' '.join(str(error).split())}"
            fix = "run it with --debug and report what it prints"
            self._fail(job, str(SynthsegError(job.scan, found=found, fix=fix)), error)
        else:
            self.done += 1

    def _fail(self, job: Job, message: str, error: BaseException) -> None:
        self.failed.append(job.scan)
        tell(f"failed: {' '.join(message.split())}")
        if self.options.debug:
            traceback.print_exception(error)

    def _one(self, job: Job) -> None:
        from synthseg.inference.original.like import on_grid_of

        asked = {kind: kind in job.files for kind in ("posteriors", "resampled")}
        result = self.engine.segment(job.scan, **asked)
        if self.options.keepgeom and self.options.strict_original:  # our own pipeline does it from the posteriors
            result = on_grid_of(result, self._as_the_original_reads(job.scan))
        for note in result.notes:
            tell(f"note: {job.scan.name}: {note}")
        self._write(job, result)
        self._add_rows(job, result)

    @staticmethod
    def _as_the_original_reads(path: Path) -> Volume:
        """The scan on the grid that the original's steps began with: of npz files they do not know the affine."""
        from synthseg.inference.original.scan import read_scan
        from synthseg.volumes import Volume

        scan = read_scan(path)
        return Volume(scan.data, scan.affine, path)

    def _write(self, job: Job, result: ScanResult) -> None:
        """The images. Raises: OutputError."""
        from synthseg.volumes import write_array4d, write_volume

        files, labels = job.files, result.labels
        write_volume(labels, files["labels"], dtype=np.int32, header_like=job.scan)
        self._write_colors(files["labels"])
        if "posteriors" in files and result.posteriors is not None:
            names = [structure.name for structure in self.structures if structure.whole is None]
            channels_first = np.moveaxis(result.posteriors, -1, 0)
            fitting = names if len(names) == len(channels_first) else None
            write_array4d(channels_first, labels.affine, files["posteriors"], fitting, header_like=job.scan)
        if "resampled" in files:
            if result.resampled is not None:
                write_volume(result.resampled, files["resampled"], dtype=np.float32, header_like=job.scan)
            else:
                tell(f"note: {job.scan.name}: is at 1 mm already: nothing was resampled, no {files['resampled'].name}")

    def _write_colors(self, path: Path) -> None:
        if can_embed(path):
            if not self.options.noaddctab:
                embed_colors(path, self.structures)
        elif self.options.addctab:
            beside = write_colors_beside(path, self.structures)
            tell(f"note: {path.name}: this format has no place for a colour table: written to {beside.name}")

    def _add_rows(self, job: Job, result: ScanResult) -> None:
        """The scan's row in each table that was asked for; a table that cannot be written is told at the end."""
        cells = {"volumes": volume_cells(result.volumes_mm3), "quality": quality_cells(result.quality or {})}
        for kind, row in cells.items():
            table = self.tables.get(kind)
            if kind in job.files:
                table = OriginalTable(job.files[kind], of_list=True)
            if table is None:
                continue
            try:
                table.add(subject_of(job.scan), row)
                self.broken_tables.pop(table.path, None)
            except OutputError as error:
                self.broken_tables[table.path] = str(error)


def summarise(run: Run) -> None:
    """Say where the results are, which scans failed, which tables could not be written."""
    jobs, options = run.plan.jobs, run.options
    if run.done:
        say(f"segmented {run.done} of {len(jobs)} scan(s)")
        places: Sequence[tuple[str, str | None]] = (
            ("segmentation", options.o),
            ("posteriors", options.post),
            ("resampled, where needed", options.resample),
            ("volumes", options.vol),
            ("quality", options.qc),
        )
        for what, given in places:
            if given is not None:
                say(f"  {what}: {_shown(run.plan, what, given)}")
    for path, problem in run.broken_tables.items():
        tell(f"failed: {problem}; {path.name} lacks rows")
    if run.failed:
        tell(f"{len(run.failed)} scan(s) failed and have no row in the tables:")
        for scan in run.failed:
            tell(f"  {scan}")


def _shown(plan: Plan, what: str, given: str) -> str:
    """Where an output is: a table's name may have been completed."""
    return str(plan.tables.get(what, given))


def say(line: str) -> None:
    """A line on standard output; what its encoding lacks (file names may be any bytes) is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def tell(line: str) -> None:
    """A line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)
