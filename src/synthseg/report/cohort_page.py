"""The cohort's page: every scan in one sortable table, outliers first, distributions, and decisions by keyboard."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.inference.tables import write_text
from synthseg.report.findings import Finding
from synthseg.report.html import encoded, render
from synthseg.report.identity import Identity
from synthseg.report.page import reasons_of, standings_of
from synthseg.report.standing import TOTALS, Cohort, Histogram

SEVERITY = {"failed": 0, "fail": 1, "warn": 2, "pass": 3, "not scored": 3}
MOST_PICTURES = 2000  # of 10 to 15 kB: the first ones, which are the outliers


@dataclass(frozen=True, kw_only=True)
class Row:
    """A scan in the table. ``worst`` is the largest deviation of its volumes; ``page`` a file name or None."""

    identity: Identity
    finding: Finding
    reasons: tuple[str, ...]
    worst: float | None
    page: str | None = None
    picture: bytes | None = None

    @property
    def lowest(self) -> float | None:
        """The lowest predicted Dice of any group."""
        quality = self.finding.quality
        return None if quality is None else min(quality.scores.values())

    @property
    def total_mm3(self) -> float | None:
        """The total volume."""
        return next((self.finding.volumes_mm3[name] for name in TOTALS if name in self.finding.volumes_mm3), None)


def row_of(finding: Finding, identity: Identity, cohort: Cohort) -> Row:
    """A scan's row, its reasons scrubbed."""
    standings = standings_of(finding, cohort)
    deviations = [abs(s.deviation) for s in standings.values() if s.deviation is not None]
    reasons = reasons_of(finding, standings)
    if finding.verdict == "pass":  # the best there is to say is no reason to look
        reasons = [reason for reason in reasons if finding.quality is None or reason != finding.quality.sentence]
    return Row(
        identity=identity,
        finding=finding,
        reasons=tuple(identity.scrub(reason) for reason in reasons),
        worst=max(deviations, default=None),
    )


def outliers_first(rows: Sequence[Row]) -> list[Row]:
    """Failures, then by verdict; within each what warnings are on, serious ones first; then the most deviating."""
    return sorted(
        rows,
        key=lambda row: (SEVERITY[row.finding.verdict], _warned(row), -(row.worst or 0.0), row.identity.id),
    )


def _warned(row: Row) -> int:
    severities = {warning.severity for warning in row.finding.warnings}
    return 0 if "serious" in severities else 1 if severities else 2


def write_cohort_page(path: Path, rows: Sequence[Row], cohort: Cohort) -> Path:
    """Write one self-contained HTML file.

    Args:
        rows: in the order in which they are to be shown.
    Raises: OutputError if the file cannot be written.
    """
    from importlib.metadata import version

    counts = {verdict: sum(row.finding.verdict == verdict for row in rows) for verdict in SEVERITY}
    shown = [_cells(row, with_picture=number < MOST_PICTURES) for number, row in enumerate(rows)]
    volumes = {row.identity.id: dict(row.finding.volumes_mm3) for row in rows}
    histograms = cohort.histograms()
    text = render(
        "cohort.html.j2",
        ("cohort.js",),
        title="Cohort - synthseg",
        rows=shown,
        counts={verdict: count for verdict, count in counts.items() if count},
        histograms=[_drawn(histogram) for histogram in histograms],
        data={
            "keys": {row.identity.id: _key(row) for row in rows},
            "volumes": {
                scan: [_rounded(of_scan.get(histogram.name)) for histogram in histograms]
                for scan, of_scan in volumes.items()
            },
            "pictures": {cells["id"]: cells["picture"] for cells in shown if cells["picture"]},
        },
        more_pictures=len(rows) > MOST_PICTURES,
        version=version("synthseg"),
        created=max((str(row.finding.record.get("created", "")) for row in rows), default=""),
    )
    write_text(path, text)
    return path


def _cells(row: Row, *, with_picture: bool) -> dict[str, object]:
    return {
        "id": row.identity.id,
        "page": row.page,
        "verdict": row.finding.verdict,
        "severity": SEVERITY[row.finding.verdict],
        "lowest": row.lowest,
        "worst": row.worst,
        "total_mm3": row.total_mm3,
        "reasons": row.reasons,
        "picture": encoded(row.picture) if row.picture is not None and with_picture else "",
    }


def _drawn(histogram: Histogram) -> dict[str, object]:
    """Bars in a box of 240 x 60."""
    most, width = max(histogram.counts), 240 / len(histogram.counts)
    bars = [
        {"x": round(i * width, 2), "height": round(58 * count / most, 2), "width": round(width - 1, 2)}
        for i, count in enumerate(histogram.counts)
    ]
    return {**vars(histogram), "bars": bars}


def _rounded(volume: float | None) -> float | None:
    return None if volume is None or not math.isfinite(volume) else round(volume, 1)


def _key(row: Row) -> str:
    """Under what the browser keeps a decision: the same for the same result, whatever folder the page is in and however
    many scans have been added since; another for a scan that was segmented again, which is to be looked at again."""
    result = (row.identity.id, str(row.finding.sha256), str(row.finding.record.get("created")), row.finding.verdict)
    return "synthseg-review-" + hashlib.sha256("\n".join(result).encode()).hexdigest()[:16]
