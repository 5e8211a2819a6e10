"""Maps on one grid, their edited variants, and the bank of each fold and arm."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from experiments.cardiac.prepare import on_spacing
from experiments.fetal.config import Arm, FetalConfig
from experiments.fetal.doors import varied
from experiments.fetal.subjects import Subject

from synthseg.anatomies.surroundings import SurroundingsSpec, surround
from synthseg.errors import LabelError, UsageError
from synthseg.generation import LabelBank
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.volumes import Volume, read_volume, strip_extension, to_ras, write_volume
from synthseg.volumes.window import Window, bounding_box

GENERATION = "feta-generation"  # FeTA's tissues and what surrounds them


@dataclass(frozen=True)
class Shape:
    """A label map to train on: a subject's own, or an edited one."""

    subject: str
    path: Path

    @property
    def name(self) -> str:
        """The file's name without extension: a map's name in banks and weights."""
        return strip_extension(self.path)


def read_map(path: Path, protocol: LabelProtocol, spacing_mm: float, margin_mm: float) -> Volume:
    """A label map in RAS order on cubic voxels, with a margin of background on every side of the brain.

    Raises: VolumeError for an unreadable file, LabelError for values that are not the protocol's, or an empty map.
    """
    volume, _ = to_ras(read_volume(path, labels=True))
    protocol.index_of(volume.data, subject=path)
    if not volume.data.any():
        raise LabelError(path, found="no structure at all", fix="leave this map out")
    fine = on_spacing(volume, spacing_mm, protocol)
    box, edge = bounding_box(fine.data != 0), round(margin_mm / spacing_mm)
    (x, y, z), (width, depth, height) = box.start, box.shape
    start, shape = (x - edge, y - edge, z - edge), (width + 2 * edge, depth + 2 * edge, height + 2 * edge)
    wanted = Window(start, shape, box.full_shape)  # beyond the map's end there is background
    return replace(fine, data=wanted.crop(fine.data), affine=wanted.affine(fine.affine), path=path)


def seed_of(seed: int, *words: str) -> int:
    """A seed of its own for everything that has a name: neither order nor number of the others matters."""
    return seed * 1_000_003 + zlib.crc32("/".join(words).encode())


def shapes_of(subject: Subject, out: Path, config: FetalConfig, spacing_mm: float, *, edited: int) -> tuple[Shape, ...]:
    """A subject's own map and its edited variants as files ``NAME.nii.gz`` and ``NAME_shape-NN.nii.gz``.

    A variant depends on its own map and the seed alone. What is there is not made again: maps of other settings are
    refused before (``study.json``).

    Args:
        out: folder of all subjects' maps. edited: how many variants beside the map itself.
    """
    protocol = load_protocol(config.protocol)
    own = out / f"{subject.name}.nii.gz"
    if not own.is_file():
        write_volume(read_map(subject.path, protocol, spacing_mm, config.margin_mm), own)
    found = [Shape(subject.name, own)]
    for number in range(1, edited + 1):
        path = out / f"{subject.name}_shape-{number:02d}.nii.gz"
        if not path.is_file():
            labels = read_volume(own, labels=True)
            rng = torch.Generator().manual_seed(seed_of(config.seed, "training shape", subject.name, str(number)))
            write_volume(replace(labels, data=varied(labels, protocol, rng=rng), path=None), path)
        found.append(Shape(subject.name, path))
    return tuple(found)


def entries_of(arm: Arm, shapes: Sequence[Shape], config: FetalConfig) -> list[tuple[Shape, int]]:
    """One subject's entries in an arm's bank: every arm has ``variants`` of them, with the same surroundings.

    Args:
        shapes: the subject's own map first.
    Returns: shape and version of the surroundings, 0 to ``variants`` - 1.
    """
    plain = config.variants - (config.edited if arm.shapes else 0)
    return [(shapes[0] if n < plain else shapes[1 + n - plain], n) for n in range(config.variants)]


def make_bank(arm: Arm, shapes: Mapping[str, Sequence[Shape]], out: Path, config: FetalConfig) -> Path:
    """The bank of an arm: every subject's entries, each with surroundings of its own. Made once.

    Args:
        shapes: by subject, its own map first, then the edited ones.
    """
    path = out / ("shapes.safetensors" if arm.shapes else "plain.safetensors")
    if path.is_file():
        return path
    maps: list[np.ndarray] = []
    names: list[str] = []
    spacings: list[list[float]] = []
    for subject, own in shapes.items():
        for shape, version in entries_of(arm, own, config):
            labels = read_volume(shape.path, labels=True)
            maps.append(_surrounded(labels, subject, version, config))
            spacings.append(labels.spacing_mm.tolist())
            names.append(f"{shape.name}_v{version:02d}")
    return LabelBank.from_maps(maps, spacings, names, load_protocol(GENERATION)).save(path)


def entry_weights(names: Sequence[str], weights: Mapping[str, float], subject: str | Path) -> list[float]:
    """Weights of a bank's entries: that of the map each one shows, so that equal weights of maps are uniform draws.

    Args:
        names: ``MAP_vNN`` each. weights: by map.
        subject: what an error is about.
    Raises: UsageError for a map that one of both does not have.
    """
    of_map = [name.rpartition("_v")[0] for name in names]
    for name in sorted({*of_map, *weights}):
        if name not in weights or name not in of_map:
            where = "the bank, but not in the weights" if name in of_map else "the weights, but not in the bank"
            raise UsageError(subject, found=f"{name} in {where}", fix="make both from the same maps")
    return [weights[name] for name in of_map]


def _surrounded(labels: Volume, subject: str, version: int, config: FetalConfig) -> np.ndarray:
    """The map with one version of surroundings, of the package's kinds in turn."""
    spec = SurroundingsSpec()
    rng = np.random.default_rng(seed_of(config.seed, "surroundings", subject, str(version)))
    kind = spec.kinds[version % len(spec.kinds)]
    return surround(labels.data, labels.spacing_mm.tolist(), spec, rng, kind=kind).labels
