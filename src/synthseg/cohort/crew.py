"""What the coordinator asks of those who do the work, whether processes of this machine or a cluster."""

from __future__ import annotations

from typing import Protocol

from synthseg.cohort.work import Job, Report, worker_name
from synthseg.errors import SynthsegError


class Crew(Protocol):
    """Workers. All methods are called from one thread."""

    @property
    def busy(self) -> int:
        """Jobs given and not reported yet."""
        ...

    def room(self) -> int:
        """How many more jobs can be given now, so that no worker waits and not more than that is in flight."""
        ...

    def give(self, job: Job, *, overwrite: bool) -> None:
        """Hand over a job; there must be room."""
        ...

    def reports(self, timeout_s: float) -> list[Report]:
        """What has been finished or lost; waits for at most ``timeout_s`` seconds for the first.

        Raises: SynthsegError when there is nobody left who could work.
        """
        ...

    def recall(self) -> list[str]:
        """Take back the jobs that nobody has begun. Returns: their subjects."""
        ...

    def close(self) -> None:
        """Let everyone go, also those at work."""
        ...


def lost(job: Job, how: str, *, worker: str = "", seconds: float = 0.0) -> Report:
    """The report of a job that went down with its worker; ``how`` it went."""
    fix = "use fewer --workers or a smaller --memory; `synthseg cohort retry` tries it again"
    error = SynthsegError(job.source, found=f"a worker that {how} while at work on it", fix=fix)
    return Report(
        subject=job.subject,
        status="lost",
        kind="WorkerLost",
        message=str(error),
        worker=worker or worker_name(),
        seconds=round(seconds, 3),
    )
