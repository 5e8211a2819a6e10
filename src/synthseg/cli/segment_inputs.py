"""What `synthseg segment` was given, and what it makes beside label maps: DICOM SEG and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synthseg.errors import SynthsegError, UsageError, one_line

if TYPE_CHECKING:
    from synthseg.cohort.inputs import Inputs
    from synthseg.inference import BatchResult

SHOWN = 5  # files and series that are left out, named one by one


def find_inputs(entries: Sequence[Path], out: Path, series: str | None) -> Inputs:
    """The scans that were named, DICOM converted into ``converted`` beside the results; says what was left out.

    Raises: as :func:`synthseg.cohort.inputs.gather`.
    """
    from synthseg.cohort.inputs import gather
    from synthseg.volumes import is_volume_path

    folder = out.parent if is_volume_path(out) else out
    given = gather(entries, folder / "converted", series=series)
    tell_inputs(given, folder)
    return given


def tell_inputs(given: Inputs, folder: Path, *, quiet: bool = False) -> None:
    """Say what was taken and left out; all that was left out is in ``left_out.tsv`` in the folder of results.

    Args:
        quiet: say only what failed.
    Raises: OutputError.
    """
    table = folder / "left_out.tsv"
    if given.left_out:
        from synthseg.cohort.texts import write_text

        write_text(table, given.table())
    if not quiet:
        for note in given.notes:
            typer.echo(f"note: {one_line(note)}", err=True)
        for one in given.left_out[:SHOWN]:
            typer.echo(one_line(f"note: left out {one.path}: {one.why}"), err=True)
        if len(given.left_out) > SHOWN:
            typer.echo(f"note: ... and {len(given.left_out) - SHOWN} more, see {table}", err=True)
    for one in given.failed:
        typer.echo(f"failed: {one_line(one.why)}", err=True)


def write_segs(result: BatchResult) -> int:
    """A DICOM SEG for each scan that was converted from DICOM; returns how many could not be written.

    One that is there already of a result that was not made again is left as it is: with it, its identifier.
    """
    from synthseg.cohort.dicom_seg import seg_file, write_for
    from synthseg.cohort.work import Job

    failed = 0
    for outcome in result.outcomes:
        if outcome.status == "failed":
            continue
        job = Job(outcome.job.scan, outcome.job.subject, outcome.job.files)
        labels, target = seg_file(job)
        if target.exists() and outcome.status == "skipped" and target.stat().st_mtime >= labels.stat().st_mtime:
            continue
        try:
            write_for(job)
        except SynthsegError as error:
            typer.echo(f"failed: {error}", err=True)
            failed += 1
    return failed


def require_report(out: Path) -> None:
    """Say before the work what would be missing after it.

    Raises: UsageError where results are no folder, or without the packages that pages need.
    """
    from importlib.util import find_spec

    from synthseg.volumes import is_volume_path

    if is_volume_path(out):
        raise UsageError("--report", found=f"one file, {out}", fix="give a folder to -o, or use synthseg report")
    missing = [name for name in ("matplotlib", "jinja2", "PIL") if find_spec(name) is None]
    if missing:
        raise UsageError("--report", found=f"no package {missing[0]}", fix='pip install "synthseg[report]"')


def write_report(out: Path) -> None:
    """Pages of all results in the folder, into ``OUT/report``. Raises: as the report does."""
    from synthseg.report.folder import ReportOptions, write_folder_report

    made = write_folder_report(out, out / "report", ReportOptions())
    typer.echo(f"{len(made.pages)} pages written; begin with {made.cohort_page or made.pages[0]}")
