"""Which scans, and which files each of them becomes: files, folders and ``.txt`` lists (reference 6.2).

What a path is, is seen on the disk and by the end of its name; the original looked for ".nii" anywhere in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.cli.original.parser import Options
from synthseg.errors import UsageError
from synthseg.files import at_home, read_list
from synthseg.volumes.volume import VOLUME_EXTENSIONS, extension_of, is_volume_path

FOLDER_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".npz")  # of the scans that are found in a folder
SUFFIXES = {"labels": "_synthseg", "posteriors": "_posteriors", "resampled": "_resampled"}
FLAGS = {"labels": "--o", "posteriors": "--post", "resampled": "--resample", "volumes": "--vol", "quality": "--qc"}
LIST, TABLE = ".txt", ".csv"


@dataclass(frozen=True)
class Job:
    """One scan and its output files by kind: labels, posteriors, resampled, and from lists volumes and quality."""

    scan: Path
    files: dict[str, Path]


@dataclass(frozen=True)
class Plan:
    """All that is to be done.

    Attributes:
        jobs: the scans in order.
        tables: ``volumes`` and ``quality`` by kind: one file for all scans; empty for lists, whose jobs have their own.
        of_lists: whether ``--i`` is a list.
        notes: what was left out or changed, in sentences.
    """

    jobs: tuple[Job, ...]
    tables: dict[str, Path]
    of_lists: bool
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> dict[Path, list[str]]:
        """Every folder that is written to, and the flags that it comes from."""
        files = [*(item for job in self.jobs for item in job.files.items()), *self.tables.items()]
        found: dict[Path, list[str]] = {}
        for kind, path in files:
            flags = found.setdefault(path.parent, [])
            if FLAGS[kind] not in flags:
                flags.append(FLAGS[kind])
        return found


def plan(options: Options) -> Plan:
    """Every scan and every output, before any work is done.

    Raises: UsageError for what is missing, empty, out of reach or of the wrong kind, for outputs that would replace a
        scan or each other.
    """
    if not options.i.strip():  # of an unset variable in a script; as a path it would be the working directory
        raise UsageError("--i", found="an empty name", fix="give a path")
    try:
        return _planned(options)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a name too long, links in a circle
        subject = getattr(error, "filename", None) or "the paths given"
        found = f"a path that cannot be used ({getattr(error, 'strerror', None) or error})"
        raise UsageError(subject, found=found, fix="check the path, and the permissions of its folders") from error


def _planned(options: Options) -> Plan:
    given = {
        "labels": options.o,
        "posteriors": options.post,
        "resampled": options.resample,
        "volumes": options.vol,
        "quality": options.qc,
    }
    outputs = {kind: value for kind, value in given.items() if value is not None}
    for kind, value in outputs.items():
        if not value.strip():
            raise UsageError(FLAGS[kind], found="an empty name", fix="give a path")
    source = at_home(options.i)
    if source.is_dir():
        found = _plan_folder(source, outputs)
    elif source.suffix.lower() == LIST:
        found = _plan_lists(source, outputs)
    else:
        found = _plan_file(source, outputs)
    _check_clashes(found)
    return found


def _plan_lists(source: Path, outputs: dict[str, str]) -> Plan:
    scans = read_list(source, subject=f"--i {source}")
    columns: dict[str, list[Path]] = {}
    for kind, value in outputs.items():
        path = at_home(value)
        if path.suffix.lower() != LIST:
            fix = f"give a {LIST} list with one file per line: --i is a list"
            raise UsageError(f"{FLAGS[kind]} {value}", found="no list", fix=fix)
        columns[kind] = read_list(path, subject=f"{FLAGS[kind]} {path}")
        if len(columns[kind]) != len(scans):
            found = f"{len(columns[kind])} line(s) for {len(scans)} scan(s) in {source}"
            raise UsageError(f"{FLAGS[kind]} {value}", found=found, fix="write one line per scan, in the same order")
        for entry in columns[kind]:
            if kind in SUFFIXES:
                _require_image_name(entry, f"{FLAGS[kind]} {value}")
    jobs = [Job(scan, {kind: paths[n] for kind, paths in columns.items()}) for n, scan in enumerate(scans)]
    return Plan(tuple(jobs), {}, of_lists=True)


def _plan_folder(source: Path, outputs: dict[str, str]) -> Plan:
    try:
        inside = sorted(path for path in source.iterdir() if path.is_file() and is_volume_path(path))
    except OSError as error:
        fix = "check its permissions"
        raise UsageError(f"--i {source}", found=f"a folder that cannot be read ({error.strerror})", fix=fix) from error
    scans = [path for path in inside if extension_of(path) in FOLDER_EXTENSIONS]
    if not scans:
        fix = f"put scans ({', '.join(FOLDER_EXTENSIONS)}) directly into it"
        raise UsageError(f"--i {source}", found="a folder without scans", fix=fix)
    folders = {}
    for kind, value in outputs.items():
        if kind in SUFFIXES:
            path = at_home(value)
            if not path.is_dir() and (extension_of(path) or path.suffix.lower() == LIST):
                fix = "give a folder: --i is one"
                raise UsageError(f"{FLAGS[kind]} {value}", found="the name of a file", fix=fix)
            folders[kind] = _require_folder(path, f"{FLAGS[kind]} {value}")
    jobs = [Job(scan, {kind: folder / output_name(scan, kind) for kind, folder in folders.items()}) for scan in scans]
    jobs, notes = _without_results(jobs, folders.values())
    tables, more = _tables(outputs)
    return Plan(tuple(jobs), tables, of_lists=False, notes=(*notes, *more))


def _plan_file(source: Path, outputs: dict[str, str]) -> Plan:
    if not source.exists():
        fix = "check the path and its extension"
        raise UsageError(f"--i {source}", found="no such file or folder", fix=fix)
    _require_image_name(source, "--i")
    files = {}
    for kind, value in outputs.items():
        if kind not in SUFFIXES:
            continue
        path, flag = at_home(value), f"{FLAGS[kind]} {value}"
        if path.suffix.lower() == LIST:
            raise UsageError(flag, found="a list", fix="give a file or a folder: --i is no list")
        if extension_of(path):
            if path.is_dir():
                raise UsageError(flag, found="a folder with the name of an image", fix="give another name")
            files[kind] = path
        else:
            files[kind] = _require_folder(path, flag) / output_name(source, kind)
    tables, notes = _tables(outputs)
    return Plan((Job(source, files),), tables, of_lists=False, notes=tuple(notes))


def output_name(scan: Path, kind: str) -> str:
    """The name of an output in a folder: that of the scan, with the kind's suffix before the extension, which stays."""
    extension = scan.name[len(scan.name) - len(extension_of(scan)) :]
    return f"{scan.name[: len(scan.name) - len(extension)]}{SUFFIXES[kind]}{extension}"


