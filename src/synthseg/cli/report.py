"""`synthseg report`: pages to trust results by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthseg.report.folder import Report

PAGES = (".html", ".htm")
Places = Annotated[
    list[Path],
    typer.Argument(help="a folder of results by `synthseg segment`; or a scan and its label map", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="a folder of pages (default: report/ in the results), or one page.html"),
]
Names = Annotated[
    str,
    typer.Option(help="what pages call a scan: hidden (an id), bids (sub-... of BIDS names) or files (file names)"),
]
CohortTable = Annotated[
    Path | None, typer.Option("--cohort", help="volumes to compare with: a table by `synthseg segment --volumes`")
]
Protocols = Annotated[list[str] | None, typer.Option("--protocol", help="label table for values of your own")]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("report")(report)


def report(
    places: Places,
    out: Out = None,
    cohort: CohortTable = None,
    names: Names = "hidden",
    whole_head: Annotated[bool, typer.Option("--whole-head", help="show the face too")] = False,
    scans: Annotated[Path | None, typer.Option(help="folder of the scans, if they were moved")] = None,
    protocol: Protocols = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors")] = False,
) -> None:
    """Self-contained HTML pages that open offline: one a scan, and one for all of a folder's scans.

    Names of files are not shown unless asked for, nor faces; what is found beside the brain is black.
    """
    from synthseg.errors import UsageError
    from synthseg.evaluation.subjects import read_volumes
    from synthseg.report.folder import ReportOptions, write_folder_report, write_pair_report
    from synthseg.report.identity import check_naming

    options = ReportOptions(
        naming=check_naming(names),
        whole_head=whole_head,
        scans=scans,
        protocols=tuple(protocol or ()),
        volumes=None if cohort is None else read_volumes(cohort),
    )
    if len(places) == 2 and all(not place.is_dir() for place in places):
        page = out if out is not None else Path("report.html")
        if page.suffix.lower() not in PAGES:
            raise UsageError(page, found="no name of a page", fix="name it .html")
        made = write_pair_report(places[0], places[1], page, options)
    elif len(places) == 1:
        if out is not None and out.suffix.lower() in PAGES:
            fix = "give a folder, or for one page a scan and its label map"
            raise UsageError(out, found="one page for a folder of results", fix=fix)
        made = write_folder_report(places[0], out or places[0] / "report", options, progress=_progress(quiet))
    else:
        fix = "give one folder of results, or a scan and its label map"
        raise UsageError("synthseg report", found=f"{len(places)} places", fix=fix)
    if not quiet:
        _tell(made)


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    import sys

    if quiet or not sys.stderr.isatty():
        return None
    return lambda done, of: typer.echo(f"\r{done} of {of} pages", err=True, nl=done == of)


def _tell(made: Report) -> None:
    for name, why in made.without_picture:
        typer.echo(f"{name}: {why}")
    if made.cohort_page is None:
        typer.echo(f"page written to {made.pages[0]}")
        return
    typer.echo(f"{len(made.pages)} pages written; begin with {made.cohort_page}")
    typer.echo(f"which id is whose: {made.key}")
    if made.leftovers:
        typer.echo(f"older pages that are not part of this report are still there: {len(made.leftovers)}")
