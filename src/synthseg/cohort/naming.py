"""What scans of a cohort are called: short, different from each other, and the same in every run."""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from synthseg.cohort.ledger import BUSY_S, LEDGER_NAME, Ledger, Row
from synthseg.cohort.plan import sha256_of, stamp_of
from synthseg.cohort.work import Job
from synthseg.errors import UsageError
from synthseg.inference.outputs import Outputs, output_files
from synthseg.reading import exists, real_path
from synthseg.volumes import strip_extension


def name_scans(sources: Sequence[Path], known: Mapping[Path, str]) -> list[str]:
    """A name for each scan: that of its file, with as many folders in front as tell it from the others.

    ``data/01/T1.nii.gz`` and ``data/02/T1.nii.gz`` become ``01_T1`` and ``02_T1``.

    Args:
        sources: different absolute paths.
        known: names that scans have already; they keep them.
    """
    taken = set(known.values())
    named = {source: known[source] for source in sources if source in known}
    open_ = [source for source in sources if source not in named]
    depth = 0
    while open_:
        proposed = {source: _name(source, depth) for source in open_}
        often = Counter(proposed.values())
        deepest = {source for source in open_ if depth >= len(source.parts) - 1}
        settled = [s for s in open_ if s in deepest or (often[proposed[s]] == 1 and proposed[s] not in taken)]
        for source in settled:
            named[source] = _free(proposed[source], taken)
            taken.add(named[source])
        open_ = [source for source in open_ if source not in named]
        depth += 1
    return [named[source] for source in sources]


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where all its folders do not tell it apart: ``a b`` from ``a-b``."""
    if name not in taken:
        return name
    return next(numbered for n in itertools.count(2) if (numbered := f"{name}_{n}") not in taken)


def _name(source: Path, depth: int) -> str:
    """The file's name without extension behind its last ``depth`` folders, the root left out."""
    folders = [part for part in source.parent.parts if part != source.anchor]
    name = "_".join([*(folders[-depth:] if depth else []), strip_extension(source)]).replace(" ", "-")
    # Names are in the ledger and in tables, where bytes that are no text, line ends and the like cannot be.
    return "".join(c if c.isprintable() else "-" for c in name)


def _moved(sources: Sequence[Path], rows: Sequence[Row]) -> dict[Path, Path]:
    """Of scans that the ledger does not know, those that it knows from a place where they are no longer."""
    given = set(sources)
    gone: dict[str, list[Row]] = {}
    for row in rows:
        if row.job.source not in given:
            gone.setdefault(row.job.source.name, []).append(row)
    fresh = given - {row.job.source for row in rows}
    moved: dict[Path, Path] = {}
    for source in (source for source in sources if source in fresh and source.name in gone):
        for row in gone[source.name]:
            size, _, sha256 = row.stamp
            if row.job.source in moved.values() or exists(row.job.source) or sha256 is None:
                continue
            if stamp_of(source).get("bytes") == size and sha256_of(source) == sha256:
                moved[source] = row.job.source
                break
    return moved


def _has_ledger(out: Path) -> bool:
    """Whether a run has begun a ledger there. Also for a file that is something else."""
    path = out / LEDGER_NAME
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S)) as db:
            return bool(db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.Error:
        return True  # whatever it is, opening it says so


def plan_cohort(scans: Sequence[tuple[Path, Mapping[str, str]]], out: Path, outputs: Outputs) -> list[Job]:
    """Jobs for scans, given with what is known of each (:attr:`synthseg.cohort.work.Job.entities`), in one folder.

    A scan that was moved since the last run, which its name and content tell, keeps its name.

    Raises: UsageError if an output would replace a scan.
    """
    sources = [path.absolute() for path, _ in scans]
    known: dict[Path, str] = {}
    if _has_ledger(out):
        with Ledger(out) as ledger:
            rows = list(ledger.rows())
        known = {row.job.source: row.job.subject for row in rows}
        for source, before in _moved(sources, rows).items():
            known[source] = known.pop(before)
    inputs = {real_path(source) for source in sources}
    jobs = []
    for source, name, (_, entities) in zip(sources, name_scans(sources, known), scans, strict=True):
        files = output_files(out, name, outputs)
        for path in files.values():
            if real_path(path) in inputs:
                raise UsageError(path, found="an output that would replace a scan", fix="choose another output")
        jobs.append(Job(source, name, files, entities))
    return jobs
