"""Heart maps become a label bank: one grid, a margin of chest, several versions of sub-labels each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from synthseg.errors import ConfigError, LabelError
from synthseg.files import atomic_file
from synthseg.generation import LabelBank
from synthseg.generation.paired import onto_grid
from synthseg.generation.sublabels import (
    SubLabelSpec,
    sublabel_protocol,
    sublabels_by_geometry,
    sublabels_from_image,
)
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.volumes import Volume, bounding_box, read_volume, resample_to_spacing, strip_extension, to_ras


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How maps are prepared. The defaults are the paper's (section 5.4); it does not count versions."""

    protocol: str = "whole-heart"
    spacing_mm: float = 1.0
    margin_mm: float = 60.0  # of surroundings kept around the heart, as far as the map goes
    versions: int = 10  # of sub-labels, a map
    foreground: int = 2  # sub-labels a structure
    background: tuple[int, int] = (3, 10)  # sub-labels of the background: any number from first to last, both included
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.3 <= self.spacing_mm <= 10:
            raise ConfigError("--spacing", found=repr(self.spacing_mm), fix="give 0.3 to 10 mm")
        if self.margin_mm < 0 or self.versions < 1:
            found = f"a margin of {self.margin_mm:g} mm and {self.versions} versions"
            raise ConfigError(
                "--margin, --versions", found=found, fix="give a margin of at least 0 and 1 version or more"
            )


def read_heart(path: Path, protocol: LabelProtocol) -> Volume:
    """A label map in RAS order, whose values the protocol knows.

    Raises: VolumeError for an unreadable file, LabelError for values that are not the protocol's, or an empty map.
    """
    volume, _ = to_ras(read_volume(path, labels=True))
    protocol.index_of(volume.data, subject=path)
    if not volume.data.any():
        raise LabelError(path, found="no structure at all", fix="leave this map out")
    return volume


def on_spacing(labels: Volume, spacing_mm: float, protocol: LabelProtocol) -> Volume:
    """A label map on cubic voxels: of each the label that fills most of it, by linear interpolation of every label."""
    present = [value for value in protocol.values.tolist() if (labels.data == value).any()]
    best: np.ndarray | None = None
    for value in present:
        share = resample_to_spacing(
            replace(labels, data=(labels.data == value).astype(np.float32)), spacing_mm, order=1
        )
        if best is None:
            best, winner, affine = share.data, np.full(share.data.shape, value, dtype=np.int32), share.affine
            continue
        more = share.data > best
        winner[more], best = value, np.maximum(best, share.data)
    assert best is not None  # a volume has voxels
    return Volume(np.ascontiguousarray(winner), affine, labels.path, labels.notes)


def around_heart(labels: Volume, margin_mm: float) -> Volume:
    """The part of a map with its heart and a margin, no further than the map goes.

    Beyond a map's end training repeats its last voxels, so that a heart cut by the field of view has no false wall.
    """
    box = bounding_box(labels.data != 0, margin=round(margin_mm / float(labels.spacing_mm.min())))
    return replace(labels, data=box.crop(labels.data), affine=box.affine(labels.affine))


def prepare(
    maps: Sequence[Path], out: Path, config: PrepareConfig, *, images: Mapping[str, Path] | None = None
) -> Path:
    """Make the bank and the table of its labels.

    Sub-labels come from a map's own image by expectation maximisation where there is one, else from geometry.

    Args:
        maps: label map files.
        out: ``bank.safetensors`` and ``protocol.tsv`` are written here.
        images: scan by the map's file name without extension, in the same space.
    Returns: the bank.
    Raises: VolumeError, LabelError for maps that cannot be used; ConfigError.
    """
    protocol = load_protocol(config.protocol)
    spec = SubLabelSpec(protocol=protocol, foreground=config.foreground, background=config.background)
    versions: list[np.ndarray] = []
    names: list[str] = []
    for number, path in enumerate(maps):
        heart = around_heart(on_spacing(read_heart(path, protocol), config.spacing_mm, protocol), config.margin_mm)
        name = strip_extension(path)
        image = _image_for(heart, (images or {}).get(name))
        for version in range(config.versions):
            rng = torch.Generator().manual_seed(config.seed * 1_000_003 + number * 1009 + version)
            versions.append(_divide(heart, image, spec, rng=rng))
            names.append(f"{name}-v{version:02d}")
    table = sublabel_protocol(spec)
    with atomic_file(out / "protocol.tsv") as file:
        file.write(table.to_table().encode())
    spacings = [[config.spacing_mm] * 3] * len(versions)
    return LabelBank.from_maps(versions, spacings, names, table).save(out / "bank.safetensors")


def _divide(heart: Volume, image: np.ndarray | None, spec: SubLabelSpec, *, rng: torch.Generator) -> np.ndarray:
    """One version of a map's sub-labels."""
    if image is not None:
        return sublabels_from_image(heart.data, image, spec, rng=rng).labels
    return sublabels_by_geometry(heart.data, spec, rng=rng, spacing_mm=heart.spacing_mm.tolist()).labels


def _image_for(heart: Volume, path: Path | None) -> np.ndarray | None:
    """The image on the heart's grid, if there is one; NaN beyond it.

    Raises: VolumeError for an unreadable image, or one that misses most of the heart.
    """
    if path is None:
        return None
    scan, _ = to_ras(read_volume(path))
    scan = resample_to_spacing(scan, float(heart.spacing_mm.mean()), order=1)
    return onto_grid(replace(scan, path=path), heart, path.name)
