"""Split label maps, file by file (the command ``synthseg sublabels``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthseg.errors import OutputError
from synthseg.files import atomic_file
from synthseg.generation.sublabels import SubLabelSpec, sublabel_protocol, sublabels_by_geometry, sublabels_from_image

PROTOCOL = "protocol.tsv"


@dataclass(frozen=True)
class SplitMap:
    """One file written."""

    path: Path
    background: int  # N
    image: Path | None  # whose intensities split it; None: geometry
    notes: tuple[str, ...]


def background_counts(spec: SubLabelSpec, versions: int, *, rng: torch.Generator) -> list[int]:
    """N of each version of a map: all different while the spec's range has enough."""
    low, high = spec.background
    counts: list[int] = []
    while len(counts) < versions:
        counts += (torch.randperm(high - low + 1, generator=rng, device=rng.device) + low).tolist()
    return counts[:versions]


def split_files(
    files: Sequence[Path],
    folder: Path,
    spec: SubLabelSpec,
    *,
    images: Mapping[Path, Path] | None = None,
    versions: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> Iterator[SplitMap]:
    """Write the split maps, yielding each when it is written, and at the end their protocol (``protocol.tsv``).

    Args:
        files: label maps of the spec's protocol.
        folder: for the results, named as the maps; with several versions ``NAME_v1``, ``NAME_v2``, ...
        images: of the maps that have one; the others are split by geometry.
        versions: of each map, with different numbers of background parts.
        seed: a map's parts depend on it and on the file's name alone.
        overwrite: replace files that exist.
    Raises: OutputError for files that exist, two maps of one name, or a folder whose inputs would be replaced;
        LabelError and VolumeError naming a file.
    """
    from synthseg.generation.paired import read_pair
    from synthseg.volumes import Volume, from_ras, read_volume, strip_extension, to_ras, write_volume

    table = sublabel_protocol(spec)
    names = _targets(files, folder, versions, [*files, *(images or {}).values()])
    for path in (folder / PROTOCOL, *(path for paths in names.values() for path in paths)):
        if path.exists() and not overwrite:
            raise OutputError(path, found="an existing file", fix="choose another folder, or add --overwrite")
    for file in files:
        given = read_volume(file, labels=True)
        own, orientation = to_ras(given)
        spec.protocol.index_of(own.data, subject=str(file))  # names the file
        image = (images or {}).get(file)
        pair = None if image is None else read_pair(image, file)
        rng = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{strip_extension(file)}".encode()))
        for target, count in zip(names[file], background_counts(spec, versions, rng=rng), strict=True):
            if pair is None:
                spacing = [float(s) for s in own.spacing_mm]
                found = sublabels_by_geometry(own.data, spec, rng=rng, spacing_mm=spacing, background=count)
            else:
                found = sublabels_from_image(own.data, pair.channels[0], spec, rng=rng, background=count)
            data = np.ascontiguousarray(from_ras(found.labels, orientation))
            write_volume(Volume(data, given.affine), target, header_like=file)
            yield SplitMap(target, found.background, image, pair.notes if pair else own.notes)
    with atomic_file(folder / PROTOCOL) as out:
        out.write(table.to_table().encode("utf-8"))


def _targets(files: Sequence[Path], folder: Path, versions: int, read: Sequence[Path]) -> dict[Path, list[Path]]:
    """Where each map's versions go: never onto what is read."""
    from synthseg.volumes import strip_extension

    names: dict[Path, list[Path]] = {}
    for file in files:
        stem = strip_extension(file)
        stems = [stem] if versions == 1 else [f"{stem}_v{number}" for number in range(1, versions + 1)]
        names[file] = [folder / f"{name}.nii.gz" for name in stems]
    taken = [path for paths in names.values() for path in paths]
    twice = next((path for path in taken if taken.count(path) > 1), None)
    if twice is not None:
        raise OutputError(twice, found="several label maps that would get this name", fix="split them one by one")
    if {path.resolve() for path in taken} & {file.resolve() for file in read}:
        raise OutputError(folder, found="the label maps or images themselves", fix="choose another folder")
    return names
