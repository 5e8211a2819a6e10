"""Many scans: where they come from, who works on them, the ledger that loses none, and the tables they end in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.cohort.coordinate import Counts, Place, run
    from synthseg.cohort.ledger import Ledger
    from synthseg.cohort.tables import cohort_table
    from synthseg.cohort.work import Job, Settings

__all__ = ["Counts", "Job", "Ledger", "Place", "Settings", "cohort_table", "run"]

__getattr__ = lazy_names(
    __name__,
    {
        "coordinate": ("Counts", "Place", "run"),
        "ledger": ("Ledger",),
        "tables": ("cohort_table",),
        "work": ("Job", "Settings"),
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