def _tables(outputs: dict[str, str]) -> tuple[dict[str, Path], list[str]]:
    """The tables of all scans by kind; ``.csv`` is added where it is missing, with a note."""
    tables, notes = {}, []
    for kind, value in outputs.items():
        if kind in SUFFIXES:
            continue
        path, flag = at_home(value), f"{FLAGS[kind]} {value}"
        if path.suffix.lower() == LIST:
            raise UsageError(flag, found="a list", fix="give a .csv file: --i is no list")
        if path.is_dir():
            raise UsageError(flag, found="a folder", fix="give a .csv file")
        if path.suffix.lower() != TABLE:
            path = path.with_name(path.name + TABLE)
            notes.append(f"{flag}: {TABLE} was added to the name")
        tables[kind] = path
    return tables, notes


def _without_results(jobs: Sequence[Job], folders: Iterable[Path]) -> tuple[list[Job], list[str]]:
    """Jobs whose scan is not what another one becomes: where --i is one of the output folders, results of an earlier
    run, which may have asked for other outputs.
    """
    places = {folder.resolve() for folder in folders}
    results = {place / output_name(job.scan, kind) for job in jobs for kind in SUFFIXES for place in places}
    kept = [job for job in jobs if job.scan.resolve() not in results]
    left_out = len(jobs) - len(kept)
    return kept, [f"left out {left_out} file(s) that are results of the other scans"] if left_out else []


def _check_clashes(found: Plan) -> None:
    """Raise UsageError where an output would replace a scan or another output."""
    scans = {job.scan.resolve(): job.scan for job in found.jobs}
    taken: dict[Path, str] = {path.resolve(): f"the table of {FLAGS[kind]}" for kind, path in found.tables.items()}
    if len(taken) < len(found.tables):
        raise UsageError("--qc", found="the same file as --vol", fix="give two files")
    for job in found.jobs:
        for kind, path in job.files.items():
            place = path.resolve()
            if place in scans:
                raise UsageError(path, found=f"an output ({FLAGS[kind]}) that would replace a scan", fix="rename it")
            if place in taken:
                what = f"one file for {FLAGS[kind]} of {job.scan} and for {taken[place]}"
                raise UsageError(path, found=what, fix="give each its own")
            taken[place] = f"{FLAGS[kind]} of {job.scan}"
    for place in taken:
        if place in scans:
            raise UsageError(place, found="a table that would replace a scan", fix="give another name")


def _require_image_name(path: Path, flag: str) -> None:
    if not extension_of(path):
        known = ", ".join(VOLUME_EXTENSIONS)
        found = f"{path}, whose extension is none of an image"
        raise UsageError(flag, found=found, fix=f"use one of {known}")


def _require_folder(path: Path, flag: str) -> Path:
    if path.exists() and not path.is_dir():
        raise UsageError(
            flag, found="a file where a folder is meant", fix="give a folder, or a name that is an image's"
        )
    return path
