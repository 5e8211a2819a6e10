"""Versions of label maps, file by file (the command ``synthseg shapes``)."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthseg.anatomies.shapes.spec import Edit, ShapeSpec
from synthseg.anatomies.shapes.versions import edit, vary
from synthseg.configs import config_to_dict
from synthseg.errors import OutputError, SynthsegError
from synthseg.files import atomic_file
from synthseg.labels.protocol import LabelProtocol

TABLE = "shapes.tsv"
_COLUMNS = ("map", "source", "kind", "severity", "reached", "before_mm3", "after_mm3", "seed", "settings")


@dataclass(frozen=True, kw_only=True)
class ShapeJob:
    """What is made of each label map."""

    protocol: LabelProtocol
    spec: ShapeSpec
    per_map: int = 1  # random versions
    change: tuple[str, float] | None = None  # one named change instead: kind and severity
    seed: int = 0
    keep_original: bool = False  # a copy beside the versions, so that the folder is all that a bank needs

    @property
    def settings(self) -> str:
        """What versions depend on beside the seed, as a short code."""
        named = f"{self.protocol.to_rows()} {config_to_dict(self.spec)} {self.change}"
        return f"{zlib.crc32(named.encode()):08x}"


@dataclass(frozen=True)
class ShapeMap:
    """One file made, or there already."""

    path: Path
    edits: tuple[Edit, ...]
    resumed: bool


def shape_files(files: Sequence[Path], folder: Path, job: ShapeJob, *, overwrite: bool = False) -> Iterator[ShapeMap]:
    """Write versions ``NAME_shape-01.nii.gz``, ... of label maps and ``shapes.tsv``, yielding each as it is written.

    A version depends on the seed, the map's name and its number alone. Versions that are there, and in the table with
    the same seed, are kept: a batch that was stopped goes on.

    Args:
        overwrite: make them anew.
    Raises: OutputError for two maps of one name, a folder whose inputs would be replaced, a version that the table does
        not know, or one that was made with other settings; LabelError, VolumeError and ConfigError naming a file.
    """
    targets = _targets(files, folder, job)
    rows = {} if overwrite else _read_table(folder / TABLE)
    _refuse_strangers(targets, rows, job, overwrite)
    for file in files:
        for number, path in enumerate(targets[file], start=0 if job.keep_original else 1):
            known = rows.get(path.name)
            if path.exists() and known is not None and not overwrite:
                yield ShapeMap(path, _edits(known), True)
                continue
            edits = _make(file, path, job, number)
            rows[path.name] = _rows(path, file, job, edits)
            _write_table(folder / TABLE, rows)
            yield ShapeMap(path, edits, False)


def _make(file: Path, path: Path, job: ShapeJob, number: int) -> tuple[Edit, ...]:
    """One version; number 0 is the map itself."""
    from synthseg.volumes import Volume, from_ras, read_volume, strip_extension, to_ras, write_volume

    given = read_volume(file, labels=True)
    own, orientation = to_ras(given)
    labels, spacing = np.ascontiguousarray(own.data), [float(s) for s in own.spacing_mm]
    rng = torch.Generator().manual_seed(zlib.crc32(f"{job.seed}/{strip_extension(file)}/{number}".encode()))
    edits: tuple[Edit, ...] = ()
    try:
        if number and job.change is not None:
            labels, made = edit(labels, spacing, job.protocol, *job.change, rng)
            edits = (made,)
        elif number:
            labels, draw = vary(labels, spacing, job.protocol, job.spec, rng)
            edits = draw.edits
    except SynthsegError as error:
        raise type(error)(f"{file}: {error.subject}", found=error.found, fix=error.fix) from error
    data = np.ascontiguousarray(from_ras(labels, orientation))
    write_volume(Volume(data, given.affine), path, header_like=file)
    return edits


def _targets(files: Sequence[Path], folder: Path, job: ShapeJob) -> dict[Path, list[Path]]:
    """Where each map's versions go: never onto what is read."""
    from synthseg.volumes import strip_extension

    targets: dict[Path, list[Path]] = {}
    for file in files:
        stem = strip_extension(file)
        count = 1 if job.change is not None else job.per_map
        names = [f"{stem}_shape-{number:02d}.nii.gz" for number in range(1, count + 1)]
        targets[file] = [folder / name for name in ([f"{stem}.nii.gz"] if job.keep_original else []) + names]
    taken = [path for paths in targets.values() for path in paths]
    twice = next((path for path in taken if taken.count(path) > 1), None)
    if twice is not None:
        raise OutputError(twice, found="several label maps that would get this name", fix="vary them one by one")
    if {path.resolve() for path in taken} & {file.resolve() for file in files}:
        raise OutputError(folder, found="the label maps themselves", fix="choose another folder")
    return targets


def _refuse_strangers(
    targets: dict[Path, list[Path]], rows: dict[str, list[dict[str, str]]], job: ShapeJob, overwrite: bool
) -> None:
    """Files and rows that another run has made must not pass for this one's."""
    if overwrite:
        return
    for path in (path for paths in targets.values() for path in paths):
        known = rows.get(path.name)
        if path.exists() and known is None:
            found = f"an existing file that {TABLE} does not list"
            raise OutputError(path, found=found, fix="choose another folder, or add --overwrite")
        if known is not None and known[0]["seed"] != str(job.seed):
            found = f"versions made with seed {known[0]['seed']}"
            raise OutputError(path, found=found, fix="give that --seed, another folder, or --overwrite")
        if known is not None and known[0]["settings"] != job.settings:
            found = "versions made with other ranges, another change or another protocol"
            raise OutputError(path, found=found, fix="give those, another folder, or --overwrite")


def _rows(path: Path, file: Path, job: ShapeJob, edits: tuple[Edit, ...]) -> list[dict[str, str]]:
    start = {"map": path.name, "source": file.name, "seed": str(job.seed), "settings": job.settings}
    if not edits:
        return [start | {"kind": "none", "severity": "1", "reached": "1", "before_mm3": "", "after_mm3": ""}]
    return [
        start
        | {
            "kind": made.kind,
            "severity": f"{made.severity:.4f}",
            "reached": f"{made.reached:.4f}",
            "before_mm3": f"{made.before_mm3:.1f}",
            "after_mm3": f"{made.after_mm3:.1f}",
        }
        for made in edits
    ]


def _edits(rows: list[dict[str, str]]) -> tuple[Edit, ...]:
    return tuple(
        Edit(row["kind"], *(float(row[key]) for key in ("severity", "reached", "before_mm3", "after_mm3")))
        for row in rows
        if row["kind"] != "none"
    )


def _read_table(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows by map; nothing where there is no table."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(path, found=f"no readable table ({error})", fix="remove it, or add --overwrite") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t")
    found: dict[str, list[dict[str, str]]] = {}
    for row in reader:
        if set(row) != set(_COLUMNS) or None in row.values():
            fix = "remove it, or add --overwrite"
            raise OutputError(path, found=f"line {reader.line_num}: no row of {', '.join(_COLUMNS)}", fix=fix)
        found.setdefault(row["map"], []).append(row)
    return found


def _write_table(path: Path, rows: dict[str, list[dict[str, str]]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for name in sorted(rows):
        writer.writerows(rows[name])
    with atomic_file(path) as out:
        out.write(text.getvalue().encode("utf-8"))
