"""`synthseg evaluate`: label maps against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthseg.evaluation import Evaluation, EvaluationConfig, Failure, PairScores

HEADINGS = {
    "dice": "Dice",
    "sd95": "SD95 (mm)",
    "mean_distance": "mean distance (mm)",
    "hausdorff": "Hausdorff (mm)",
    "surface_dice": "surface Dice",
    "volume_similarity": "volume similarity",
    "volume_predicted": "predicted (mm3)",
    "volume_truth": "truth (mm3)",
}
PREDICTED = Annotated[
    Path, typer.Argument(help="label maps to score: a folder, a BIDS dataset, a file, a .txt list, or a table of pairs")
]
TRUTH = Annotated[
    Path | None, typer.Argument(help="true label maps: the same, or one file for all; left out with a table")
]
LONG = Annotated[
    Path | None, typer.Option(help="write one line per scan, structure and metric to this .tsv or .csv file")
]
MAPPING = Annotated[
    Path | None, typer.Option(help="CSV table that converts the truth's values, e.g. columns braincolor_id,aseg_id")
]
LABELS = Annotated[
    str | None, typer.Option(help="score these values, e.g. 2,3,41 (default: the protocol's that the truth has)")
]
PROTOCOL = Annotated[
    str, typer.Option(help="label protocol: its name, a .tsv table, or the original's lists (a folder or a .npy)")
]
BIDS = Annotated[
    bool | None, typer.Option("--bids/--no-bids", help="pair by BIDS entities (default: if a folder is a dataset)")
]
DECIMALS = {"dice": 3, "surface_dice": 3, "volume_similarity": 3, "volume_predicted": 0, "volume_truth": 0}


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("evaluate")(evaluate)


def evaluate(
    predicted: PREDICTED,
    truth: TRUTH = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write all scores to this .tsv or .csv file")] = None,
    long: LONG = None,
    metrics: Annotated[str | None, typer.Option(help="measure these, e.g. dice,sd95,hausdorff (default: all)")] = None,
    tolerance: Annotated[float, typer.Option(metavar="MM", help="surface_dice: how near is near enough")] = 1.0,
    mapping: MAPPING = None,
    labels: LABELS = None,
    protocol: PROTOCOL = "synthseg-2.0",
    ignore: Annotated[int, typer.Option(help="value of the truth where nothing is scored; -1 for none")] = 255,
    truth_pattern: Annotated[str, typer.Option(help="use only truth files named so, e.g. '*_aseg.nii.gz'")] = "*",
    predicted_pattern: Annotated[str, typer.Option(help="use only predictions named so, e.g. '*_desc-mine_*'")] = "*",
    bids: BIDS = None,
    method: Annotated[str | None, typer.Option(help="name in --long of what is scored (default: the folder's)")] = None,
    surface: Annotated[bool, typer.Option("--surface/--no-surface", help="compute surface distances (slower)")] = True,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="pairs scored at a time, each in a process")] = 1,
) -> None:
    """Score segmentations: Dice, surface distance and volume of every structure.

    Files are paired by name: the same stem, the same stem up to words such as _synthseg, _aseg or _t1, or one name
    that begins with the other; label maps (_dseg) of BIDS datasets by their entities; lists line by line. Exit code 1
    when a file has no clear partner or a pair cannot be scored.
    """
    from synthseg.cli.tables import check_tables
    from synthseg.evaluation import EvaluationConfig, evaluate_pairs, gather_pairs, read_mapping

    config = EvaluationConfig(
        protocol=protocol,
        values=_parse_labels(labels),
        ignore_value=None if ignore < 0 else ignore,
        surface=surface,
        metrics=None if metrics is None else tuple(name.strip() for name in metrics.split(",")),
        tolerance_mm=tolerance,
        mapping=read_mapping(mapping) if mapping is not None else None,
    )
    check_tables(
        {"--out": out, "--long": long}, read=[path for path in (predicted, truth, mapping) if path is not None]
    )
    patterns = {"truth_pattern": truth_pattern, "predicted_pattern": predicted_pattern}
    pairing = gather_pairs(predicted, truth, **patterns, bids=bids, method=method)
    total = len(pairing.pairs) + len(pairing.problems)
    result = evaluate_pairs(pairing, config, jobs=jobs, on_done=_Progress(total))
    _report(result, config, out, long)


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


class _Progress:
    """Prints a line for each pair as it is done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def __call__(self, outcome: PairScores | Failure) -> None:
        from synthseg.evaluation import PairScores, summarise

        self.done += 1
        count = f"[{self.done}/{self.total}] " if self.total > 1 else ""
        if not isinstance(outcome, PairScores):
            typer.echo(f"{count}{outcome.name}: FAILED", err=True)  # the reason comes once, at the end
            return
        mean = f"mean Dice {summarise(outcome.rows).dice:.3f} over {len(outcome.rows)} structures"
        typer.echo(f"{count}{outcome.scan}: {mean}")
        for note in outcome.notes:
            typer.echo(f"  note: {note}")


def _report(result: Evaluation, config: EvaluationConfig, out: Path | None, long: Path | None) -> None:
    """Print the summary, write the tables. Raises: Exit with 1 when something could not be scored."""
    from synthseg.evaluation.tables import write_long, write_scores

    if result.rows:
        methods = list(dict.fromkeys(pair.method for pair in result.scores))
        for method in methods:
            _print_summary(method, result, config, titled=len(methods) > 1)
        if out is not None:
            typer.echo(f"{len(result.rows)} scores written to {write_scores(result.rows, out)}")
        if long is not None:
            typer.echo(f"{len(result.long)} values written to {write_long(result.long, long)}")
    if result.failures:
        typer.echo(f"{len(result.failures)} could not be scored:", err=True)
        for failure in result.failures:
            typer.echo(f"  {failure.name}: {failure.reason}", err=True)
        raise typer.Exit(1)


def _print_summary(method: str, result: Evaluation, config: EvaluationConfig, *, titled: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from synthseg.evaluation.tables import means_by_structure, summarise

    summary = summarise([row for pair in result.scores if pair.method == method for row in pair.rows])
    means = means_by_structure([value for value in result.long if value.method == method])
    shown = config.metrics or [name for name in ("dice", "sd95") if name in config.measured]
    columns = [HEADINGS[name] for name in shown]
    table = Table("label", "structure", "scans", *columns, "missing", title=method if titled else None)
    for row in summary.structures:
        cells = [f"{means[str(row.label), name]:.{DECIMALS.get(name, 2)}f}" for name in shown]
        table.add_row(str(row.label), row.structure, str(row.n_scans), *cells, str(row.n_missing or ""))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Mean Dice over structures, then over {len(summary.scans)} scan(s): {summary.dice:.4f}")
