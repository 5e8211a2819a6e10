"""A cohort whose workers follow a script instead of segmenting: what the tests of ledger and coordinator share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from synthseg.cohort import coordinate
from synthseg.cohort.coordinate import Counts, Place
from synthseg.cohort.crew import lost
from synthseg.cohort.progress import Silent
from synthseg.cohort.work import Described, Job, Report, Settings
from synthseg.inference.outputs import output_files
from synthseg.inference.record import describe_input

VOLUMES = {"total intracranial": 1500.5, "left hippocampus": 4.25}


def make_jobs(folder: Path, n: int) -> list[Job]:
    """Jobs for ``n`` files that nobody will read as scans."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    jobs = []
    for index in range(n):
        source = folder / "in" / f"s{index}.nii.gz"
        if not source.exists():
            source.write_bytes(b"scan %d" % index)
        jobs.append(Job(source, f"s{index}", output_files(folder / "out", f"s{index}", Settings().outputs)))
    return jobs


class Script:
    """A crew that does what it is told: ``fates`` are, by subject, what each attempt ends with; then all are done.

    Attributes:
        given: subjects in the order in which they were handed out; ``at_once`` the most in hand.
    """

    def __init__(self, fates: Mapping[str, Sequence[str]] | None = None, workers: int = 2) -> None:
        self.fates = {subject: list(fate) for subject, fate in (fates or {}).items()}
        self.workers = workers
        self.given: list[str] = []
        self.alone: dict[str, bool] = {}
        self.hand: list[Job] = []
        self.before: Callable[[str], None] = lambda _: None

    @property
    def busy(self) -> int:
        return len(self.hand)

    def room(self) -> int:
        return self.workers - len(self.hand)

    def give(self, job: Job, *, overwrite: bool) -> None:
        del overwrite
        assert self.room() > 0
        self.given.append(job.subject)
        self.hand.append(job)
        for other in self.hand:
            self.alone[other.subject] = len(self.hand) == 1

    def reports(self, timeout_s: float) -> list[Report]:
        del timeout_s
        job = self.hand[0]
        self.before(job.subject)
        self.hand.pop(0)
        fates = self.fates.get(job.subject) or ["done"]
        fate = fates.pop(0)
        if fate == "lost":
            return [lost(job, "died")]
        if fate == "failed":
            return [Report(subject=job.subject, status="failed", kind="VolumeError", message=f"{job.source}: bad")]
        for path in job.files.values():
            path.write_text("{}")
        record = {"input": describe_input(job.source), "volumes_mm3": dict(VOLUMES), "notes": []}
        return [Report(subject=job.subject, status="done", record=record, seconds=2.0, worker="here:1")]

    def recall(self) -> list[str]:
        return []

    def close(self) -> None:
        self.hand.clear()


Runner = Callable[..., Counts]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run jobs with a :class:`Script` under settings of our choice: ``run(jobs, out, script, settings, overwrite)``."""

    def run(
        jobs: Sequence[Job], out: Path, script: Script, facts: Mapping[str, object] | None = None, **place: object
    ) -> Counts:
        described = Described({"facts": dict(facts or {}), "synthseg": "1"}, f"digest-{sorted((facts or {}).items())}")
        monkeypatch.setattr(coordinate, "load_segmenter", lambda *_, **__: None)
        monkeypatch.setattr(coordinate, "describe", lambda *_: described)
        monkeypatch.setattr(coordinate, "_crew", lambda *_: script)
        return coordinate.run(jobs, Settings(), Place(out=out, **place), Silent())  # type: ignore[arg-type]

    return run
