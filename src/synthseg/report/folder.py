"""A whole folder of results as pages: one a scan, one for all of them, and the key from ids to scans."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthseg.errors import SynthsegError
from synthseg.inference.record import describe_input
from synthseg.inference.tables import write_text
from synthseg.report.cohort_page import Row, outliers_first, row_of, write_cohort_page
from synthseg.report.embed import Embedded, embed, prepare
from synthseg.report.findings import Finding, find_results, finding_of, structures_of
from synthseg.report.html import printable, require_page_tools
from synthseg.report.identity import Naming, identify
from synthseg.report.page import Links, write_scan_page
from synthseg.report.standing import Cohort
from synthseg.volumes import read_volume

COHORT_PAGE, KEY_FILE = "index.html", "report-ids.tsv"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How pages are made.

    Attributes:
        naming: what pages call a scan: "hidden", "bids" or "files" (``identity.py``).
        whole_head: show all of the scan (``embed.prepare``).
        scans: a folder to look for scans in that are not where their record says.
        protocols: label tables for values that no shipped protocol has.
        volumes: of a cohort to compare with, by subject; None compares the scans of the folder with each other.
    """

    naming: Naming = "hidden"
    whole_head: bool = False
    scans: Path | None = None
    protocols: tuple[str, ...] = ()
    volumes: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Report:
    """What was written.

    ``without_picture`` are ids of scans whose page shows no scan, with the reason. ``leftovers`` are pages that were in
    the folder before and are not of this report: they may show names that this one hides.
    """

    pages: tuple[Path, ...]
    cohort_page: Path | None
    key: Path | None
    without_picture: tuple[tuple[str, str], ...]
    leftovers: tuple[Path, ...] = ()


def write_folder_report(
    results: Path,
    out: Path,
    options: ReportOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Pages of every result in a folder and its subfolders.

    Writes ``ID.html`` of every scan and ``index.html`` into ``out``. ``report-ids.tsv``, which says whose id is whose,
    goes into ``results``, not beside the pages, so that a folder of pages can be given away.

    Args:
        progress: hears after each page how many of how many are there.
    Raises: UsageError without results or without what draws pages; OutputError if a file cannot be written. A scan that
        cannot be shown has a page that says why, and stops no others.
    """
    require_page_tools()
    findings = find_results(results)
    taken = {Path(COHORT_PAGE).stem}
    identities = [
        identify(f.scan, f.sha256, i + 1, options.naming, taken, results=f.labels or f.record_path)
        for i, f in enumerate(findings)
    ]
    cohort, cohort_of = _cohort(findings, options)
    rows = outliers_first([row_of(f, i, cohort) for f, i in zip(findings, identities, strict=True)])
    names = [f"{row.identity.id}.html" for row in rows]
    pages, hidden, finished = [], [], []
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        embedded, notes = _shown(row.finding, options)
        around = [names[n] if 0 <= n < len(names) else None for n in (number - 1, number + 1)]
        page = write_scan_page(
            out / name,
            row.finding,
            row.identity,
            embedded,
            cohort=cohort,
            cohort_of=cohort_of,
            notes=notes,
            links=Links(COHORT_PAGE, *around),
        )
        pages.append(page)
        if embedded is None and row.finding.error is None:
            hidden.append((row.identity.id, row.identity.scrub(notes[-1])))
        finished.append(replace(row, page=name, picture=None if embedded is None else embedded.thumbnail))
        if progress is not None:
            progress(number + 1, len(rows))
    index = write_cohort_page(out / COHORT_PAGE, finished, cohort)
    key = _write_key(results / KEY_FILE, finished)
    leftovers = sorted(set(out.glob("*.html")) - {index, *pages})
    return Report(tuple(pages), index, key, tuple(hidden), tuple(leftovers))


def write_pair_report(scan: Path, labels: Path, page: Path, options: ReportOptions) -> Report:
    """The page of one scan and its label map.

    Raises: UsageError, VolumeError or ShapeError for files that are no such pair, OutputError if it cannot be written.
    """
    require_page_tools()
    finding = replace(finding_of(scan, labels, options.protocols), scan=scan)
    identity = identify(scan, finding.sha256, 1, options.naming, set(), results=labels)
    cohort, cohort_of = _cohort([finding], options)
    embedded, notes = _embedded(finding, scan, options)
    write_scan_page(page, finding, identity, embedded, cohort=cohort, cohort_of=cohort_of, notes=notes)
    hidden = ((identity.id, identity.scrub(notes[-1])),) if embedded is None else ()
    return Report((page,), None, None, hidden)


def _cohort(findings: Sequence[Finding], options: ReportOptions) -> tuple[Cohort, str]:
    if options.volumes is not None:
        return Cohort(list(options.volumes.values())), " of the table that was given"
    return Cohort([finding.volumes_mm3 for finding in findings if finding.volumes_mm3]), " of this folder"


def _shown(finding: Finding, options: ReportOptions) -> tuple[Embedded | None, list[str]]:
    """The pictures of a scan, or none and last of the notes why."""
    if finding.error is not None:
        return None, []
    if finding.labels is None:
        return None, ["no picture: there is no label map"]
    scan = _find_scan(finding, options.scans)
    if scan is None:
        return None, ["no picture: the scan is not where it was (say where with --scans)"]
    try:
        if finding.sha256 is not None and describe_input(scan)["sha256"] != finding.sha256:
            return None, ["no picture: the scan is not the one that was segmented any more"]
        return _embedded(finding, scan, options)
    except (SynthsegError, OSError) as error:
        return None, [f"no picture: {error}"]


def _find_scan(finding: Finding, folder: Path | None) -> Path | None:
    """The scan where its record says, seen from here or from the record; or by its name in ``folder``."""
    places = [finding.scan]
    if finding.record_path is not None:
        places += [finding.record_path.parent / part for part in (finding.scan, finding.scan.name)]
    if folder is not None:
        places.append(folder / finding.scan.name)
    return next((place for place in places if place.is_file()), None)


def _embedded(finding: Finding, scan: Path, options: ReportOptions) -> tuple[Embedded | None, list[str]]:
    """The pictures of a pair, or none and why: labels say where a face is, so that nothing is shown without any."""
    assert finding.labels is not None
    labels = read_volume(finding.labels, labels=True)
    if not options.whole_head and not labels.data.any():
        return None, ["no picture: there is no label, so that nothing says where a face may be (see --whole-head)"]
    structures = structures_of(np.unique(labels.data).tolist(), finding.record, options.protocols)
    image, label_map, notes = prepare(read_volume(scan), labels, whole_head=options.whole_head)
    return embed(image, label_map, structures), list(notes)


def _write_key(path: Path, rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "scan", "labels"])
    for row in sorted(rows, key=lambda row: str(row.finding.scan)):
        writer.writerow([row.identity.id, str(row.finding.scan), str(row.finding.labels or "n/a")])
    write_text(path, printable(text.getvalue()))
    return path
