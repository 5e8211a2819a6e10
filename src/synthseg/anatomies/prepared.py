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
from synthseg.anatomies.made import Row, content_code, read_rows, refuse_clashes, refuse_others, write_rows
from synthseg.anatomies.surroundings import SurroundingsSpec, require_tissues, surround
from synthseg.configs import config_to_dict
from synthseg.errors import ConfigError, ShapeError
from synthseg.files import require_writable

if TYPE_CHECKING:
    from synthseg.volumes import Volume

TABLE = "prepared.tsv"  # beside the maps: what each was made of
_COLUMNS = ("map", "how", "source", "image", "inputs", "seed", "settings")
_MAKING = 1  # changed whenever the same settings make other maps


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How maps are made ready."""

    surroundings: SurroundingsSpec = field(default_factory=SurroundingsSpec)  # of maps without image
    versions: int = 1  # of maps without image
    dhcp: bool = False  # maps have dHCP's nine values, and are merged to FeTA's first
    cube: int | None = None  # voxels a side: labels are centred in such a cube, as the reference does (256)
    drop_last_slab: bool = False  # with a cube: lose the labels' last slab on each axis, as the reference does
    cut: bool = False  # with a cube: cut maps that are longer, instead of refusing them
    seed: int = 0  # a version depends on it, the file's name and the version's number alone

    def __post_init__(self) -> None:
        for key, value in (("versions", self.versions), ("cube", self.cube)):
            if value is not None and value < 1:
                raise ConfigError(f"fetal maps: {key}", found=repr(value), fix="give at least 1")
        for key in ("drop_last_slab", "cut"):
            if getattr(self, key) and self.cube is None:
                fix = f"give a cube (the reference's is 256), or leave {key} out"
                raise ConfigError(f"fetal maps: {key}", found="no cube to centre the labels in", fix=fix)

    @property
    def settings(self) -> str:
        """What maps depend on beside their inputs, their number and the seed, as a short code."""
        facts = {key: value for key, value in config_to_dict(self).items() if key not in ("versions", "seed")}
        return f"{zlib.crc32(f'{_MAKING} {facts}'.encode()):08x}"


@dataclass(frozen=True)
class PreparedMap:
    """One file written, or there already."""

    path: Path
    how: str  # what is around the brain, in a few words
    resumed: bool = False


def prepare_maps(
    files: Sequence[Path],
    folder: Path,
    config: PrepareConfig,
    *,
    images: Mapping[Path, Path] | None = None,
    overwrite: bool = False,
) -> Iterator[PreparedMap]:
    """Write maps of the protocol ``feta-generation`` and ``prepared.tsv``, yielding each when it is written.

    Maps with an image get their surroundings from it, once: ``NAME.nii.gz``. Maps without get ``config.versions``
    drawn ones: ``NAME_v1.nii.gz``, ``NAME_v2.nii.gz``, ..., whose kinds take turns. Maps that are there, and in the
    table with the same inputs, seed and settings, are kept: a batch that was stopped goes on.

    Args:
        files: label maps of FeTA's values, or dHCP's.
        images: of the maps that have one, on the same grid.
        overwrite: make them anew.
    Raises: OutputError for results that share a name or would replace an input, that the table does not know, or that
        were made of something else; LabelError, ShapeError and VolumeError naming a file.
    """
    given = dict(images or {})
    targets = _targets(files, folder, given, config.versions)
    rows = {row["map"]: row for row in read_rows(folder / TABLE, _COLUMNS, overwrite=overwrite)}
    wanted = {file: _facts(file, given.get(file), config) for file in files}
    if not overwrite:
        for file, paths in targets.items():
            refuse_others(paths, rows, wanted[file], table=TABLE)
    require_writable(folder)
    for file in files:
        for number, path in enumerate(targets[file]):
            if path.exists() and not overwrite:
                yield PreparedMap(path, rows[path.name]["how"], True)
                continue
            if file in given:
                volume, how = _from_image(file, given[file], config)
            else:
                volume, how = _by_geometry(file, config, number)
            # The row first, and no older map beside it: whenever this is stopped, a map that is there is the row's.
            if path.is_file():
                path.unlink()
            rows[path.name] = {"map": path.name, "how": how, **wanted[file]}
            write_rows(folder / TABLE, _COLUMNS, (rows[name] for name in sorted(rows)))
            _write(volume, path, file)
            yield PreparedMap(path, how)


def _read(file: Path, dhcp: bool) -> Volume:
    """A label map with FeTA's values."""
    from synthseg.volumes import Volume, read_volume

    given = read_volume(file, labels=True)
    return Volume(dhcp_to_feta(given.data, subject=file), given.affine, given.path) if dhcp else given


