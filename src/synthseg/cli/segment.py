"""``synthseg segment``: scans in, label maps and volumes out."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthseg.errors import UsageError

if TYPE_CHECKING:
    from synthseg.inference import BatchResult, InferenceConfig, Job, Outcome, Outputs, Segmenter

INTERRUPTED = 130
MANY = 10  # scans


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("segment")(segment)


def segment(
    context: typer.Context,
    scans: Annotated[list[Path], typer.Argument(help="Scans, folders of scans, or .txt lists of scans.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder, or for a single scan a file (.nii.gz, .mgz, ...).")],
    mode: Annotated[str, typer.Option(help="default, or fast: no mirror averaging, no topology clean-up.")] = "default",
    fast: Annotated[bool, typer.Option("--fast", help="The same as --mode fast.")] = False,
    ct: Annotated[
        bool | None, typer.Option("--ct/--no-ct", help="Scans are CT, or are not. Default: recognise Hounsfield units.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Name (see synthseg weights list) or path.")] = "default",
    protocol: Annotated[
        str | None, typer.Option(help="Refuse weights of another label protocol than this (a name or a .tsv).")
    ] = None,
    space: Annotated[str, typer.Option(help="Grid of the labels: native (the scan's own), 1mm or both.")] = "native",
    volumes: Annotated[
        Path | None, typer.Option(help="Table of volumes in mm3: .csv (one row a scan) or .tsv (one row a structure).")
    ] = None,
    structures: Annotated[
        str | None, typer.Option(help="Keep only these, by name or value: hippocampus,left thalamus,16")
    ] = None,
    merge_sides: Annotated[bool, typer.Option("--merge-sides", help="Left and right as one label.")] = False,
    posteriors: Annotated[
        bool, typer.Option("--posteriors", help="Write the probabilities of all labels (4D).")
    ] = False,
    resampled: Annotated[bool, typer.Option("--resampled", help="Write the scan at 1 mm.")] = False,
    mask: Annotated[bool, typer.Option("--mask", help="Write a brain mask (all labels, CSF included).")] = False,
    color_table: Annotated[bool, typer.Option("--color-table", help="Write the labels' colours for viewers.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write a picture of the labels over the scan.")] = False,
    percentiles: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Intensities that become 0 and 1. Default 1 99 (the paper); the original code has 0.5 99.5."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished scans again.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Segment brain scans of any contrast and resolution.

    A scan that fails is reported and the others are still done; scans that are finished are skipped, so that the same
    command resumes an interrupted run.
    """
    from synthseg.inference import Outputs, Segmenter, discover, load_model, plan_jobs

    config = _config(mode, fast, ct, percentiles)
    if overlay:
        from synthseg.report.overlay import require_matplotlib

        require_matplotlib()
    outputs = Outputs(
        space=space,
        posteriors=posteriors,
        resampled=resampled,
        mask=mask,
        color_table=color_table,
        overlay=overlay,
        merge_sides=merge_sides,
        structures=tuple(entry.strip() for entry in (structures or "").split(",") if entry.strip()),
    )
    found, notes = discover(scans)
    jobs = plan_jobs(found, out, outputs)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    segmenter = Segmenter(load_model(weights, protocol=protocol), config=config, device=device, threads=threads)
    result = _run(segmenter, jobs, outputs, {"overwrite": overwrite, "table": volumes})
    if (context.obj or {}).get("debug"):
        for outcome in result.failed:
            traceback.print_exception(outcome.error)
    _summary(result, out, volumes)


def _config(mode: str, fast: bool, ct: bool | None, percentiles: tuple[float, float] | None) -> InferenceConfig:
    from synthseg.inference.config import mode_config

    if fast and mode not in ("default", "fast"):
        raise UsageError("--fast", found=f"together with --mode {mode}", fix="give only one of them")
    config = replace(mode_config("fast" if fast else mode), ct=ct)
    return config if percentiles is None else replace(config, percentiles=percentiles)


def _run(segmenter: Segmenter, jobs: list[Job], outputs: Outputs, options: dict[str, Any]) -> BatchResult:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from synthseg.inference import BatchOptions, run_batch

    draw = None
    if outputs.overlay:
        from synthseg.report.overlay import write_overlay

        draw = write_overlay
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(jobs))

        def starting(job: Job) -> None:
            progress.update(task, description=job.scan.name)

        def finished(outcome: Outcome) -> None:
            progress.advance(task)
            _tell(outcome)

        return run_batch(
            segmenter, jobs, outputs, BatchOptions(**options, overlay=draw, starting=starting, progress=finished)
        )


def _tell(outcome: Outcome) -> None:
    name = outcome.job.scan
    if outcome.status == "failed":
        typer.echo(f"failed: {outcome.message}", err=True)
        return
    if outcome.status == "skipped":
        typer.echo(f"skipped: {name}: {outcome.message}")
        return
    total_name, total = next(iter(outcome.volumes_mm3.items()))
    typer.echo(f"done: {name} ({outcome.seconds:.1f} s, {total_name} {total / 1000:.0f} ml)")
    for note in outcome.notes:
        typer.echo(f"  note: {note}")


def _summary(result: BatchResult, out: Path, table: Path | None) -> None:
    """Say what became of the scans; exit 1 if any failed, 130 after an interrupt."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in ("done", "skipped", "failed") if result.count(s))
    places = f"; results in {out}" + (f", volumes in {table}" if table and not result.table_error else "")
    typer.echo((counts or "nothing done") + (places if result.count("failed") < len(result.outcomes) else ""))
    if len(result.outcomes) > MANY:  # the messages have scrolled away by now
        for outcome in result.failed:
            typer.echo(f"  failed: {outcome.job.scan}", err=True)
    if result.failed:
        folder = result.failed[0].job.files["record"].parent
        typer.echo(f"why a scan failed is kept in {folder / '*_synthseg_failed.json'}", err=True)
    if result.table_error:
        typer.echo(f"failed: {result.table_error}; the same command again puts the missing rows in", err=True)
    if result.interrupted:
        left = len(result.remaining)
        typer.echo(f"interrupted with {left} scan(s) left; the same command again goes on from here", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.failed or result.table_error:
        codes = {getattr(outcome.error, "exit_code", 1) for outcome in result.failed}
        raise typer.Exit(codes.pop() if len(result.outcomes) == len(codes) == 1 else 1)
