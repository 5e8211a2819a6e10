"""`synthseg effect`: do volumes differ between two groups?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthseg.evaluation.groups_study import StudyResult

IcvFrom = Annotated[str, typer.Option(help="with --icv: the volume, or the participants' column, it is taken from")]
Population = Annotated[bool, typer.Option("--population", help="variances over n, as the original's, not n - 1")]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("effect")(effect)


def effect(
    volumes: Annotated[Path, typer.Argument(help="volumes by `synthseg segment --volumes`: .csv or .tsv")],
    participants: Annotated[Path, typer.Argument(help="BIDS participants.tsv: participant_id, the group, covariates")],
    group: Annotated[str, typer.Option(help="column of the groups, e.g. diagnosis")],
    cases: Annotated[str, typer.Option(help="its value for cases, e.g. AD")],
    controls: Annotated[str, typer.Option(help="its value for controls, e.g. CN")],
    covariates: Annotated[str, typer.Option(help="columns to correct for, with commas, e.g. age,sex")] = "",
    categorical: Annotated[str, typer.Option(help="covariates whose numbers are names, e.g. site")] = "",
    icv: Annotated[bool, typer.Option("--icv", help="correct for the intracranial volume")] = False,
    icv_from: IcvFrom = "total intracranial",
    structures: Annotated[str, typer.Option(help="only these, with commas (default: all)")] = "",
    sum_sides: Annotated[bool, typer.Option("--sum-sides", help="left and right volumes summed")] = False,
    scans: Annotated[str, typer.Option(help="use only subjects of the volume table named so, e.g. '*FLAIR*'")] = "*",
    fit: Annotated[str, typer.Option(help="whom the correction is fitted to: controls, all or within")] = "controls",
    population: Population = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write every number to this .tsv or .csv")] = None,
    confidence: Annotated[float, typer.Option(help="of bootstrap intervals")] = 0.95,
    resamples: Annotated[int, typer.Option(help="of the bootstrap")] = 9999,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
) -> None:
    """Effect sizes of a group study: Cohen's d of volumes, corrected for covariates by a linear model.

    Positive when cases have smaller volumes (equation 28 of the paper). Everyone left out is named below the table.
    """
    from synthseg.cli.tables import check_tables, split_names
    from synthseg.evaluation.effects import EffectConfig
    from synthseg.evaluation.groups_study import StudyConfig, run_study, write_effects
    from synthseg.evaluation.statistics import BootstrapConfig
    from synthseg.evaluation.subjects import read_participants, read_volumes

    check_tables({"--out": out}, read=[volumes, participants])
    bootstrap = BootstrapConfig(confidence=confidence, resamples=resamples, seed=seed)
    config = StudyConfig(
        group=group,
        cases=cases,
        controls=controls,
        covariates=split_names(covariates, "--covariates", optional=True),
        categorical=split_names(categorical, "--categorical", optional=True),
        icv=icv_from if icv else None,
        structures=split_names(structures, "--structures", optional=True),
        sum_sides=sum_sides,
        scans=scans,
        effect=EffectConfig(fit=fit, population=population, bootstrap=bootstrap),
    )
    result = run_study(read_volumes(volumes), read_participants(participants), config)
    _print_effects(result, confidence)
    if out is not None:
        typer.echo(f"{len(result.rows)} effects written to {write_effects(result.rows, out)}")


def _print_effects(result: StudyResult, confidence: float) -> None:
    from synthseg.cli.columns import print_columns

    percent = f"{100 * confidence:g} %"
    headers = ("structure", "controls", "cases", "change", "d", percent, "uncorrected d")
    lines = [
        (
            row.structure,
            f"{row.mean_controls_mm3:.0f}",
            f"{row.mean_cases_mm3:.0f}",
            f"{row.difference_percent:+.1f} %",
            f"{row.cohens_d:.2f}",
            f"{row.d_low:.2f} to {row.d_high:.2f}",
            f"{row.d_uncorrected:.2f}",
        )
        for row in result.rows
    ]
    print_columns("Mean volumes (mm3) and Cohen's d", headers, lines)
    typer.echo()
    first = result.rows[0]
    typer.echo(f"{first.n_controls} controls, {first.n_cases} cases{_others(result)}.")
    typer.echo(f"Corrected for {first.corrected_for} (fit: {first.fit}); variances over {first.variance}.")
    for note in result.notes:
        typer.echo(f"note: {note}")


def _others(result: StudyResult) -> str:
    sizes = {(row.n_controls, row.n_cases) for row in result.rows}
    return " (fewer in some structures: see the notes)" if len(sizes) > 1 else ""
