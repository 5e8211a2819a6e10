"""``synthseg segment``: scans in, label maps and volumes out."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthseg.cli.process import prepare_process
from synthseg.cli.segment_inputs import find_inputs, require_report, write_report, write_segs
from synthseg.cli.segment_options import one_mode, require_several, wanted_quality, warnings_beside
from synthseg.cli.segment_summary import summarise, tell
from synthseg.weights.places import use_model_dir

if TYPE_CHECKING:
    from rich.progress import Progress

    from synthseg.inference import BatchResult, InferenceConfig, Job, Outcome, Outputs, Segmenter


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("segment")(segment)


def segment(
    context: typer.Context,
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="Scans, folders of scans, patterns, .txt lists, BIDS datasets; DICOM folders, files and zips."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder, or for a single scan a file (.nii.gz, .mgz, ...).")],
    mode: Annotated[
        str | None,
        typer.Option(
            help="default; fast: no mirror averaging, no topology clean-up; robust: a chain of networks for scans "
            "that are noisy, blurred or of very low resolution (for good scans use default); robust-fast: both; "
            "fetal: the seven tissues of a fetal brain; fetal-published: --weights merged and cleaned up as in the "
            "fetal extension."
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Short for --mode fast.")] = False,
    robust: Annotated[
        bool, typer.Option("--robust", help="Short for --mode robust; with --fast, robust-fast.")
    ] = False,
    parc: Annotated[
        bool, typer.Option("--parc", help="Divide the cortex into parcels: labels 1001-1035 left, 2001-2035 right.")
    ] = False,
    ct: Annotated[
        bool | None, typer.Option("--ct/--no-ct", help="Scans are CT, or are not. Default: recognise Hounsfield units.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Name (see synthseg weights list) or path; synthseg-2.0: the original's networks. Default: the "
            "mode's. Given several times: networks for the same structures, merged into one result.",
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            help="How several --weights become one result. mean: of their posteriors (calibrated where weights have a "
            "temperature); max: the surest network's answer, voxel by voxel; vote: the label most networks give. "
            "Default: the mode's, mean."
        ),
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder to look in first for weights: the original's .h5 files, or ours.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Refuse weights of another label protocol than this (a name or a .tsv).")
    ] = None,
    space: Annotated[str, typer.Option(help="Grid of the labels: native (the scan's own), 1mm or both.")] = "native",
    volumes: Annotated[
        Path | None, typer.Option(help="Table of volumes in mm3: .csv (one row a scan) or .tsv (one row a structure).")
    ] = None,
    qc: Annotated[
        Path | None,
        typer.Option(
            help="Table of the predicted quality of each segmentation (Dice per group of structures; below 0.75 warn, "
            "below 0.65 fail, else pass): .csv (one row a scan) or .tsv (one row a group). It is predicted and in the "
            "record without this, too. A scan that fails here was segmented all the same: the exit code stays 0."
        ),
    ] = None,
    no_qc: Annotated[bool, typer.Option("--no-qc", help="Do not predict quality: a little faster.")] = False,
    warnings: Annotated[
        Path | None,
        typer.Option(
            help="Table of warnings (cut-off brains, wrong headers, children, ...: docs/warnings.md), one row a scan, "
            ".csv or .tsv. Default: beside the table of volumes or of quality, if there is one. The exit code stays 0."
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Error bars: segment N copies too (at least 2), turned by up to 3 degrees, every second one mirrored. "
            "The volumes' mean, sd and 95 % interval go into the tables and the record; labels and volumes stay those "
            "of the scan itself.",
        ),
    ] = 0,
    structures: Annotated[
        str | None, typer.Option(help="Keep only these, by name or value: hippocampus,left thalamus,16")
    ] = None,
    merge_sides: Annotated[bool, typer.Option("--merge-sides", help="Left and right as one label.")] = False,
    posteriors: Annotated[
        bool,
        typer.Option(
            "--posteriors", help="Write the probabilities of all labels (4D). The parcels of --parc have none."
        ),
    ] = False,
    resampled: Annotated[bool, typer.Option("--resampled", help="Write the scan at 1 mm.")] = False,
    mask: Annotated[bool, typer.Option("--mask", help="Write a brain mask (all labels, CSF included).")] = False,
    tissue_maps: Annotated[
        bool, typer.Option("--tissue-maps", help="Write the probabilities of grey matter, white matter and CSF.")
    ] = False,
    color_table: Annotated[bool, typer.Option("--color-table", help="Write the labels' colours for viewers.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write a picture of the labels over the scan.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write HTML pages of the results into OUT/report (see synthseg report).")
    ] = False,
    series: Annotated[
        str | None,
        typer.Option(help="Of DICOM studies: a series' number, part of its description, or all. Default: the best."),
    ] = None,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Write a DICOM SEG on the source series, of scans that are DICOM.")
    ] = False,
    percentiles: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Intensities that become 0 and 1. Default 1 99 (the paper); the original code has 0.5 99.5."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished scans again.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads. Default: all cores. With 1, scans are not read and written beside the computation.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    backend: Annotated[
        str,
        typer.Option(
            help="What carries the networks out: auto, torch, openvino, compile or plain. `synthseg doctor` says which "
            "of them work here and which auto takes; all give the same answer."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the networks' arithmetic: float32, bfloat16 (close to it) or int8 (OpenVINO, and weights with "
            "calibrated ranges). Default: the mode's, float32."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What the process may take in all, results included, e.g. 4G; on a GPU, of its memory. Less memory, a "
            "little more time, the same labels; a scan that needs more is refused. Scans are then not read and written "
            "beside the computation.",
        ),
    ] = None,
) -> None:
    """Segment brain scans of any contrast and resolution.

    A scan that fails is reported and the others are still done; scans that are finished are skipped, so that the same
    command resumes an interrupted run.
    """
    use_model_dir(model_dir)
    prepare_process(threads, device)
    from synthseg.cohort.ages import age_of
    from synthseg.inference import Outputs, Segmenter, plan_jobs

    mode = one_mode(mode, {"fast": fast, "robust": robust})
    config = _config(mode, ct, percentiles, require_several(merge, weights))
    if overlay:
        from synthseg.report.overlay import require_matplotlib

        require_matplotlib()
    outputs = Outputs(
        space=space,
        posteriors=posteriors,
        resampled=resampled,
        mask=mask,
        tissue_maps=tissue_maps,
        color_table=color_table or dicom_seg,
        overlay=overlay,
        merge_sides=merge_sides,
        structures=tuple(entry.strip() for entry in (structures or "").split(",") if entry.strip()),
        repeat=repeat,
    )
    if report:
        require_report(out)
    if dicom_seg:
        from synthseg.cohort.dicom_seg import require_highdicom

        require_highdicom()
    given = find_inputs(scans, out, series)
    jobs = plan_jobs([scan.path for scan in given.scans], out, outputs)
    segmenter = Segmenter(
        weights[0] if weights and len(weights) == 1 else weights,
        mode,
        config=config,
        parcels=parc,
        quality=wanted_quality(qc, no_qc=no_qc),
        protocol=protocol,
        device=device,
        threads=threads,
        backend=backend,
        precision=precision,
        memory=memory,
    )
    warnings = warnings or warnings_beside(volumes or qc)
    tables = {"table": volumes, "quality_table": qc, "warnings_table": warnings}
    result = _run(segmenter, jobs, outputs, {"overwrite": overwrite, "age_of": age_of, **tables})
    if (context.obj or {}).get("debug"):
        for outcome in result.failed:
            traceback.print_exception(outcome.error)
    unwritten = write_segs(result) if dicom_seg else 0
    if report and not result.interrupted:
        write_report(out)
    summarise(result, out, {"volumes": volumes, "quality": qc, "warnings": warnings})
    if given.failed or unwritten:
        raise typer.Exit(1)


def _config(mode: str, ct: bool | None, percentiles: tuple[float, float] | None, merge: str | None) -> InferenceConfig:
    from synthseg.inference.config import check_merge
    from synthseg.inference.modes import mode_config

    config = replace(mode_config(mode), ct=ct)
    if merge is not None:
        config = replace(config, merge=check_merge(merge))
    return config if percentiles is None else replace(config, percentiles=percentiles)


def _run(segmenter: Segmenter, jobs: list[Job], outputs: Outputs, options: dict[str, Any]) -> BatchResult:
    from synthseg.inference import BatchOptions, run_batch

    draw = None
    if outputs.overlay:
        from synthseg.report.overlay import write_overlay

        draw = write_overlay
    if not sys.stderr.isatty():  # nobody to show a bar to, and rich need not be loaded
        return run_batch(segmenter, jobs, outputs, BatchOptions(**options, overlay=draw, progress=tell))
    with _bar() as bar:
        task = bar.add_task("", total=len(jobs))

        def starting(job: Job) -> None:
            bar.update(task, description=job.scan.name)

        def finished(outcome: Outcome) -> None:
            bar.advance(task)
            tell(outcome)

        return run_batch(
            segmenter, jobs, outputs, BatchOptions(**options, overlay=draw, starting=starting, progress=finished)
        )


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
