"""How one sitting of a run goes, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How this session runs; nothing here but ``init`` changes what is computed.

    Raises: UsageError for a thread count below 1 or a negative time limit.
    """

    out: Path  # run folder
    resume: bool = False
    max_minutes: float | None = None
    init: str | Path | None = None  # weights to start from
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError("threads", found=repr(self.threads), fix="give at least 1, or leave it out for all cores")
        if self.max_minutes is not None and not self.max_minutes >= 0:
            raise UsageError("max_minutes", found=repr(self.max_minutes), fix="give 0 or more minutes")


@dataclass(frozen=True)
class RunResult:
    """Where a run stands when its session ends."""

    step: int
    finished: bool
    weights: Path | None
    scores: dict[str, float]
