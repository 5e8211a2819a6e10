"""Versions of label maps, file by file (the command ``synthseg shapes``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthseg.anatomies.made import Row, content_code, read_rows, refuse_clashes, refuse_others, write_rows
from synthseg.anatomies.shapes.kinds import check_severity
from synthseg.anatomies.shapes.spec import Edit, ShapeSpec
from synthseg.anatomies.shapes.versions import edit, vary
from synthseg.configs import config_to_dict
from synthseg.errors import OutputError, SynthsegError
from synthseg.files import require_writable
from synthseg.labels.protocol import LabelProtocol

if TYPE_CHECKING:
    from synthseg.volumes import Volume

TABLE = "shapes.tsv"
_NUMBERS = ("severity", "reached", "before_mm3", "after_mm3")
_COLUMNS = ("map", "source", "inputs", "kind", *_NUMBERS, "seed", "settings")
_MAKING = 2  # changed whenever the same settings make other maps


@dataclass(frozen=True, kw_only=True)
class ShapeJob:
    """What is made of each label map."""

    protocol: LabelProtocol
    spec: ShapeSpec
    per_map: int = 1  # random versions
    change: tuple[str, float] | None = None  # one named change instead: kind and severity
    seed: int = 0
    keep_original: bool = False  # a copy beside the versions, so that the folder is all that a bank needs

    def __post_init__(self) -> None:
        if self.change is not None:
            check_severity(*self.change)

    @property
    def settings(self) -> str:
        """What versions depend on beside their map, their number and the seed, as a short code."""
        made = config_to_dict(self.spec) if self.change is None else self.change
        return f"{zlib.crc32(f'{_MAKING} {self.protocol.to_rows()} {made}'.encode()):08x}"


@dataclass(frozen=True)
class ShapeMap:
    """One file made, or there already."""

    path: Path
    edits: tuple[Edit, ...]
    resumed: bool


def shape_files(files: Sequence[Path], folder: Path, job: ShapeJob, *, overwrite: bool = False) -> Iterator[ShapeMap]:
    """Write versions ``NAME_shape-01.nii.gz``, ... of label maps and ``shapes.tsv``, yielding each as it is written.

    A version depends on the seed, the map's name and its number alone. Versions that are there, and in the table with
    the same map, seed and settings, are kept: a batch that was stopped goes on. Rows of other maps stay.

    Args:
        overwrite: make them anew.
    Raises: OutputError for two maps of one name, versions beside the maps they are made of, a version that the table
        does not know, or one that was made of something else; LabelError, VolumeError and ConfigError naming a file.
    """
    targets = _targets(files, folder, job)
    rows = _read_table(folder / TABLE, overwrite)
    facts = {file: _facts(file, job) for file in files}
    if not overwrite:
        first = {name: found[0] for name, found in rows.items()}
        for file, paths in targets.items():
            refuse_others(paths, first, facts[file], table=TABLE)
    require_writable(folder)
    for file in files:
        for number, path in enumerate(targets[file], start=0 if job.keep_original else 1):
            if path.exists() and not overwrite:
                yield ShapeMap(path, _edits(rows[path.name], folder / TABLE), True)
                continue
            volume, edits = _make(file, job, number)
            if path.is_file():  # before its rows change: see anatomies/made.py
                path.unlink()
            rows[path.name] = _rows(path, facts[file], edits)
            _write_table(folder / TABLE, rows)
            _write(volume, path, file)
            yield ShapeMap(path, edits, False)


def _make(file: Path, job: ShapeJob, number: int) -> tuple[Volume, tuple[Edit, ...]]:
    """One version; number 0 is the map itself."""
    from synthseg.volumes import Volume, from_ras, read_volume, strip_extension, to_ras

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
    return Volume(np.ascontiguousarray(from_ras(labels, orientation)), given.affine), edits


def _write(volume: Volume, path: Path, file: Path) -> None:
    from synthseg.volumes import write_volume

    write_volume(volume, path, header_like=file)


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
    refuse_clashes(taken, folder, files, what="the label maps", verb="vary")
    return targets


def _facts(file: Path, job: ShapeJob) -> Row:
    """What versions of this map are made of, as the table says it."""
    return {"source": file.name, "inputs": content_code([file]), "seed": str(job.seed), "settings": job.settings}


def _rows(path: Path, facts: Row, edits: tuple[Edit, ...]) -> list[Row]:
    start = {"map": path.name, **facts}
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


def _edits(rows: list[Row], table: Path) -> tuple[Edit, ...]:
    try:
        return tuple(Edit(row["kind"], *(float(row[key]) for key in _NUMBERS)) for row in rows if row["kind"] != "none")
    except ValueError as error:
        found = f"no numbers in the row of {rows[0]['map']} ({error})"
        raise OutputError(table, found=found, fix="remove it, or add --overwrite") from error


def _read_table(path: Path, overwrite: bool) -> dict[str, list[Row]]:
    """Rows by map."""
    found: dict[str, list[Row]] = {}
    for row in read_rows(path, _COLUMNS, overwrite=overwrite):
        found.setdefault(row["map"], []).append(row)
    return found


def _write_table(path: Path, rows: dict[str, list[Row]]) -> None:
    write_rows(path, _COLUMNS, (row for name in sorted(rows) for row in rows[name]))
