"""What became of the scans of a batch, and how a batch is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from synthseg.errors import SynthsegError
from synthseg.inference.age import Age
from synthseg.inference.discovery import Job
from synthseg.inference.outputs import OverlayWriter
from synthseg.inference.quality import Quality, Verdict
from synthseg.inference.scan_warnings import ScanWarning
from synthseg.inference.segmentation import Interval

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one scan. ``message`` says why it failed or was skipped; ``error`` is the exception itself.

    ``seconds`` were spent on this scan: reading, computing, writing, whatever happened to others at the same time.
    """

    job: Job
    status: Status
    message: str = ""
    notes: tuple[str, ...] = ()
    volumes_mm3: dict[str, float] = field(default_factory=dict)
    intervals_mm3: dict[str, Interval] | None = None
    quality: Quality | None = None
    seconds: float = 0.0
    error: BaseException | None = None
    warnings: tuple[ScanWarning, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """Outcomes in order; ``remaining`` are the jobs not begun or not finished when the user interrupted.

    ``table_error`` is why a table lacks rows at the end. The scans themselves are done: the next run puts the rows back
    from their records.
    """

    outcomes: tuple[Outcome, ...]
    remaining: tuple[Job, ...] = ()
    table_error: SynthsegError | None = None

    @property
    def interrupted(self) -> bool:
        return bool(self.remaining)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def count(self, status: Status) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def warned(self) -> tuple[Outcome, ...]:
        """The scans, done now or earlier, that there is a warning on."""
        return tuple(outcome for outcome in self.outcomes if outcome.warnings)

    def with_verdict(self, verdict: Verdict) -> tuple[Outcome, ...]:
        """The scans, done now or earlier, whose predicted quality has this verdict."""
        return tuple(outcome for outcome in self.outcomes if outcome.quality and outcome.quality.verdict == verdict)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is run.

    ``table`` collects volumes, ``quality_table`` predicted Dice (the segmenter must predict it), ``warnings_table``
    warnings; ``age_of`` says how old who is on a scan was, where that is known (``age.py``); ``overlay`` draws
    pictures. ``starting`` hears of each job whose turn it is, ``progress`` each outcome, in order and as soon as all of
    its files are there: in a batch that overlaps, from the thread that wrote them.

    ``overlap`` reads the next scan and writes the last one while one is computed. None: when there are several scans
    and several threads (``--threads 1`` keeps one core busy, not three), no posteriors to write, whose gigabyte should
    not be in memory together with the next scan's, and no limit of main memory, which is meant for a scan alone.
    """

    overwrite: bool = False
    table: Path | None = None
    quality_table: Path | None = None
    warnings_table: Path | None = None
    age_of: Callable[[Path], Age | None] | None = None
    overlay: OverlayWriter | None = None
    starting: Callable[[Job], object] | None = None
    progress: Callable[[Outcome], object] | None = None
    overlap: bool | None = None
