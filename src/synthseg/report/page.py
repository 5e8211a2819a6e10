"""One scan's page: the scan under its labels, its volumes in their cohort, its quality with reasons, its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.inference.quality import VERDICTS
from synthseg.inference.tables import write_text
from synthseg.report.embed import Embedded
from synthseg.report.findings import Finding, table_in
from synthseg.report.html import encoded, render
from synthseg.report.identity import Identity
from synthseg.report.standing import LEAST, OUTLYING, Cohort, Standing

BADGES = {"failed": "failed", "fail": "fail", "warn": "warn", "pass": "pass", "not scored": ""}


@dataclass(frozen=True)
class Links:
    """File names of other pages in the same folder; ``previous`` and ``next`` are None at the ends."""

    cohort: str
    previous: str | None = None
    next: str | None = None


def write_scan_page(
    path: Path,
    finding: Finding,
    identity: Identity,
    embedded: Embedded | None,
    *,
    cohort: Cohort,
    cohort_of: str = "",
    notes: Sequence[str] = (),
    links: Links | None = None,
) -> Path:
    """Write one self-contained HTML file.

    Args:
        identity: what the page calls the scan; whatever comes from files is scrubbed by it, and escaped.
        embedded: None for a scan that cannot be shown; ``notes`` then say why.
        cohort: to compare the volumes with; ``cohort_of`` names it.
        links: to the pages of the cohort.
    Raises: OutputError if the file cannot be written.
    """
    text = render(
        "scan.html.j2",
        ("scan.js",),
        viewer=embedded is not None,
        title=f"{identity.id} - synthseg",
        id=identity.id,
        verdict=finding.verdict,
        reasons=[identity.scrub(reason) for reason in reasons_of(finding, standings_of(finding, cohort))],
        notes=[identity.scrub(note) for note in (*finding.notes, *notes)],
        scores=_scores(finding),
        volumes=_volume_rows(finding, embedded, cohort),
        measured=finding.measured,
        cohort_size=cohort.size if cohort.size >= LEAST else 0,
        cohort_of=cohort_of,
        provenance=[(name, identity.scrub(value)) for name, value in provenance_of(finding)],
        created=finding.record.get("created"),
        version=_version(),
        links=links,
        **_embedded_values(embedded),
    )
    write_text(path, text)
    return path


def standings_of(finding: Finding, cohort: Cohort) -> dict[str, Standing]:
    """Where each volume of a scan stands, by structure name."""
    return {name: cohort.standing(name, finding.volumes_mm3) for name in finding.volumes_mm3}


def reasons_of(finding: Finding, standings: Mapping[str, Standing], most: int = 4) -> list[str]:
    """Why to look at this scan: its error, warnings on it, its quality, its most deviating volumes. May be empty."""
    reasons = []
    if finding.error is not None:
        reasons.append(finding.error)
    reasons += [f"{warning.severity} warning [{warning.code}]: {warning.message}" for warning in finding.warnings]
    if finding.quality is not None:
        reasons.append(finding.quality.sentence)
    outlying = [(name, s.deviation) for name, s in standings.items() if s.deviation is not None and s.outlying]
    outlying.sort(key=lambda pair: -abs(pair[1]))
    if outlying:
        told = ", ".join(f"{name} ({deviation:+.1f})" for name, deviation in outlying[:most])
        more = f" and {len(outlying) - most} more" if len(outlying) > most else ""
        reasons.append(f"volumes: beyond {OUTLYING} robust SD of the cohort: {told}{more}")
    return reasons


def provenance_of(finding: Finding) -> list[tuple[str, str]]:
    """How a result came about: scan, weights, settings, versions, as names and values. Nothing says who it is of."""
    record = finding.record
    rows = [("scan, SHA-256", finding.sha256 or "not known")]
    if not record:
        return [*rows, ("record", "none beside the label map: made by another program, or moved")]
    settings = table_in(record, "settings")
    rows.append(("segmented", str(record.get("created", "not known"))))
    every = table_in(settings, "weights")
    for role in every:
        weights = table_in(every, role)
        told = f"{weights.get('name')} ({weights.get('spacing_mm')} mm, SHA-256 {weights.get('sha256')})"
        rows.append((f"weights: {role}", told))
    for part in ("inference", "outputs", "quality"):
        if part in settings:
            told = ", ".join(f"{k} {_plain(v)}" for k, v in table_in(settings, part).items())
            rows.append((f"settings: {part}", told))
    rows.append(("ran on", ", ".join(str(record[key]) for key in ("device", "backend", "precision") if key in record)))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in table_in(record, "versions").items())))
    if "timings_s" in record:
        timings = {k: v for k, v in table_in(record, "timings_s").items() if isinstance(v, int | float)}
        rows.append(("seconds", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in timings.items())))
    if record.get("peak_memory_mib") is not None:
        rows.append(("peak memory", f"{record['peak_memory_mib']} MiB"))
    return rows


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "automatic"}[value]
    return " to ".join(map(str, value)) if isinstance(value, list) and value else str(value)


def _scores(finding: Finding) -> list[dict[str, Any]]:
    if finding.quality is None:
        return []
    rows = []
    for name, score in sorted(finding.quality.scores.items(), key=lambda pair: pair[1]):
        fail, warn = finding.quality.limits(name)
        verdict = finding.quality.verdicts[name]
        rows.append({"name": name, "value": score, "verdict": verdict, "fail": fail, "warn": warn})
    return sorted(rows, key=lambda row: -VERDICTS.index(row["verdict"]))  # the worst first, then the lowest


def _volume_rows(finding: Finding, embedded: Embedded | None, cohort: Cohort) -> list[dict[str, Any]]:
    shown = {s.name: (i, s.color) for i, s in enumerate(embedded.structures)} if embedded is not None else {}
    rows = []
    for name, standing in standings_of(finding, cohort).items():
        index, color = shown.get(name, (None, None))
        rows.append(
            {
                "name": name,
                "mm3": finding.volumes_mm3[name],
                "index": index,
                "color": color,
                "percentile": standing.percentile,
                "deviation": standing.deviation,
                "outlying": standing.outlying,
            }
        )
    return rows


def _embedded_values(embedded: Embedded | None) -> dict[str, Any]:
    if embedded is None:
        return {"embedded": None, "data": None}
    cuts = [{**vars(cut), "grey": encoded(cut.grey_png), "labels": encoded(cut.labels_png)} for cut in embedded.slices]
    sizes = {
        "scan": len(embedded.scan),
        "labels": len(embedded.labels),
        "pictures": sum(len(cut.grey_png) + len(cut.labels_png) for cut in embedded.slices),
    }
    shape = " x ".join(map(str, embedded.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in embedded.spacing_mm)
    shown = {
        "slices": cuts,
        "scan": encoded(embedded.scan),
        "labels": encoded(embedded.labels),
        "sizes": ", ".join(f"{what} {size / 2**20:.2f} MB" for what, size in sizes.items()),
        "grid": f"{shape} voxels of {spacing} mm, 8 bits",
    }
    data = {
        "names": [s.name for s in embedded.structures],
        "colors": [list(s.color) for s in embedded.structures],
        "centres": embedded.centres.round(4).tolist(),
        "start": embedded.start,
    }
    return {"embedded": shown, "data": data}


def _version() -> str:
    from importlib.metadata import version

    return version("synthseg")
