"""`synthseg evaluate`: label maps against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthseg.evaluation import Evaluation, Failure, PairScores, Summary


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("evaluate")(evaluate)


def evaluate(
    predicted: Annotated[Path, typer.Argument(help="label maps to score: a folder or a file")],
    truth: Annotated[Path, typer.Argument(help="true label maps: a folder, or one file for all predictions")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write all scores to this .tsv or .csv file")] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="CSV table that converts the truth's values, e.g. columns braincolor_id,aseg_id")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="score these values, e.g. 2,3,41 (default: the protocol's that the truth has)")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="label protocol: its name, a .tsv table, or the original's lists (a folder or a .npy)")
    ] = "synthseg-2.0",
    ignore: Annotated[int, typer.Option(help="value of the truth where nothing is scored; -1 for none")] = 255,
    truth_pattern: Annotated[str, typer.Option(help="use only truth files named so, e.g. '*_aseg.nii.gz'")] = "*",
    surface: Annotated[bool, typer.Option("--surface/--no-surface", help="compute surface distances (slower)")] = True,
) -> None:
    """Score segmentations: Dice, surface distance and volume of every structure.

    Files are paired by name: the same stem, the same stem up to words such as _synthseg, _aseg or _t1, or one name
    that begins with the other. Exit code 1 when a file has no clear partner or a pair cannot be scored.
    """
    from synthseg.evaluation import EvaluationConfig, evaluate_folders, read_mapping, summarise, write_scores
    from synthseg.evaluation.tables import check_table_path

    config = EvaluationConfig(
        protocol=protocol,
        values=_parse_labels(labels),
        ignore_value=None if ignore < 0 else ignore,
        surface=surface,
        mapping=read_mapping(mapping) if mapping is not None else None,
    )
    if out is not None:
        check_table_path(out)  # before the work, not after it
    result = evaluate_folders(predicted, truth, config, truth_pattern=truth_pattern, on_done=_print_done)
    if result.rows:
        _print_summary(summarise(result.rows), surface)
    if out is not None and result.rows:
        typer.echo(f"{len(result.rows)} scores written to {write_scores(result.rows, out)}")
    _finish(result)


def _parse_labels(text: str | None) -> tuple[int, ...] | None:
    from synthseg.errors import UsageError

    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values or len(set(values)) != len(values) or min(values) < 0:
        raise UsageError("--labels", found=repr(text), fix="list distinct label values with commas, e.g. 2,3,41,42")
    return values


def _print_done(outcome: PairScores | Failure) -> None:
    from synthseg.evaluation import PairScores, summarise

    if not isinstance(outcome, PairScores):
        typer.echo(f"{outcome.name}: FAILED", err=True)  # the reason comes once, at the end
        return
    typer.echo(f"{outcome.scan}: mean Dice {summarise(outcome.rows).dice:.3f} over {len(outcome.rows)} structures")
    for note in outcome.notes:
        typer.echo(f"  note: {note}")


def _print_summary(summary: Summary, surface: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("label", "structure", "scans", "Dice", *(("SD95 (mm)",) if surface else ()), "missing")
    for row in summary.structures:
        distance = (f"{row.sd95_mm:.2f}",) if surface else ()
        missing = str(row.n_missing or "")
        table.add_row(str(row.label), row.structure, str(row.n_scans), f"{row.dice:.3f}", *distance, missing)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Mean Dice over structures, then over {len(summary.scans)} scan(s): {summary.dice:.4f}")


def _finish(result: Evaluation) -> None:
    if not result.failures:
        return
    typer.echo(f"{len(result.failures)} could not be scored:", err=True)
    for failure in result.failures:
        typer.echo(f"  {failure.name}: {failure.reason}", err=True)
    raise typer.Exit(1)
