"""What `synthseg segment` says of its scans: one by one as they are done, and of all at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synthseg.errors import one_line

if TYPE_CHECKING:
    from synthseg.inference import BatchResult, Outcome

INTERRUPTED = 130
MANY = 10  # scans


def tell(outcome: Outcome) -> None:
    """Say what became of a scan."""
    name = one_line(str(outcome.job.scan))  # a terminal obeys some characters
    if outcome.status == "failed":
        typer.echo(f"failed: {one_line(outcome.message)}", err=True)
        return
    if outcome.status == "skipped":
        typer.echo(f"skipped: {name}: {one_line(outcome.message)}")
        tell_warnings(outcome)
        return
    total_name, total = next(iter(outcome.volumes_mm3.items()))
    spread = (outcome.intervals_mm3 or {}).get(total_name)
    bar = "" if spread is None else f", 95 % {spread.low / 1000:.0f} to {spread.high / 1000:.0f}"
    typer.echo(f"done: {name} ({outcome.seconds:.1f} s, {total_name} {total / 1000:.0f} ml{bar})")
    if outcome.quality is not None:
        typer.echo(f"  {outcome.quality.sentence}")
    tell_warnings(outcome)
    for note in outcome.notes:
        typer.echo(f"  note: {one_line(note)}")


def tell_warnings(outcome: Outcome) -> None:
    """Say what may be wrong with a scan or its result, each with its code, serious ones first."""
    for warning in outcome.warnings:
        typer.echo(f"  warning: [{warning.code}] {one_line(warning.message)}")


def summarise(result: BatchResult, out: Path, tables: dict[str, Path | None]) -> None:
    """Say what became of the scans; exit 1 if any failed, 130 after an interrupt."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in ("done", "skipped", "failed") if result.count(s))
    places = [f"results in {out}"]
    if not result.table_error:
        places += [f"{what} in {table}" for what, table in tables.items() if table]
    found = result.count("failed") < len(result.outcomes)
    typer.echo(one_line((counts or "nothing done") + ("; " + ", ".join(places) if found else "")))
    _summarise_quality(result)
    _summarise_warnings(result)
    if len(result.outcomes) > MANY:  # the messages have scrolled away by now
        for outcome in result.failed:
            typer.echo(f"  failed: {one_line(str(outcome.job.scan))}", err=True)
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


def _summarise_warnings(result: BatchResult) -> None:
    """How many scans there are warnings on, and of what kind, if there are many scans. Each was told of before."""
    warned = result.warned
    if not warned or len(result.outcomes) == 1:
        return
    codes = Counter(warning.code for outcome in warned for warning in outcome.warnings)
    told = ", ".join(f"{code} {count}" for code, count in codes.most_common())
    typer.echo(f"warnings on {len(warned)} of {len(result.outcomes)} scans: {told}")


def _summarise_quality(result: BatchResult) -> None:
    """How many scans pass, warn and fail, and which fail. Nothing if quality was not asked for."""
    verdicts = {verdict: result.with_verdict(verdict) for verdict in ("pass", "warn", "fail")}
    if any(verdicts.values()):
        typer.echo("quality: " + ", ".join(f"{len(scans)} {verdict}" for verdict, scans in verdicts.items()))
    for outcome in verdicts["fail"]:
        assert outcome.quality is not None  # or it would have no verdict
        typer.echo(f"  {one_line(str(outcome.job.scan))}: {outcome.quality.sentence.removeprefix('quality: ')}")
