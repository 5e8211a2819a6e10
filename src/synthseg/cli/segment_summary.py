"""What `synthseg segment` says of its scans: one by one as they are done, and of all at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from synthseg.inference import BatchResult, Outcome

INTERRUPTED = 130
MANY = 10  # scans


def tell(outcome: Outcome) -> None:
    """Say what became of a scan."""
    name = outcome.job.scan
    if outcome.status == "failed":
        typer.echo(f"failed: {outcome.message}", err=True)
        return
    if outcome.status == "skipped":
        typer.echo(f"skipped: {name}: {outcome.message}")
        return
    total_name, total = next(iter(outcome.volumes_mm3.items()))
    spread = (outcome.intervals_mm3 or {}).get(total_name)
    bar = "" if spread is None else f", 95 % {spread.low / 1000:.0f} to {spread.high / 1000:.0f}"
    typer.echo(f"done: {name} ({outcome.seconds:.1f} s, {total_name} {total / 1000:.0f} ml{bar})")
    if outcome.quality is not None:
        typer.echo(f"  {outcome.quality.sentence}")
    for note in outcome.notes:
        typer.echo(f"  note: {note}")


def summarise(result: BatchResult, out: Path, tables: dict[str, Path | None]) -> None:
    """Say what became of the scans; exit 1 if any failed, 130 after an interrupt."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in ("done", "skipped", "failed") if result.count(s))
    places = [f"results in {out}"]
    if not result.table_error:
        places += [f"{what} in {table}" for what, table in tables.items() if table]
    found = result.count("failed") < len(result.outcomes)
    typer.echo((counts or "nothing done") + ("; " + ", ".join(places) if found else ""))
    _summarise_quality(result)
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


def _summarise_quality(result: BatchResult) -> None:
    """How many scans pass, warn and fail, and which fail. Nothing if quality was not asked for."""
    verdicts = {verdict: result.with_verdict(verdict) for verdict in ("pass", "warn", "fail")}
    if any(verdicts.values()):
        typer.echo("quality: " + ", ".join(f"{len(scans)} {verdict}" for verdict, scans in verdicts.items()))
    for outcome in verdicts["fail"]:
        assert outcome.quality is not None  # or it would have no verdict
        typer.echo(f"  {outcome.job.scan}: {outcome.quality.sentence.removeprefix('quality: ')}")
