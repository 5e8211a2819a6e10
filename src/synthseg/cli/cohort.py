"""``synthseg cohort``: many scans, on many workers, with a ledger that loses none of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthseg.cli import cohort_options as o
from synthseg.cli.segment_inputs import require_report
from synthseg.errors import one_line

if TYPE_CHECKING:
    from synthseg.cohort.coordinate import Counts
    from synthseg.cohort.work import Job, Settings

INTERRUPTED = 130
LISTED = 20  # failed scans that `status` names

cohort_app = typer.Typer(
    help="Many scans on many workers: stopped, killed and started again, none is lost or done twice.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@cohort_app.command("run")
def run(
    scans: o.Scans,
    out: o.Out,
    mode: o.ModeOrNone = None,
    fast: o.Fast = False,
    robust: o.Robust = False,
    series: o.Series = None,
    parc: o.Parc = False,
    ct: o.Ct = None,
    weights: o.WeightsNames = None,
    merge: o.Merge = None,
    model_dir: o.ModelDir = None,
    protocol: o.Protocol = None,
    qc: o.Qc = None,
    space: o.Space = "native",
    structures: o.Structures = "",
    merge_sides: o.MergeSides = False,
    posteriors: o.Posteriors = False,
    resampled: o.Resampled = False,
    mask: o.Mask = False,
    tissue_maps: o.TissueMaps = False,
    color_table: o.ColorTable = False,
    overlay: o.Overlay = False,
    dicom_seg: o.DicomSeg = False,
    report: o.Report = False,
    repeat: o.Repeat = 0,
    percentiles: o.Percentiles = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = None,
    memory: o.Memory = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    dask: o.Dask = None,
    dask_option: o.DaskOption = None,
    dask_wait: o.DaskWait = None,
    limit: o.Limit = None,
    participants: o.Participants = None,
    overwrite: o.Overwrite = False,
    plan_only: o.PlanOnly = False,
    quiet: o.Quiet = False,
    log_json: o.LogJson = False,
) -> None:
    """Segment a cohort. The same command again goes on where it stopped; finished scans are left alone.

    A scan is done again when its file, the settings or the weights have changed, and told so. One that failed stays
    failed until then, or until `synthseg cohort retry`.
    """
    given = dict(locals())
    given["mode"] = mode = o.one_mode(mode, fast=fast, robust=robust)
    settings = o.settings_from({**given, "color_table": color_table or dicom_seg})
    if dicom_seg:
        settings = o.with_dicom_seg(settings)
    place = o.place_from(given)
    if report:
        require_report(out)
    jobs, unusable = _jobs(scans, out, settings, given)
    if plan_only:
        _only_plan(jobs, settings, out)
        return
    from synthseg.cli.cohort_told import listening, needs_plus, tell_end, tell_report
    from synthseg.cohort.coordinate import run as run_cohort

    with listening(quiet=quiet, log_json=log_json) as listener:
        counts = run_cohort(jobs, settings, place, listener)
    tell_end(counts, out, quiet=quiet, log_json=log_json, plus=needs_plus(settings))
    if report and not counts.interrupted and (counts.done or counts.finished):
        tell_report(out, log_json=log_json)
    _exit(counts, unusable)


@cohort_app.command("retry")
def retry(
    out: o.Folder,
    workers: o.Workers = None,
    threads: o.Threads = None,
    dask: o.Dask = None,
    dask_option: o.DaskOption = None,
    dask_wait: o.DaskWait = None,
    limit: o.Limit = None,
    participants: o.Participants = None,
    quiet: o.Quiet = False,
    log_json: o.LogJson = False,
) -> None:
    """Do what is left, and what failed, with the settings of the last run."""
    given = dict(locals())
    from synthseg.cli.cohort_told import listening, needs_plus, tell_end
    from synthseg.cohort.coordinate import retry as retry_cohort
    from synthseg.cohort.ledger import Ledger

    place = o.place_from(given)
    with Ledger(out) as ledger:
        settings = ledger.settings()
    with listening(quiet=quiet, log_json=log_json) as listener:
        counts = retry_cohort(place, listener)
    tell_end(counts, out, quiet=quiet, log_json=log_json, plus=needs_plus(settings))
    _exit(counts)


@cohort_app.command("status")
def status(
    out: o.Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Counts and failures as JSON.")] = False,
) -> None:
    """Say how far a cohort is, and which scans failed and why. Changes nothing, also while a run is at work."""
    from synthseg.cohort.status import failures_of, state_of

    if as_json:
        import json

        typer.echo(json.dumps({**state_of(out).to_dict(), "failures": failures_of(out)}))
        return
    typer.echo(state_of(out).sentence)
    failures = failures_of(out)
    for failure in failures[:LISTED]:
        typer.echo(one_line(f"  failed: {failure['subject']} ({failure['attempts']} attempt(s)): {failure['error']}"))
    if len(failures) > LISTED:
        typer.echo(f"  ... and {len(failures) - LISTED} more: column `error` of `synthseg cohort table {out}`")


@cohort_app.command("table")
def table(
    out: o.Folder,
    participants: o.Participants = None,
    into: Annotated[Path | None, typer.Option(help="Another folder for the table.")] = None,
) -> None:
    """Write the cohort's table: cohort.tsv, cohort.parquet, and cohort.json, which says what the columns mean."""
    from synthseg.cohort.tables import cohort_table

    written = cohort_table(out, participants, into=into)
    for note in written.notes:
        typer.echo(f"note: {note}", err=True)
    files = [written.tsv, written.dictionary, *([written.parquet] if written.parquet else [])]
    typer.echo(f"{written.scans} scan(s) in {', '.join(map(str, files))}")


