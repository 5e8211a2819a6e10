"""A warning on a scan: why its result should be looked at before it is used. Which there are: ``scan_checks.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["caution", "serious"]
SEVERITIES = ("serious", "caution")
RESEARCH_USE = "For research use only: not a medical device."


@dataclass(frozen=True)
class ScanWarning:
    """One sentence on one scan. ``serious``: the result is probably wrong; ``caution``: it may be."""

    code: str
    severity: Severity
    message: str
