"""Measurements, kept one file each: an interrupted run goes on where it was, other code starts afresh."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.inference.measure import Measured, measure
from benchmarks.inference.tasks import Task

from synthseg.errors import SynthsegError
from synthseg.evaluation.kept import kept


class Failed(Exception):
    """A command that did not end well: nothing is kept, so that the next run tries again."""


@dataclass
class Results:
    """What was measured, by group and name; ``failed`` says why something was not."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, task: Task, values: dict[str, Any]) -> None:
        self.runs.setdefault(f"{task.group}/{task.name}", []).append(values)

    def median(self, name: str, key: str) -> float | None:
        """Over the rounds; None where it was not measured. ``key`` of the costs, or of what the process said."""
        found = [value for run in self.runs.get(name, []) if (value := look_up(run, key)) is not None]
        return statistics.median(found) if found else None

    def spread(self, name: str, key: str) -> tuple[float, float] | None:
        """Smallest and largest over the rounds."""
        found = [value for run in self.runs.get(name, []) if (value := look_up(run, key)) is not None]
        return (min(found), max(found)) if found else None

    def ratio(self, name: str, to: str, key: str = "cpu_s") -> float | None:
        """Median of one over the median of another."""
        ours, theirs = self.median(name, key), self.median(to, key)
        return None if ours is None or not theirs else ours / theirs


def look_up(run: dict[str, Any], key: str) -> float | None:
    """A number among a run's costs, or what its process said ("again.forward_cpu_s": a table in it)."""
    found: Any = {**run.get("said", {}), **run}
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def run_all(
    tasks: Sequence[Task],
    rounds: dict[str, int],
    folder: Path,
    *,
    threads: int,
    timeout_s: float,
    after: Callable[[Task], dict[str, Any]] | None = None,
) -> Results:
    """Run every task, the contenders in turn, round after round, or take what the folder holds.

    Args:
        rounds: how often, by group.
        after: what to add to a task's first result, when it wrote one.
    """
    results = Results()
    for number in range(max(rounds.values(), default=0)):
        for task in tasks:
            if number < (1 if task.once else rounds.get(task.group, 1)):
                _run(task, number, results, folder, threads, timeout_s, after)
    return results


def _run(
    task: Task,
    number: int,
    results: Results,
    folder: Path,
    threads: int,
    timeout_s: float,
    after: Callable[[Task], dict[str, Any]] | None,
) -> None:
    name = f"{task.group}/{task.name}"
    if task.missing:
        results.failed[name] = task.missing
        return
    made = False

    def make() -> dict[str, Any]:
        nonlocal made
        made = True
        if task.out is not None:
            task.out.parent.mkdir(parents=True, exist_ok=True)
        measured = measure(task.command, threads=threads, settings=task.settings, timeout_s=timeout_s)
        if measured.failed:
            raise Failed(measured.failed)
        values = measured.to_dict()
        return values | (after(task) if after is not None and number == 0 else {})

    began = time.perf_counter()
    path = folder / f"{task.slug}-{number}.json"
    if number == 0 and task.out is not None and not task.out.exists():  # others are compared with it
        path.unlink(missing_ok=True)
    try:
        values = kept(path, make)
    except (Failed, SynthsegError) as error:
        results.failed[name] = str(error)
        print(f"  round {number + 1}, {name}: FAILED {error}", file=sys.stderr, flush=True)
        return
    results.add(task, values)
    note = f"{time.perf_counter() - began:.0f} s" if made else "kept"
    costs = f"{values['cpu_s']:.1f} CPU s, {values['peak_gb']:.2f} GB, load {values['load']:.1f}"
    print(f"  round {number + 1}, {name}: {costs} ({note})", file=sys.stderr, flush=True)


def compare_command(reference: Path, labels: Path) -> Measured:
    """Run :mod:`benchmarks.inference.compare` in a process of its own."""
    command = (sys.executable, "-m", "benchmarks.inference.compare", str(reference), str(labels))
    return measure(command, threads=1)


def write_json(results: Results, facts: dict[str, Any], path: Path) -> None:
    """Everything, for other programs."""
    from synthseg.files import atomic_file

    with atomic_file(path) as file:
        file.write(json.dumps({"facts": facts, "runs": results.runs, "failed": results.failed}, indent=1).encode())
