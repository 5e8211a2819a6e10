"""`synthseg compare` and `synthseg plot`: methods against each other, from tables of scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthseg.evaluation.measurements import Measurement
    from synthseg.evaluation.paired import PairedConfig, PairedRow
    from synthseg.evaluation.statistics import BootstrapConfig
    from synthseg.report.curves import CurveOptions

Tables = Annotated[list[Path], typer.Argument(help="tables of scores by `synthseg evaluate`, one or more methods each")]
Names = Annotated[str | None, typer.Option(help="one name a table, e.g. ours,theirs (default: the tables' own)")]
Where = Annotated[list[str] | None, typer.Option(help="use only lines with COLUMN=VALUE; may be repeated")]
Sides = Annotated[bool, typer.Option("--merge-sides", help="left and right together: their mean, of volumes the sum")]
Width = Annotated[float, typer.Option(help="of the figure; a column is 85 mm, a page 180 mm")]
Confidence = Annotated[float, typer.Option(help="of bootstrap intervals")]
Resamples = Annotated[int, typer.Option(help="of the bootstrap")]
Seed = Annotated[int, typer.Option(help="of the bootstrap")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("compare")(compare)
    app.command("plot")(plot)


def compare(
    tables: Tables,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write every number to this .tsv or .csv")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw boxes with stars: .png, .svg or .pdf")] = None,
    metric: Annotated[str, typer.Option(help="metrics to compare, with commas; the figure is of the first")] = "dice",
    names: Names = None,
    by: Annotated[str | None, typer.Option(help="compare within each value of this column, e.g. dataset")] = None,
    where: Where = None,
    reference: Annotated[str | None, typer.Option(help="compare only this method with each other one")] = None,
    merge_sides: Sides = False,
    zeros: Annotated[str, typer.Option(help="pairs without a difference: wilcox (left out) or pratt")] = "wilcox",
    correction: Annotated[str, typer.Option(help="of p-values: bonferroni, holm or none")] = "bonferroni",
    family: Annotated[str, typer.Option(help="p-values corrected together: level or all")] = "level",
    confidence: Confidence = 0.95,
    resamples: Resamples = 9999,
    seed: Seed = 0,
    width_mm: Width = 85.0,
) -> None:
    """Compare methods on the same scans: Wilcoxon signed-rank tests, effect sizes, bootstrap intervals.

    Structure by structure, and by each scan's mean over structures. Differences are the first method minus the second.
    What could not be paired is named below the table.
    """
    from synthseg.cli.tables import check_tables, split_names
    from synthseg.evaluation.paired import PairedConfig
    from synthseg.evaluation.statistics import BootstrapConfig

    bootstrap = BootstrapConfig(confidence=confidence, resamples=resamples, seed=seed)
    config = PairedConfig(
        by=by, reference=reference, zeros=zeros, correction=correction, family=family, bootstrap=bootstrap
    )
    check_tables({"--out": out}, read=tables)
    _check_figure(figure)
    rows = _read(tables, names, where, list(split_names(metric, "--metric")), merge_sides)
    compared = _compare(rows, config, out)
    if figure is not None:
        _draw_boxes(rows, compared, figure, config, width_mm)


def plot(
    tables: Tables,
    out: Annotated[Path, typer.Option("--out", "-o", help="the figure: .png, .svg or .pdf")],
    x: Annotated[str | None, typer.Option("--x", help="draw curves against this column, e.g. resolution_mm")] = None,
    by: Annotated[
        str | None, typer.Option(help="column of the groups of boxes (default: structure), or one curve a value of it")
    ] = None,
    metric: Annotated[str, typer.Option(help="the metric to draw")] = "dice",
    kind: Annotated[str, typer.Option(help="without --x: box, or mean with its bootstrap interval")] = "box",
    names: Names = None,
    where: Where = None,
    merge_sides: Sides = False,
    common: Annotated[bool, typer.Option("--common", help="with --x: only scans that every point has")] = False,
    log_x: Annotated[bool, typer.Option("--log-x", help="logarithmic axis")] = False,
    confidence: Confidence = 0.95,
    resamples: Resamples = 9999,
    seed: Seed = 0,
    width_mm: Width = 85.0,
) -> None:
    """Draw scores: boxes by structure or condition, or means against a condition such as slice spacing."""
    from synthseg.errors import UsageError
    from synthseg.evaluation.measurements import require_one_unit
    from synthseg.evaluation.statistics import BootstrapConfig

    _check_figure(out)
    if (log_x or common) and x is None:
        raise UsageError("--log-x" if log_x else "--common", found="no --x", fix="name the column of the axis")
    bootstrap = BootstrapConfig(confidence=confidence, resamples=resamples, seed=seed)
    rows = _read(tables, names, where, [metric], merge_sides)
    require_one_unit(rows)
    if x is None:
        from synthseg.report.boxes import BoxOptions, write_boxes

        options = BoxOptions(by=by or "structure", kind=kind, width_mm=width_mm, bootstrap=bootstrap)
        write_boxes(rows, out, options=options)
    else:
        from synthseg.report.curves import CurveOptions

        _draw_curves(
            rows,
            out,
            CurveOptions(x=x, metric=metric, unit=rows[0].unit, log_x=log_x, width_mm=width_mm),
            by,
            common,
            bootstrap,
        )
    typer.echo(f"figure written to {out}")


def _read(
    tables: list[Path], names: str | None, where: list[str] | None, metrics: list[str], merge_sides: bool
) -> list[Measurement]:
    from synthseg.cli.tables import split_names
    from synthseg.evaluation import measurements

    read = measurements.join_tables(tables, split_names(names, "--names") if names is not None else None)
    read = measurements.select(read, where=_conditions(where))
    rows = [row for metric in metrics for row in measurements.select(read, metric=metric)]
    return measurements.merge_sides(rows) if merge_sides else rows


def _compare(rows: list[Measurement], config: PairedConfig, out: Path | None) -> tuple[PairedRow, ...]:
    """Compare, print, write."""
    from synthseg.evaluation.paired import compare_methods, write_paired

    result = compare_methods(rows, config)
    _print_comparison(result.rows, config)
    for note in (*result.notes, *_weak_tests(result.rows, config)):
        typer.echo(f"note: {note}")
    if out is not None:
        typer.echo(f"{len(result.rows)} comparisons written to {write_paired(result.rows, out)}")
    return result.rows


def _draw_boxes(
    rows: list[Measurement], compared: tuple[PairedRow, ...], figure: Path, config: PairedConfig, width_mm: float
) -> None:
    from synthseg.report.boxes import BoxOptions, write_boxes

    metric = rows[0].metric
    options = BoxOptions(by=config.by or "structure", width_mm=width_mm, bootstrap=config.bootstrap)
    shown = [row for row in rows if row.metric == metric]
    write_boxes(shown, figure, [row for row in compared if row.metric == metric], options)
    typer.echo(f"figure written to {figure}")


def _draw_curves(
    rows: list[Measurement], out: Path, options: CurveOptions, by: str | None, common: bool, bootstrap: BootstrapConfig
) -> None:
    from synthseg.evaluation import scan_means
    from synthseg.report.curves import write_curves

    kept = scan_means.with_condition(rows, options.x)
    if len(kept) < len(rows):
        typer.echo(f"note: {len(rows) - len(kept)} of {len(rows)} values without {options.x} left out")
    if common and kept:
        kept = scan_means.common_scans(kept, options.x, by)
    points = scan_means.curve_points(kept, options.x, by, bootstrap)
    write_curves(points, out, options)
    for note in scan_means.uneven_scans(kept, options.x, by):
        typer.echo(f"note: {note}; --common draws only scans that every point has")
    for point in points:
        if point.n_infinite:
            typer.echo(f"note: {point.method}, {options.x} {point.x}: {point.n_infinite} infinite mean(s) left out")


def _print_comparison(rows: tuple[PairedRow, ...], config: PairedConfig) -> None:
    from synthseg.cli.columns import print_columns

    percent = f"{100 * config.bootstrap.confidence:g} %"
    for names in dict.fromkeys((row.by, row.metric, row.method_a, row.method_b) for row in rows):
        by, metric, a, b = names
        headers = ("structure", "pairs", a, b, "a - b", percent, "r", "p")
        lines = [_line(row) for row in rows if (row.by, row.metric, row.method_a, row.method_b) == names]
        print_columns(f"{metric}{f', {by}' if by else ''}: {a} minus {b}", headers, lines)
        typer.echo()
    sizes = " and ".join(map(str, sorted({row.family_size for row in rows})))
    typer.echo(f"Medians; a - b: median difference and its {percent} interval; r: matched-pairs rank-biserial;")
    typer.echo(f"p: two-sided Wilcoxon signed-rank, correction {config.correction}, families of {sizes} tests.")


def _line(row: PairedRow) -> tuple[str, ...]:
    from synthseg.evaluation.paired import stars

    return (
        row.structure,
        str(row.n_pairs),
        _short(row.median_a),
        _short(row.median_b),
        _short(row.median_difference, "+"),
        f"{_short(row.median_low, '+')} {_short(row.median_high, '+')}",
        f"{row.rank_biserial:+.2f}",
        f"{row.p_corrected:.2g} {stars(row.p_corrected):3}",
    )


def _short(value: float, sign: str = "") -> str:
    """A number in a narrow column: ratios with three decimals, volumes with none."""
    if value != value:  # not "+nan"
        return "nan"
    decimals = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign}.{decimals}f}"


def _weak_tests(rows: tuple[PairedRow, ...], config: PairedConfig) -> list[str]:
    """Tests that could not have become significant, whatever the methods: not if all of their family were at best."""
    from synthseg.evaluation.paired import family_of
    from synthseg.evaluation.statistics import adjust

    families: dict[tuple[str, ...], list[PairedRow]] = {}
    for row in rows:
        families.setdefault(family_of(row, config), []).append(row)
    weak = [
        row
        for family in families.values()
        for row, p in zip(family, adjust([r.p_smallest for r in family], config.correction), strict=True)
        if p >= config.significance
    ]
    if not weak:
        return []
    fewest = min(row.n_pairs - row.n_zero for row in weak)
    note = f"{len(weak)} of {len(rows)} tests have too few differing pairs (down to {fewest}) to reach"
    corrected = "" if config.correction == "none" else " after correction"
    return [f"{note} p < {config.significance:g}{corrected}, whatever the methods"]


def _conditions(where: list[str] | None) -> dict[str, str]:
    from synthseg.errors import UsageError

    conditions = {}
    for text in where or []:
        column, equals, value = text.partition("=")
        if not equals or not column or column in conditions:
            raise UsageError("--where", found=repr(text), fix="write COLUMN=VALUE, each column once")
        conditions[column] = value
    return conditions


def _check_figure(path: Path | None) -> None:
    if path is not None:
        from synthseg.report.plotting import check_figure_path

        check_figure_path(path)  # before the work, not after it
