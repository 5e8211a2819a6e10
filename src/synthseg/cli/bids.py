"""``synthseg bids``: a BIDS dataset in, a BIDS derivative out, called as BIDS-Apps are."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from synthseg.cli import cohort_options as o
from synthseg.errors import UsageError, one_line

if TYPE_CHECKING:
    from synthseg.cohort.bids import Choice, Found
    from synthseg.cohort.bids_app import Shares
    from synthseg.cohort.work import Job, Settings

INTERRUPTED = 130
SHOWN = 5  # scans that are left out, named one by one
LEVELS = ("participant", "group")
# Options that take several values one after another, as in every BIDS-App: --participant-label 01 02 03
SEVERAL = (
    "--participant-label",
    "--participant_label",
    "--session-label",
    "--session_label",
    "--session-id",
    "--suffix",
)


class _Several(TyperCommand):
    """A command whose options of :data:`SEVERAL` take all values up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeated(args))


def repeated(arguments: Sequence[str]) -> list[str]:
    """``--suffix A B`` as ``--suffix A --suffix B``; what stands behind the next option is left as it is."""
    told: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in SEVERAL else ""
            if not option:
                told.append(argument)
        elif option:
            told += [option, argument]
        else:
            told.append(argument)
    return told


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("bids", cls=_Several)(bids)


def bids(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the BIDS dataset.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the derivative, e.g. derivatives/synthseg.")],
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="participant: segment; group: one table of all.")],
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label", "--participant_label", help="Only these, with or without sub-. Default: all."
        ),
    ] = None,
    session_label: Annotated[
        list[str] | None,
        typer.Option("--session-label", "--session_label", "--session-id", help="Only these sessions. Default: all."),
    ] = None,
    suffix: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of images (T1w, T2w, FLAIR, ..., or all). Default: one a session, T1w if there is."),
    ] = None,
    bids_filter_file: Annotated[
        Path | None, typer.Option("--bids-filter-file", help="JSON of queries by entity, as fMRIPrep takes it.")
    ] = None,
    work_dir: Annotated[Path | None, typer.Option("-w", "--work-dir", help="Folder for temporary files.")] = None,
    skip_bids_validation: Annotated[
        bool,
        typer.Option(
            "--skip-bids-validation", "--skip_bids_validation", help="Take a dataset without a valid description."
        ),
    ] = False,
    n_cpus: Annotated[
        int | None, typer.Option("--n-cpus", "--n_cpus", "--nprocs", min=1, help="Cores of the whole run.")
    ] = None,
    mem_gb: Annotated[
        float | None,
        typer.Option("--mem-gb", "--mem_gb", "--mem", min=0.5, help="Main memory of the whole run, in GiB."),
    ] = None,
    mode: o.Mode = "default",
    parc: o.Parc = False,
    ct: o.Ct = None,
    weights: o.WeightsName = "default",
    model_dir: o.ModelDir = None,
    protocol: o.Protocol = None,
    qc: o.Qc = None,
    space: o.Space = "native",
    structures: o.Structures = "",
    merge_sides: o.MergeSides = False,
    posteriors: Annotated[
        bool, typer.Option("--posteriors", "--probseg", help="Write the probabilities of all labels (4D probseg).")
    ] = False,
    resampled: o.Resampled = False,
    mask: o.Mask = False,
    tissue_maps: o.TissueMaps = False,
    overlay: o.Overlay = False,
    repeat: o.Repeat = 0,
    percentiles: o.Percentiles = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = None,
    dask: Annotated[
        str | None, typer.Option(metavar="WHERE", help="Work on a cluster: local:N, or a Dask scheduler's address.")
    ] = None,
    limit: o.Limit = None,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    log_json: o.LogJson = False,
) -> None:
    """Segment a BIDS dataset into a BIDS derivative (participant), or make one table of its results (group).

    Of every session one kind of image is taken, T1w if there is one; what is left out and why is in
    logs/left_out.tsv. The same command again goes on where it stopped. Several runs on different participants may
    write to the same folder at the same time; `group` puts together what they have done.
    """
    from synthseg.cohort import bids_app
    from synthseg.cohort.bids import Choice
    from synthseg.cohort.bids_filter import read_queries

    if level not in LEVELS:
        raise UsageError("LEVEL", found=repr(level), fix=f"use {' or '.join(LEVELS)}")
    if not skip_bids_validation:
        bids_app.check_dataset(dataset)
    if level == "group":
        _group(dataset, out)
        return
    _use_temporary(work_dir)
    queries = read_queries(bids_filter_file) if bids_filter_file else ()
    choice = Choice(
        participants=_labels(participant_label),
        sessions=_labels(session_label),
        suffixes=_labels(suffix),
        queries=queries,
    )
    shares = bids_app.divide(n_cpus, mem_gb, device)
    given = {**locals(), "memory": shares.memory, "color_table": True}
    settings = bids_app.settings_of(o.settings_from(given))
    jobs, found = bids_app.prepare_participants(dataset, out, settings, choice)
    if not (quiet or log_json):
        _tell_found(found, dataset)
    _participants(dataset, out, choice, jobs, settings, shares, given)


