"""``synthseg bids``: the participant level segments a dataset, the group level makes one table of what there is.

Runs on all participants share one ledger in the derivative's folder. A run on some of them has a ledger of its own, so
that a cluster may run one job a participant at the same time; the group level takes in what all of them have finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg.cohort.bids import DESCRIPTION, Choice, Found, Query, find_scans
from synthseg.cohort.derivatives import LOGS, plan, start_dataset
from synthseg.cohort.texts import read_json, tsv, write_json, write_text
from synthseg.cohort.work import Job, Settings
from synthseg.errors import SynthsegError, UsageError

if TYPE_CHECKING:
    from synthseg.cohort.tables import CohortTable

LEFT_OUT = "left_out.tsv"
KEPT = "plan.json"  # in the logs: what the participant level was asked for, so that the group level need not be told
AFTER = "synthseg.cohort.sidecars:complete"
GB_A_WORKER = 3.0  # of main memory; a head takes about 1 GB with the shipped weights, 2 GB with networks at 1 mm


@dataclass(frozen=True)
class Shares:
    """How the cores and memory of a run are divided. None: not said."""

    workers: int | None
    threads: int | None
    memory: str | None


def divide(n_cpus: int | None, mem_gb: float | None, device: str) -> Shares:
    """Workers, threads of each and memory of each for ``--n-cpus`` and ``--mem-gb``, which mean the whole run.

    Workers are as many as the cores and, at ``GB_A_WORKER`` each, the memory allow. Memory is limited where the
    networks run on the CPU: main memory it is that is meant.
    """
    from synthseg.cohort.pool import CORES_A_WORKER, lay_out
    from synthseg.engine.machine import usable_cores

    places = lay_out(device, None, None).devices
    on_cpu = places[0] == "cpu"
    if n_cpus is None and mem_gb is None:
        return Shares(None, None, None)
    cores = n_cpus or usable_cores()
    workers = max(1, cores // CORES_A_WORKER) if on_cpu else len(places)
    if mem_gb is not None:
        workers = max(1, min(workers, int(mem_gb / GB_A_WORKER)))
    memory = None
    if mem_gb is not None and on_cpu:
        memory = f"{int(mem_gb * 2**30 / workers / 2**20)}M"
    return Shares(workers, max(1, cores // workers), memory)


def check_dataset(dataset: Path) -> None:
    """That a folder says it is a BIDS dataset, which ``--skip-bids-validation`` leaves out.

    Raises: UsageError for a description that is missing, no JSON, or without the fields that the standard requires.
    """
    file = dataset / DESCRIPTION
    again = "mend it, or pass --skip-bids-validation"
    if not file.is_file():
        raise UsageError(file, found="no such file, which every BIDS dataset has", fix=again)
    try:
        about = read_json(file)
    except SynthsegError as error:
        raise UsageError(file, found=error.found, fix=again) from error
    missing = [key for key in ("Name", "BIDSVersion") if not isinstance(about.get(key), str)]
    if missing:
        raise UsageError(file, found=f"no {' and no '.join(missing)}", fix=again)


def participants_table(dataset: Path) -> Path | None:
    """The dataset's ``participants.tsv``, if it has one."""
    file = dataset / "participants.tsv"
    return file if file.is_file() else None


def is_part(choice: Choice) -> bool:
    """Whether a run is on some participants or sessions only."""
    return bool(choice.participants or choice.sessions)


def ledger_folder(out: Path, choice: Choice) -> Path:
    """Where a run's ledger lies: in the derivative's folder, or apart for some of the participants or sessions."""
    if not is_part(choice):
        return out
    some = sorted({f"sub-{label.removeprefix('sub-')}" for label in choice.participants})
    some += sorted({f"ses-{label.removeprefix('ses-')}" for label in choice.sessions})
    name = "_".join(some)
    if len(name) > 60:
        name = f"{len(some)}-labels-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return out / LOGS / "runs" / name


@dataclass(frozen=True)
class Kept:
    """What the participant level was last asked for."""

    settings: Settings
    suffixes: tuple[str, ...]
    queries: tuple[Query, ...]


def keep(out: Path, settings: Settings, choice: Choice) -> None:
    """Write down what the participant level was asked for. Raises: OutputError."""
    queries = [{key: None if values is None else list(values) for key, values in q.items()} for q in choice.queries]
    values = {"settings": settings.to_dict(), "suffixes": list(choice.suffixes), "queries": queries}
    write_json(out / LOGS / KEPT, values)


def kept(out: Path) -> Kept:
    """What :func:`keep` wrote. Raises: UsageError where there is nothing, or something else."""
    file = out / LOGS / KEPT
    if not file.is_file():
        fix = "run `synthseg bids ... participant` first"
        raise UsageError(out, found="no results of the participant level", fix=fix)
    said = read_json(file, any_name=True)
    try:
        queries = tuple({k: None if v is None else tuple(v) for k, v in query.items()} for query in said["queries"])
        return Kept(Settings.from_dict(said["settings"], where=str(file)), tuple(said["suffixes"]), queries)
    except (KeyError, TypeError, AttributeError) as error:
        fix = "run `synthseg bids ... participant` again"
        raise UsageError(file, found="something else than what the participant level writes", fix=fix) from error


def settings_of(given: Settings) -> Settings:
    """The settings of a derivative: a colour table of every scan, and its sidecars after every scan."""
    return replace(given, outputs=replace(given.outputs, color_table=True), after=AFTER)


def prepare_participants(dataset: Path, out: Path, settings: Settings, choice: Choice) -> tuple[list[Job], Found]:
    """Find the scans, begin the derivative, and plan the jobs.

    Returns: the jobs, and what was found and left out, of which a table is written, too.
    Raises: UsageError, OutputError: see :func:`find_scans`, :func:`plan` and :func:`start_dataset`.
    """
    found = find_scans(dataset, choice)
    jobs = plan(found.scans, out, settings.outputs)
    start_dataset(out, dataset)
    keep(out, settings, choice)
    lines = [("left_out", "why"), *((one.path.relative_to(dataset).as_posix(), one.why) for one in found.left_out)]
    write_text(ledger_folder(out, choice) / LEFT_OUT if is_part(choice) else out / LOGS / LEFT_OUT, tsv(lines))
    return jobs, found


def group_table(dataset: Path, out: Path, participants: Path | None = None) -> CohortTable:
    """One table of all scans that the participant level has finished, with the covariates of ``participants.tsv``.

    Raises: UsageError where the participant level has not been run, or a run on all participants still works.
    """
    from synthseg.cohort.coordinate import collect
    from synthseg.cohort.tables import cohort_table

    before = kept(out)
    found = find_scans(dataset, Choice(suffixes=before.suffixes, queries=before.queries))
    jobs = plan(found.scans, out, before.settings.outputs)
    collect(jobs, replace(before.settings, after=None), out, failures=True)
    return cohort_table(out, participants or participants_table(dataset))