def _from_image(file: Path, image: Path, config: PrepareConfig) -> tuple[Volume, str]:
    from synthseg.volumes import read_volume

    labels, scan = _read(file, config.dhcp), read_volume(image)
    same = labels.data.shape == scan.data.shape and np.allclose(labels.affine, scan.affine, rtol=0, atol=1e-4)
    if not same:
        found = f"a grid of shape {scan.data.shape}, not that of {file.name} ({labels.data.shape}), or placed elsewhere"
        raise ShapeError(image, found=found, fix="resample the image onto its label map's grid first")
    require_tissues(labels.data, subject=str(file))
    whole = extracerebral_from_image(labels.data, scan.data, subject=str(file))
    split = split_extracerebral(whole, scan.data)
    return _placed(split, (0, 0, 0), labels.affine, file, config), f"from {image.name}"


def _by_geometry(file: Path, config: PrepareConfig, number: int) -> tuple[Volume, str]:
    from synthseg.volumes import strip_extension, to_ras

    own, _ = to_ras(_read(file, config.dhcp))
    spec, name = config.surroundings, strip_extension(file)
    rng = np.random.default_rng(zlib.crc32(f"{config.seed}/{name}/{number}".encode()))
    first = zlib.crc32(f"{config.seed}/{name}".encode())  # maps begin with different kinds
    kind = spec.kinds[(first + number) % len(spec.kinds)]
    found = surround(own.data, [float(s) for s in own.spacing_mm], spec, rng, kind=kind, subject=str(file))
    more = [", more fluid"] * found.fluid + [", thicker cortex"] * found.cortex
    return _placed(found.labels, found.start, own.affine, file, config), found.kind + "".join(more)


def _placed(
    labels: np.ndarray, start: tuple[int, int, int], affine: np.ndarray, file: Path, config: PrepareConfig
) -> Volume:
    """Labels whose first voxel is the given map's voxel ``start``, centred if that is asked for."""
    from synthseg.volumes import Volume

    place = np.array(start)
    if config.cube is not None:
        labels, first = centred(
            labels, side=config.cube, huge=config.cut, drop_last_slab=config.drop_last_slab, subject=str(file)
        )
        place = place + np.array(first)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ place
    return Volume(labels, moved)


def _write(volume: Volume, target: Path, file: Path) -> None:
    from synthseg.volumes import write_volume

    write_volume(volume, target, header_like=file)


def _targets(files: Sequence[Path], folder: Path, images: Mapping[Path, Path], versions: int) -> dict[Path, list[Path]]:
    """Where each map's results go: never onto what is read."""
    from synthseg.volumes import strip_extension

    targets: dict[Path, list[Path]] = {}
    for file in files:
        name = strip_extension(file)
        names = [name] if file in images else [f"{name}_v{number}" for number in range(1, versions + 1)]
        targets[file] = [folder / f"{each}.nii.gz" for each in names]
    taken = [path for paths in targets.values() for path in paths]
    read = (*files, *images.values())
    refuse_clashes(taken, folder, read, what="the label maps or images", verb="prepare")
    return targets


def _facts(file: Path, image: Path | None, config: PrepareConfig) -> Row:
    """What a map of this file is made of, as the table says it."""
    given = [path for path in (file, image) if path is not None]
    own = {"source": file.name, "image": "" if image is None else image.name, "inputs": content_code(given)}
    return {**own, "seed": str(config.seed), "settings": config.settings}
