"""Fetal label maps made ready for a bank, file by file (the command ``synthseg fetal prepare``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthseg.anatomies.dhcp import dhcp_to_feta
from synthseg.anatomies.extracerebral import centred, extracerebral_from_image, split_extracerebral
from synthseg.anatomies.surroundings import SurroundingsSpec, surround
from synthseg.errors import ConfigError, OutputError, ShapeError

if TYPE_CHECKING:
    from synthseg.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How maps are made ready."""

    surroundings: SurroundingsSpec = field(default_factory=SurroundingsSpec)  # of maps without image
    versions: int = 1  # of maps without image
    dhcp: bool = False  # maps have dHCP's nine values, and are merged to FeTA's first
    cube: int | None = None  # voxels a side: labels are centred in such a cube, as the reference does (256)
    drop_last_slab: bool = False  # with a cube: lose the labels' last slab on each axis, as the reference does
    seed: int = 0  # a version depends on it, the file's name and the version's number alone

    def __post_init__(self) -> None:
        for key, value in (("versions", self.versions), ("cube", self.cube)):
            if value is not None and value < 1:
                raise ConfigError(f"fetal maps: {key}", found=repr(value), fix="give at least 1")
        if self.drop_last_slab and self.cube is None:
            fix = "give a cube (the reference's is 256), or leave drop_last_slab out"
            raise ConfigError("fetal maps: drop_last_slab", found="no cube to centre the labels in", fix=fix)


@dataclass(frozen=True)
class PreparedMap:
    """One file written."""

    path: Path
    how: str  # what is around the brain, in a few words


def prepare_maps(
    files: Sequence[Path],
    folder: Path,
    config: PrepareConfig,
    *,
    images: Mapping[Path, Path] | None = None,
    overwrite: bool = False,
) -> Iterator[PreparedMap]:
    """Write maps of the protocol ``feta-generation``, yielding each when it is written.

    Maps with an image get their surroundings from it, once: ``NAME.nii.gz``. Maps without get ``config.versions``
    drawn ones: ``NAME_v1.nii.gz``, ``NAME_v2.nii.gz``, ..., whose kinds take turns.

    Args:
        files: label maps of FeTA's values, or dHCP's.
        images: of the maps that have one, on the same grid.
        overwrite: replace files that exist.
    Raises: OutputError for results that exist, share a name, or would replace an input; LabelError, ShapeError and
        VolumeError naming a file.
    """
    given = dict(images or {})
    targets = _targets(files, folder, given, config.versions)
    for path in (path for paths in targets.values() for path in paths):
        if path.exists() and not overwrite:
            raise OutputError(path, found="an existing file", fix="choose another folder, or add --overwrite")
    for file in files:
        if file in given:
            yield _from_image(file, given[file], targets[file][0], config)
            continue
        for number, target in enumerate(targets[file]):
            yield _by_geometry(file, target, config, number)


def _read(file: Path, dhcp: bool) -> Volume:
    """A label map with FeTA's values."""
    from synthseg.volumes import Volume, read_volume

    given = read_volume(file, labels=True)
    return Volume(dhcp_to_feta(given.data, subject=file), given.affine, given.path) if dhcp else given


def _from_image(file: Path, image: Path, target: Path, config: PrepareConfig) -> PreparedMap:
    from synthseg.volumes import read_volume

    labels, scan = _read(file, config.dhcp), read_volume(image)
    same = labels.data.shape == scan.data.shape and np.allclose(labels.affine, scan.affine, rtol=0, atol=1e-4)
    if not same:
        found = f"a grid of shape {scan.data.shape}, not that of {file.name} ({labels.data.shape}), or placed elsewhere"
        raise ShapeError(image, found=found, fix="resample the image onto its label map's grid first")
    whole = extracerebral_from_image(labels.data, scan.data, subject=str(file))
    split = split_extracerebral(whole, scan.data)
    _write(split, (0, 0, 0), labels.affine, target, file, config)
    return PreparedMap(target, f"from {image.name}")


def _by_geometry(file: Path, target: Path, config: PrepareConfig, number: int) -> PreparedMap:
    from synthseg.volumes import strip_extension, to_ras

    own, _ = to_ras(_read(file, config.dhcp))
    spec, name = config.surroundings, strip_extension(file)
    rng = np.random.default_rng(zlib.crc32(f"{config.seed}/{name}/{number}".encode()))
    first = zlib.crc32(f"{config.seed}/{name}".encode())  # maps begin with different kinds
    kind = spec.kinds[(first + number) % len(spec.kinds)]
    found = surround(own.data, [float(s) for s in own.spacing_mm], spec, rng, kind=kind, subject=str(file))
    _write(found.labels, found.start, own.affine, target, file, config)
    more = [", more fluid"] * found.fluid + [", thicker cortex"] * found.cortex
    return PreparedMap(target, found.kind + "".join(more))


def _write(
    labels: np.ndarray,
    start: tuple[int, int, int],
    affine: np.ndarray,
    target: Path,
    file: Path,
    config: PrepareConfig,
) -> None:
    """Write labels whose first voxel is the given map's voxel ``start``, centred if that is asked for."""
    from synthseg.volumes import Volume, write_volume

    place = np.array(start)
    if config.cube is not None:
        labels, first = centred(labels, side=config.cube, drop_last_slab=config.drop_last_slab)
        place = place + np.array(first)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ place
    write_volume(Volume(labels, moved), target, header_like=file)


def _targets(files: Sequence[Path], folder: Path, images: Mapping[Path, Path], versions: int) -> dict[Path, list[Path]]:
    """Where each map's results go: never onto what is read."""
    from synthseg.volumes import strip_extension

    targets: dict[Path, list[Path]] = {}
    for file in files:
        name = strip_extension(file)
        names = [name] if file in images else [f"{name}_v{number}" for number in range(1, versions + 1)]
        targets[file] = [folder / f"{each}.nii.gz" for each in names]
    taken = [path for paths in targets.values() for path in paths]
    twice = next((path for path in taken if taken.count(path) > 1), None)
    if twice is not None:
        raise OutputError(twice, found="several label maps that would get this name", fix="prepare them one by one")
    if {path.resolve() for path in taken} & {path.resolve() for path in (*files, *images.values())}:
        raise OutputError(folder, found="the label maps or images themselves", fix="choose another folder")
    return targets
