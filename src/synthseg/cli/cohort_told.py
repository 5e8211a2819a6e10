"""What ``synthseg cohort`` shows while it works: a bar on a terminal, lines in a log, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synthseg.cli.segment_inputs import write_report
from synthseg.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from synthseg.cohort.coordinate import Counts
    from synthseg.cohort.ledger import State
    from synthseg.cohort.progress import Listener, Tally
    from synthseg.cohort.work import Job, Report, Settings

MANY = 10  # failures that are listed at the end
CITATION = (
    "Please cite: Billot et al., SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without "
    "retraining, Medical Image Analysis 86 (2023) 102789."
)
CITATION_PLUS = (
    "For robust modes, --parc and --qc also: Billot et al., Robust machine learning segmentation for large-scale "
    "analysis of heterogeneous clinical brain MRI datasets, PNAS 120 (2023) e2216399120."
)


@contextmanager
def listening(*, quiet: bool, log_json: bool) -> Iterator[Listener]:
    """Who is told of a run, for as long as it lasts."""
    from synthseg.cohort.progress import JsonLines, Lines, Silent

    if log_json:
        yield JsonLines(_say)
    elif quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _Bar(bar)
    else:
        yield Lines(_complain)


def tell_end(counts: Counts, out: Path, *, quiet: bool, log_json: bool, plus: bool) -> None:
    """The last words: counts and places, what failed, how to go on, what to cite."""
    table = counts.table
    if log_json:
        numbers = {name: getattr(counts, name) for name in ("done", "finished", "failed", "remaining")}
        places = {"out": str(out), "table": str(table.tsv), "parquet": str(table.parquet) if table.parquet else None}
        ended = {"event": "ended", **numbers, "seconds": round(counts.seconds, 1), **places, "notes": list(table.notes)}
        _say(json.dumps(ended))
        return
    if quiet or counts.done > MANY:  # else they are still in sight
        for report in counts.failures[:MANY]:
            _complain(f"failed: {report.message}")
    if len(counts.failures) > MANY:
        _complain(f"{len(counts.failures)} failed now; `synthseg cohort status {out}` says which and why")
    for note in table.notes:
        _complain(f"note: {note}")
    from synthseg.cohort.progress import duration

    before = f", {counts.finished} done before" if counts.finished else ""
    files = table.tsv.name + (f" and {table.parquet.name}" if table.parquet else "")
    _say(
        f"{counts.done} scan(s) done in {duration(counts.seconds)}{before}, {counts.failed} failed; "
        f"ledger and table ({files}) in {out}"
    )
    if counts.failed:
        _complain(f"`synthseg cohort retry {out}` tries the failed ones again")
    if counts.remaining:
        _complain(f"interrupted with {counts.remaining} scan(s) left; the same command again goes on from here")
    if counts.done or counts.finished:
        _say(CITATION + (f" {CITATION_PLUS}" if plus else ""))


def needs_plus(settings: Settings) -> bool:
    """Whether the second paper is to be cited, too."""
    return settings.parcels or settings.quality or settings.mode.startswith("robust")


def tell_report(out: Path, *, log_json: bool) -> None:
    """Write pages of all results into ``OUT/report``, and say where they begin. Raises: as the report does."""
    if not log_json:
        write_report(out)
        return
    from synthseg.report.folder import ReportOptions, write_folder_report

    made = write_folder_report(out, out / "report", ReportOptions())
    _say(json.dumps({"event": "report", "pages": len(made.pages), "begin": str(made.cohort_page or made.pages[0])}))


class _Bar:
    """A bar on a terminal, and failures above it (a :class:`synthseg.cohort.progress.Listener`)."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("reading the ledger", total=None)

    def planned(self, tally: Tally, explained: Sequence[str]) -> None:
        for line in explained:
            self.note(line)
        self.tick(tally)

    def note(self, text: str) -> None:
        self.bar.console.print(f"note: {one_line(text)}", markup=False, highlight=False)

    def begun(self, job: Job) -> None: ...

    def finished(self, report: Report, state: State, tally: Tally) -> None:
        if state != "done":
            what = "failed" if state == "failed" else "lost, tried again later"
            self.bar.console.print(f"{what}: {one_line(report.message)}", markup=False, highlight=False)
        self.tick(tally)

    def tick(self, tally: Tally) -> None:
        completed = tally.total - tally.left
        self.bar.update(self.task, description=tally.sentence, total=tally.total, completed=completed)

    def interrupted(self, in_hand: int) -> None:
        text = f"interrupted: {in_hand} scan(s) in hand are finished first; once more stops at once"
        self.bar.console.print(text, markup=False, highlight=False)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _say(text: str) -> None:
    typer.echo(one_line(text))


def _complain(text: str) -> None:
    typer.echo(one_line(text), err=True)
