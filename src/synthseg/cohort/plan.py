"""Which scans of a cohort are to be done, and why: what the ledger says, held against the disk as it is now."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.cohort.ledger import Ledger, Row, State
from synthseg.cohort.work import Described, Job, Report, Settings
from synthseg.configs import flatten
from synthseg.errors import UsageError
from synthseg.files import sweep_parts
from synthseg.inference.record import describe_input, failure_file, read_record, still_holds
from synthseg.reading import exists, is_file

NEW, AGAIN = "new", "--overwrite"
FINISHED = "its files and record were there already"
_LOOKERS = 16  # threads that look at files: on a network disk each look is a round trip


@dataclass(frozen=True)
class Plan:
    """What a run begins with.

    Attributes:
        todo: jobs in order.
        finished, failed: scans of this run that stay done, or failed.
        explained: sentences on what is done again, or was left by runs that are gone.
    """

    todo: tuple[Job, ...]
    finished: int
    failed: int
    explained: tuple[str, ...]


def make_plan(
    ledger: Ledger,
    jobs: Sequence[Job],
    settings: Settings,
    described: Described,
    *,
    overwrite: bool = False,
    failures: bool = False,
) -> Plan:
    """Bring the ledger up to date with the jobs of a run, and say which of them are to be done.

    A scan is done again when its input, the settings, the weights or the version of synthseg are others, or a file is
    gone. One that failed stays failed under the same circumstances. What another command has finished in the same
    folder, or a worker whose coordinator died, is taken in as done.

    Args:
        failures: take in, too, that a scan failed with these settings, as the file in place of its record says.
    Raises: UsageError for two scans of one name, in one run or the runs so far.
    """
    explained = []
    left = ledger.put_back(why="left unfinished by a run that was killed")
    if left:
        explained.append(f"{left} scan(s) were left unfinished by a run that was killed")
    _check_names(jobs)
    known = {row.job.subject: row for row in ledger.rows()}
    swept = sweep_parts(path for job in jobs for path in job.files.values())
    listing = _Listing()
    if swept:
        explained.append(f"removed {swept} file(s) that a killed run had not finished writing")
    with ThreadPoolExecutor(_LOOKERS) as lookers:
        decisions = list(lookers.map(lambda job: _decide(job, known.get(job.subject), described, listing), jobs))
    if overwrite:
        decisions = [("waiting", AGAIN) for _ in jobs]
    ledger.enlist([(job, *how) for job, how in zip(jobs, decisions, strict=True)], settings, described)
    if not overwrite and (settings.after is None or failures):  # workers have called it, too
        decisions = _take_in(ledger, jobs, decisions, described, listing)
    if failures:
        decisions = _take_in_failures(ledger, jobs, decisions, described, listing)
    explained += _explain(jobs, decisions, known, described, ledger)
    states = [state for state, _ in decisions]
    todo = tuple(job for job, state in zip(jobs, states, strict=True) if state == "waiting")
    return Plan(todo, states.count("done"), states.count("failed"), tuple(explained))


def stamp_of(path: Path) -> dict[str, Any]:
    """Bytes and time of change of a file, empty where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return {}
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def sha256_of(path: Path) -> str | None:
    """Of a file's content; None for one that cannot be read."""
    try:
        return str(describe_input(path)["sha256"]) if is_file(path) else None
    except OSError:
        return None


def _check_names(jobs: Sequence[Job]) -> None:
    sources: dict[str, Path] = {}
    for job in jobs:
        other = sources.setdefault(job.subject, job.source)
        if other != job.source:
            found = f"two scans of one name, {other} and {job.source}"
            raise UsageError(job.subject, found=found, fix="rename one of them, or run them into two folders")


def _decide(job: Job, row: Row | None, described: Described, listing: _Listing) -> tuple[State, str]:
    """State and reason, from what the ledger says and the files are now."""
    if row is None:
        return "waiting", NEW
    source = Path(job.source).absolute()
    if source != row.job.source and exists(row.job.source):
        found = f"another scan of that name in the ledger, {row.job.source}"
        raise UsageError(source, found=found, fix="rename one of them, or run them into two folders")
    if row.state == "waiting" and not row.losses:  # losses are of these settings and this input
        return "waiting", row.why
    if row.settings != described.digest:
        return "waiting", "settings changed"
    if _changed(source, row):
        return "waiting", "input changed"
    if row.state == "done" and not all(path in listing for path in job.files.values()):
        return "waiting", "a file is missing"
    return row.state, row.why


