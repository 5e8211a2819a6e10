"""A 3D array with its grid, and the file names we take for volumes. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOLUME_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".npz")


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a label map on its grid.

    Args:
        data: [X, Y, Z] float32 (images) or int32 (label maps).
        affine: [4, 4] float64, voxel indices (0 = centre of the first voxel) to millimetres RAS+.
        path: the file it came from.
        notes: everything odd that was noticed or mended on the way, one sentence each.
    """

    data: np.ndarray
    affine: np.ndarray
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> np.ndarray:
        """[3] float64: distance between neighbouring voxel centres along each array axis."""
        return spacing_of(self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.data.shape
        return x, y, z

    @property
    def subject(self) -> str:
        """What an error message calls this volume."""
        return str(self.path) if self.path is not None else "volume"


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """[3] float64, the lengths of the affine's columns in mm: voxel sizes also where the axes are oblique."""
    return np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))


def in_memory_order(data: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """A view of an array whose memory runs forward, slowest axis first, and the array's axes in that order.

    Flips and permutations of one block of memory (scans in RAS order are such views) are undone without a copy.
    """
    order = sorted(range(data.ndim), key=lambda axis: -abs(data.strides[axis]))
    forward = data[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in data.strides)]
    return forward.transpose(order), order


def extension_of(path: str | Path) -> str:
    """The volume extension at the end of the file's name in lower case, or ``""``. The folder's name does not count."""
    name = Path(path).name.lower()
    return next((extension for extension in VOLUME_EXTENSIONS if name.endswith(extension)), "")


def is_volume_path(path: str | Path) -> bool:
    """Whether the name is a volume's (``scan.nii.gz``, ``SCAN.NII``). Hidden files and bare extensions are not."""
    return extension_of(path) != "" and not Path(path).name.startswith(".")


def strip_extension(path: str | Path) -> str:
    """The file's name without folder and volume extension: ``"/in/sub-01_T1w.nii.gz"`` -> ``"sub-01_T1w"``."""
    name = Path(path).name
    extension = extension_of(name)
    return name[: -len(extension)] if extension else name
