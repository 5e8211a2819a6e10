"""Make a label bank from label-map files (build time; training itself reads the bank only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol


def pack_files(
    paths: Sequence[Path], protocol: LabelProtocol, *, on_map: Callable[[str], None] = lambda _: None
) -> LabelBank:
    """Read, orient to RAS, cut away empty borders and pack.

    Args:
        paths: label-map files with the protocol's values.
        protocol: see :meth:`LabelBank.from_maps`.
        on_map: called with each map's name when it has been read.
    Raises: VolumeError for an unreadable file, LabelError naming the file and its unknown values.
    """
    from synthseg.volumes.orient import to_ras
    from synthseg.volumes.read import read_volume

    maps, spacings, names = [], [], []
    for path in paths:
        volume, _ = to_ras(read_volume(path, labels=True))
        protocol.index_of(volume.data, subject=str(path))  # names the file before anything is cut away
        maps.append(cut_background(volume.data))
        spacings.append(volume.spacing_mm.tolist())
        names.append(Path(path).name)
        on_map(names[-1])
    return LabelBank.from_maps(maps, spacings, names, protocol)


def cut_background(label_map: np.ndarray) -> np.ndarray:
    """Cut to the non-zero box plus one voxel of whatever surrounds it.

    That voxel keeps sampling beyond the map's border what it was: background around a head, tissue where the scanner's
    field of view cut the neck.
    """
    mask = label_map != 0
    if not mask.any():
        return label_map
    window = []
    for axis, size in enumerate(label_map.shape):
        present = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        window.append(slice(max(int(present[0]) - 1, 0), min(int(present[-1]) + 2, size)))
    return np.ascontiguousarray(label_map[tuple(window)])