def _changed(source: Path, row: Row) -> bool:
    size, mtime_ns, sha256 = row.stamp
    stamp = stamp_of(source)
    if stamp.get("bytes") != size:
        return True
    if stamp.get("mtime_ns") == mtime_ns:
        return False
    # A copy has another time: worth reading it.
    return sha256 is None or bool(stamp and sha256_of(source) != sha256)


def _take_in(
    ledger: Ledger,
    jobs: Sequence[Job],
    decisions: Sequence[tuple[State, str]],
    described: Described,
    listing: _Listing,
) -> list[tuple[State, str]]:
    """Waiting scans whose record on the disk tells of these very settings are done."""
    taken = list(decisions)
    settings = {key: value for key, value in described.settings.items() if key != "synthseg"}
    for index, (job, (state, why)) in enumerate(zip(jobs, decisions, strict=True)):
        if state != "waiting" or why == "input changed" or not all(p in listing for p in job.files.values()):
            continue
        record = read_record(job.files["record"])
        if record is not None and still_holds(record, settings, job.source):
            report = Report(subject=job.subject, status="skipped", message=FINISHED, record=record)
            ledger.settle(report, "done", described, record["input"])
            taken[index] = ("done", FINISHED)
    return taken


def _take_in_failures(
    ledger: Ledger,
    jobs: Sequence[Job],
    decisions: Sequence[tuple[State, str]],
    described: Described,
    listing: _Listing,
) -> list[tuple[State, str]]:
    """Waiting scans of which a worker wrote down that they failed with these very settings."""
    taken = list(decisions)
    settings = {key: value for key, value in described.settings.items() if key != "synthseg"}
    for index, (job, (state, _)) in enumerate(zip(jobs, decisions, strict=True)):
        path = failure_file(job.files["record"])
        if state != "waiting" or path not in listing:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == settings:
                kind, message = str(found["error"]["kind"]), str(found["error"]["message"])
                report = Report(subject=job.subject, status="failed", kind=kind, message=message)
                ledger.settle(report, "failed", described, stamp_of(job.source))
                taken[index] = ("failed", "")
    return taken


def _explain(
    jobs: Sequence[Job],
    decisions: Iterable[tuple[State, str]],
    known: Mapping[str, Row],
    described: Described,
    ledger: Ledger,
) -> list[str]:
    again: dict[str, list[Job]] = {}
    for job, (state, why) in zip(jobs, decisions, strict=True):
        if state == "done" and why == FINISHED:
            again.setdefault(FINISHED, []).append(job)
        elif state == "waiting" and job.subject in known and known[job.subject].state in ("done", "failed"):
            again.setdefault(why, []).append(job)
    lines = []
    for why, affected in again.items():
        some = ", ".join(job.subject for job in affected[:3]) + (", ..." if len(affected) > 3 else "")
        what = f"{len(affected)} scan(s) need no work" if why == FINISHED else f"{len(affected)} scan(s) are done again"
        lines.append(f"{what} ({some}): {why}")
        if why == "settings changed":
            digests = {known[job.subject].settings for job in affected}
            lines += [f"  {line}" for digest in sorted(digests) for line in _differences(ledger, digest, described)]
    return lines


def _differences(ledger: Ledger, digest: str, described: Described) -> list[str]:
    before, after = flatten(ledger.described(digest) or {}), flatten(described.settings)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {_said(before, name)} -> {_said(after, name)}" for name in names]


def _said(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(nothing)"
    text = str(values[name])
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Listing:
    """Which output files there are: each folder is read once, not each file asked for."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        return path.name in self._of(path.parent)

    def _of(self, folder: Path) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = {entry.name for entry in os.scandir(folder)}
            except OSError:
                self._names[folder] = set()
        return self._names[folder]
