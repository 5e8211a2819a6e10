"""Array scripts for sites whose queueing system is to do the work without Dask."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthseg.cohort.ledger import Ledger
from synthseg.cohort.work import Report, Workman, refused
from synthseg.errors import UsageError, one_line
from synthseg.files import atomic_file

SCRIPT_NAME = "cohort.slurm.sh"


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """What the queueing system is asked for, for each task of the array.

    Attributes:
        tasks: of the array; each takes every ``tasks``-th scan that is not done.
        at_once: tasks that may run at the same time; None: as many as the site allows.
        memory, hours: of a task. more: further ``#SBATCH`` options, e.g. ``("--partition=long",)``.
    """

    tasks: int = 10
    at_once: int | None = None
    cores: int = 4
    memory: str = "8G"
    hours: float = 24.0
    more: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("tasks", "cores", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(name, found=str(value), fix="use a number of at least 1")
        if not self.hours > 0:
            raise UsageError("hours", found=str(self.hours), fix="use a number above 0")
        for text in (self.memory, *self.more):
            _require_one_line("an option of sbatch", text)


def array_script(out: Path, options: ArrayOptions, *, command: Sequence[str] = ("synthseg",)) -> str:
    """The text of a script for ``sbatch``: the array, and once it has ended the job that brings the ledger up to date.

    Submitted again, it does what is left.

    Args:
        out: the cohort's folder, whose ledger says what is to be done.
        command: how synthseg is called on the nodes.
    Raises: UsageError for a folder whose name would end a line of the script, and so begin a command.
    """
    _require_one_line("the cohort's folder", str(out.absolute()))
    minutes = max(1, round(options.hours * 60))
    share = "" if options.at_once is None else f"%{options.at_once}"
    folder, called = shlex.quote(str(out.absolute())), shlex.join(command)
    log = out.absolute() / "slurm-%A_%a.log"
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=synthseg",
        f"#SBATCH --array=0-{options.tasks - 1}{share}",
        f"#SBATCH --cpus-per-task={options.cores}",
        f"#SBATCH --mem={options.memory}",
        f"#SBATCH --time={minutes // 60}:{minutes % 60:02d}:00",
        f"#SBATCH --output={shlex.quote(str(log))}",
        *(f"#SBATCH {more}" for more in options.more),
        "",
        "# The first task sends one more job: it waits for the whole array, however that ends, and fills the ledger.",
        'if [ "$SLURM_ARRAY_TASK_ID" -eq 0 ]; then',
        '  sbatch --job-name=synthseg-collect --dependency="afterany:$SLURM_ARRAY_JOB_ID" \\',
        f"    --cpus-per-task=1 --mem=4G --wrap={shlex.quote(f'{called} cohort collect {folder}')}",
        "fi",
        f'{called} cohort part {folder} --part "$SLURM_ARRAY_TASK_ID" --of {options.tasks} --threads {options.cores} '
        '--draw "$SLURM_ARRAY_JOB_ID"',
        "",
    ]
    return "\n".join(lines)


def write_array_script(out: Path, options: ArrayOptions) -> Path:
    """Write :func:`array_script` into the cohort's folder. Raises: OutputError."""
    path = out / SCRIPT_NAME
    with atomic_file(path) as file:
        file.write(array_script(out, options).encode())
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it: the umask has said who may
    return path


def _require_one_line(what: str, text: str) -> None:
    """A line's end within a line of the script would make what follows a command of its own."""
    if one_line(text) != text:
        raise UsageError(what, found=f"{text!r}, with characters that end a line", fix="use another name")


def do_part(out: Path, part: int, of: int, *, threads: int | None = None, draw: str = "") -> Iterator[Report]:
    """Do one task's scans: of an order of all scans every ``of``-th from number ``part`` (0-based), if it waits.

    The order depends on names and ``draw`` alone: tasks of one array, which start at different times, divide the scans
    alike although :func:`synthseg.cohort.coordinate.collect` was run in between; another array deals them anew.

    The ledger is read and not written: results and records on the disk are what ``collect`` takes in afterwards. So
    tasks need no locks, and one that is killed leaves its finished scans.

    Yields: a report after each scan.
    Raises: UsageError for a part that is none, or without a ledger.
    """
    if not 0 <= part < of:
        raise UsageError("part", found=f"{part} of {of}", fix=f"use 0 to {of - 1}")
    with Ledger(out) as ledger:
        settings, digest = ledger.settings(), ledger.note("digest")
        rows = sorted(ledger.rows(), key=lambda row: hashlib.sha256(f"{draw} {row.job.subject}".encode()).digest())
    workman = Workman(settings, digest=digest, threads=threads)
    for job in [row.job for row in rows[part::of] if row.state == "waiting"]:
        started = time.time()
        try:
            report = workman.do(job)
        except Exception as error:  # as in a worker of the pool: e.g. a folder that is read-only
            report = refused(job.subject, error, started)
        yield report
