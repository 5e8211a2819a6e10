"""From what was typed to a list of jobs: which scans, and which files each becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.files import read_list
from synthseg.inference.outputs import RESULT_ENDINGS, Outputs, output_files
from synthseg.reading import as_text, is_file, is_folder, list_folder, real_path
from synthseg.volumes import VOLUME_EXTENSIONS, is_volume_path, strip_extension


@dataclass(frozen=True)
class Job:
    """One scan, the name of its row in tables, and the files it becomes by kind."""

    scan: Path
    subject: str
    files: dict[str, Path]


def discover(entries: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Scans named by files, folders (their own files, not those of subfolders, sorted) and ``.txt`` lists of paths.

    Paths in a list are taken from the working directory, as in the original. A file that is named is taken as it is,
    even if missing: it fails by itself later, and the others are still done.

    Returns: the scans in order, each once; and notes on what was left out.
    Raises: UsageError for a folder without scans, or a list that is missing or empty.
    """
    scans: list[Path] = []
    notes: list[str] = []
    for entry in map(Path, entries):
        if is_folder(entry):
            found, left_out = _scans_in(entry)
            scans += found
            notes += left_out
        elif entry.suffix.lower() == ".txt":
            scans += read_list(entry)
        else:
            scans.append(entry)
    unique = list(dict.fromkeys(scans))
    if len(unique) < len(scans):
        notes.append(f"{len(scans) - len(unique)} scan(s) were named more than once and are done once")
    return unique, notes


def _scans_in(folder: Path) -> tuple[list[Path], list[str]]:
    volumes = [path for path in list_folder(folder) if is_volume_path(path) and is_file(path)]
    scans = [path for path in volumes if not strip_extension(path).endswith(RESULT_ENDINGS)]
    if not scans:
        extensions = ", ".join(VOLUME_EXTENSIONS)
        inside = f"{len(volumes)} of our own results, no scans" if volumes else "no scans"
        raise UsageError(folder, found=f"a folder with {inside}", fix=f"put scans ({extensions}) directly into it")
    skipped = len(volumes) - len(scans)
    return scans, [f"{folder}: left out {skipped} file(s) that are results of synthseg"] if skipped else []


def plan_jobs(scans: Sequence[Path], out: Path, outputs: Outputs) -> list[Job]:
    """Name every output. With one scan, ``out`` may be a file name with an image extension; otherwise it is a folder.

    Raises: UsageError if two scans would become the same file (naming both), if an output would replace a scan, or if
        ``out`` is a file name for several scans or for the space "both".
    """
    if is_volume_path(out) and not is_folder(out):
        if len(scans) != 1 or outputs.space == "both":
            what = f"{len(scans)} scans" if len(scans) != 1 else "two label maps (--space both)"
            raise UsageError(out, found=f"one output file for {what}", fix="give a folder with -o")
        stem = strip_extension(out)
        base = stem.removesuffix("_synthseg") or stem
        files = output_files(out.parent, base, outputs, labels_name=out.name)
        jobs = [Job(scans[0], subject_of(scans[0]), files)]
    else:
        jobs = [Job(scan, subject_of(scan), output_files(out, strip_extension(scan), outputs)) for scan in scans]
    _check_clashes(jobs)
    return jobs


def subject_of(scan: Path) -> str:
    """What tables call a scan: its name without extension, as text whatever bytes the name has."""
    return as_text(strip_extension(scan))


def _check_clashes(jobs: Sequence[Job]) -> None:
    taken: dict[Path, Path] = {}
    scans = {real_path(job.scan) for job in jobs}
    for job in jobs:
        for path in job.files.values():
            if real_path(path) in scans:
                raise UsageError(path, found="an output that would replace a scan", fix="choose another output")
            if path in taken:
                found = f"one output for two scans, {taken[path]} and {job.scan}"
                raise UsageError(path, found=found, fix="rename one of them, or segment them into two folders")
            taken[path] = job.scan
