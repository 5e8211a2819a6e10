"""How far a cohort is, read from its ledger while others may be writing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.cohort.lease import holder_of
from synthseg.cohort.ledger import Ledger


@dataclass(frozen=True)
class CohortState:
    """Scans by state; those that are done by verdict; the run at work, or the last one if it was killed."""

    scans: dict[str, int]
    quality: dict[str, int]
    holder: str

    def to_dict(self) -> dict[str, Any]:
        return {"scans": self.scans, "quality": self.quality, "holder": self.holder}

    @property
    def sentence(self) -> str:
        total = sum(self.scans.values())
        parts = [f"{n} {state}" for state, n in self.scans.items() if n]
        text = f"{total} scan(s): {', '.join(parts)}" if total else "no scans"
        if self.quality:
            text += "; quality: " + ", ".join(f"{n} {verdict}" for verdict, n in self.quality.items())
        return f"{text}; a run is at work on it, or was killed: {self.holder}" if self.holder else text


def state_of(out: Path) -> CohortState:
    """Raises: UsageError where there is no ledger."""
    with Ledger(out) as ledger:
        counts = ledger.counts()
        verdicts = [row.result.get("quality", {}).get("verdict") for row in ledger.rows("done")]
    quality = {name: verdicts.count(name) for name in ("pass", "warn", "fail") if name in verdicts}
    holder = holder_of(out)
    who = f"{holder.get('host', '?')}, process {holder.get('pid', '?')}" if holder else ""
    return CohortState({str(state): n for state, n in counts.items()}, quality, who)


def failures_of(out: Path) -> list[dict[str, Any]]:
    """Scans that failed, in order: subject, source, error and its class, attempts. Raises: UsageError."""
    with Ledger(out) as ledger:
        return [
            {
                "subject": row.job.subject,
                "source": str(row.job.source),
                "error_kind": row.error_kind,
                "error": row.error,
                "attempts": row.attempts,
            }
            for row in ledger.rows("failed")
        ]