@cohort_app.command("slurm-script")
def slurm_script(
    out: o.Folder,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of the array; each takes its share of the scans.")] = 10,
    at_once: Annotated[int | None, typer.Option(min=1, help="Tasks that may run at the same time.")] = None,
    cores: Annotated[int, typer.Option(min=1, help="Cores of each task.")] = 4,
    task_memory: Annotated[str, typer.Option(help="Memory of each task.")] = "8G",
    hours: Annotated[float, typer.Option(help="Time limit of each task.")] = 24.0,
    sbatch: Annotated[list[str] | None, typer.Option(metavar="OPTION", help="Another #SBATCH line.")] = None,
) -> None:
    """Write a SLURM array script for a site without Dask: `cohort run --plan-only` first, then this, then sbatch."""
    from synthseg.cohort.ledger import Ledger
    from synthseg.cohort.slurm import ArrayOptions, write_array_script

    with Ledger(out) as ledger:
        waiting = ledger.counts()["waiting"]
    options = ArrayOptions(
        tasks=tasks, at_once=at_once, cores=cores, memory=task_memory, hours=hours, more=tuple(sbatch or ())
    )
    typer.echo(f"{waiting} scan(s) to do; submit them with: sbatch {write_array_script(out, options)}")


@cohort_app.command("part")
def part(
    out: o.Folder,
    part: Annotated[int, typer.Option(min=0, help="Which share, from 0.")],
    of: Annotated[int, typer.Option(min=1, help="How many shares there are.")],
    threads: o.Threads = None,
    draw: Annotated[str, typer.Option(help="The same for all shares: another text deals the scans anew.")] = "",
) -> None:
    """Do one share of what is left, as a task of the array script does. Writes results, not the ledger."""
    from synthseg.cli.process import prepare_process

    prepare_process(threads)
    from synthseg.cohort.slurm import do_part

    failed = 0
    for report in do_part(out, part, of, threads=threads, draw=draw):
        failed += report.status == "failed"
        typer.echo(f"{report.status}: {report.message if report.status == 'failed' else report.subject}")
    raise typer.Exit(1 if failed else 0)


@cohort_app.command("collect")
def collect(out: o.Folder, participants: o.Participants = None) -> None:
    """Take into ledger and table what the tasks of the array script have done."""
    from synthseg.cohort.coordinate import collect as collect_results
    from synthseg.cohort.ledger import Ledger
    from synthseg.cohort.status import state_of
    from synthseg.cohort.tables import cohort_table

    with Ledger(out) as ledger:
        jobs, settings = [row.job for row in ledger.rows()], ledger.settings()
    collect_results(jobs, settings, out, failures=True)
    written = cohort_table(out, participants)
    typer.echo(f"{state_of(out).sentence}; table in {written.tsv}")


def _jobs(scans: list[str], out: Path, settings: Settings, given: Mapping[str, Any]) -> tuple[list[Job], int]:
    """The jobs, and how many DICOM studies could not be used."""
    from synthseg.cli.segment_inputs import tell_inputs
    from synthseg.cohort.inputs import gather
    from synthseg.cohort.naming import plan_cohort

    found = gather(scans, out / "converted", series=given["series"])
    tell_inputs(found, out, quiet=given["quiet"] or given["log_json"])
    jobs = plan_cohort([(scan.path, scan.entities) for scan in found.scans], out, settings.outputs)
    return (_with_segs(jobs) if given["dicom_seg"] else jobs), len(found.failed)


def _with_segs(jobs: list[Job]) -> list[Job]:
    """Those that were converted from DICOM become a DICOM SEG, too; it is missed like any other file."""
    from dataclasses import replace

    from synthseg.cohort.convert import source_note
    from synthseg.cohort.dicom_seg import seg_file
    from synthseg.cohort.work import LATER
    from synthseg.reading import exists

    return [
        replace(job, files={**job.files, LATER: seg_file(job)[1]}) if exists(source_note(job.source)) else job
        for job in jobs
    ]


def _only_plan(jobs: list[Job], settings: Settings, out: Path) -> None:
    from synthseg.cohort.coordinate import collect

    plan = collect(jobs, settings, out)
    for line in plan.explained:
        typer.echo(f"note: {line}", err=True)
    typer.echo(f"{len(plan.todo)} of {len(jobs)} scan(s) to do; the plan is in {out}")


def _exit(counts: Counts, unusable: int = 0) -> None:
    if counts.interrupted:
        raise typer.Exit(INTERRUPTED)
    if counts.failed or unusable:
        raise typer.Exit(1)