def _participants(
    dataset: Path,
    out: Path,
    choice: Choice,
    jobs: Sequence[Job],
    settings: Settings,
    shares: Shares,
    given: Mapping[str, Any],
) -> None:
    """Segment, say how it went, and end with the exit code that this means."""
    from synthseg.cli.cohort_told import listening, needs_plus, tell_end
    from synthseg.cohort.bids_app import ledger_folder, participants_table
    from synthseg.cohort.coordinate import Place, run

    place = Place(
        out=ledger_folder(out, choice),
        workers=shares.workers,
        threads=shares.threads,
        dask=given["dask"],
        limit_s=given["limit"] * 60 if given["limit"] else None,
        participants=participants_table(dataset),
        overwrite=given["overwrite"],
    )
    with listening(quiet=given["quiet"], log_json=given["log_json"]) as listener:
        counts = run(jobs, settings, place, listener)
    plus = needs_plus(settings)
    tell_end(counts, place.out, log_json=given["log_json"], quiet=given["quiet"], plus=plus)
    if counts.interrupted:
        raise typer.Exit(INTERRUPTED)
    if counts.failed:
        raise typer.Exit(1)


def _group(dataset: Path, out: Path) -> None:
    from synthseg.cohort.bids_app import group_table

    table = group_table(dataset, out)
    for note in table.notes:
        typer.echo(f"note: {note}", err=True)
    files = ", ".join(str(path) for path in (table.tsv, table.parquet, table.dictionary) if path)
    typer.echo(f"{table.scans} scan(s) in {files}")


def _tell_found(found: Found, dataset: Path) -> None:
    """Which kinds of images are taken, and what is left out."""
    kinds = Counter(scan.suffix for scan in found.scans)
    typer.echo(f"{len(found.scans)} scan(s): {', '.join(f'{n} {kind}' for kind, n in kinds.items())}", err=True)
    for one in found.left_out[:SHOWN]:
        typer.echo(one_line(f"note: left out {one.path.relative_to(dataset).as_posix()}: {one.why}"), err=True)
    if len(found.left_out) > SHOWN:
        typer.echo(f"note: ... and {len(found.left_out) - SHOWN} more, see left_out.tsv in the logs", err=True)


def _labels(given: Sequence[str] | None) -> tuple[str, ...]:
    """Values of an option that may be repeated, or hold several with commas or spaces."""
    return tuple(label for text in given or () for label in text.replace(",", " ").split())


def _use_temporary(folder: Path | None) -> None:
    """Let this process and its workers put temporary files there. Raises: OutputError where that cannot be."""
    if folder is None:
        return
    from synthseg.files import require_writable

    require_writable(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.resolve())
