"""A picture to trust a segmentation by: three slices of the scan with the labels in their protocol's colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import ShapeError, UsageError
from synthseg.files import atomic_file
from synthseg.inference.structures import Structure
from synthseg.volumes import Volume, to_ras

OPACITY = 0.5
PLANES = ("sagittal", "coronal", "axial")  # cut across RAS axes 0, 1, 2
WINDOW_PERCENTILES = (1.0, 99.5)  # of the scan's voxels inside the picture, shown as black and white


def write_overlay(scan: Volume, labels: Volume, structures: tuple[Structure, ...], path: Path) -> Path:
    """Write a PNG: above the scan, below the scan under its labels, through the middle of the labelled brain.

    Args:
        scan, labels: any orientation; resliced onto the labels' grid if the grids differ.
        structures: colours of the labels; values that are not among them are drawn white.
    Returns: the path.
    Raises: UsageError if matplotlib is not installed, OutputError if the file cannot be written.
    """
    figure = draw_overlay(scan, labels, structures)
    image = io.BytesIO()
    # Software is left out of the PNG, so that equal pictures are equal files.
    figure.savefig(image, format="png", dpi=100, facecolor="black", metadata={"Software": None})
    with atomic_file(path) as file:
        file.write(image.getvalue())
    return path


def require_matplotlib() -> None:
    """Raise UsageError if no picture can be drawn: to be asked before the first scan is computed, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        fix = 'install it with: pip install "synthseg[report]"'
        raise UsageError("the overlay picture", found="no matplotlib", fix=fix) from error


def draw_overlay(scan: Volume, labels: Volume, structures: tuple[Structure, ...]) -> Any:
    """The figure of :func:`write_overlay`: a matplotlib Figure with 2 x 3 axes."""
    require_matplotlib()
    from matplotlib.figure import Figure

    label_map, _ = to_ras(labels)
    image, _ = to_ras(_on_grid_of(scan, labels))
    centre = cut_through(label_map.data)
    low, high = np.percentile(image.data, WINDOW_PERCENTILES)
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, name in enumerate(PLANES):
        across = [other for other in range(3) if other != axis]
        aspect = label_map.spacing_mm[across[1]] / label_map.spacing_mm[across[0]]
        # Transposed and drawn from below: right or front to the right, up upwards.
        grey = image.data.take(centre[axis], axis=axis).T
        colored = blend(
            grey, label_map.data.take(centre[axis], axis=axis).T, structures, low=float(low), high=float(high)
        )
        axes[0, axis].imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=aspect)
        axes[1, axis].imshow(colored, origin="lower", aspect=aspect)
        axes[0, axis].set_title(name, color="white", fontsize=10)
    for cell in axes.flat:
        cell.set_axis_off()
    figure.suptitle(_title(scan), color="white", fontsize=10)
    return figure


def cut_through(labels: np.ndarray) -> tuple[int, int, int]:
    """The voxel in the middle of the labelled box, where the three planes cross; the array's middle if it is empty.

    Off the left-right middle by a sixth of the brain: the mid-sagittal plane shows hardly any structure.
    """
    if not labels.any():
        x, y, z = (n // 2 for n in labels.shape)
        return x, y, z
    ranges = [np.flatnonzero(labels.any(axis=tuple(o for o in range(3) if o != axis)))[[0, -1]] for axis in range(3)]
    x, y, z = (int(low + high) // 2 for low, high in ranges)
    return x + int(ranges[0][1] - ranges[0][0]) // 6, y, z


def blend(
    grey: np.ndarray, labels: np.ndarray, structures: tuple[Structure, ...], *, low: float, high: float
) -> np.ndarray:
    """RGB picture [rows, columns, 3] in [0, 1]: grey from ``low`` (black) to ``high`` (white), labels half over it."""
    scaled = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat(scaled[..., None], 3, axis=2)
    colors = {structure.value: np.asarray(structure.color) / 255 for structure in structures}
    for value in np.unique(labels):
        if value != 0:
            where = labels == value
            picture[where] = (1 - OPACITY) * picture[where] + OPACITY * colors.get(int(value), np.ones(3))
    return picture


def _on_grid_of(scan: Volume, labels: Volume) -> Volume:
    from synthseg.volumes import reslice

    if scan.data.ndim != 3 or labels.data.ndim != 3:
        found = f"shapes {scan.data.shape} and {labels.data.shape}"
        raise ShapeError("overlay", found=found, fix="pass two 3D volumes")
    if scan.data.shape == labels.data.shape and np.allclose(scan.affine, labels.affine, atol=1e-4):
        return scan
    data = reslice(scan.data, scan.affine, labels.data.shape, labels.affine, order=1)
    return Volume(data, labels.affine, scan.path)


def _title(scan: Volume) -> str:
    return scan.path.name if scan.path is not None else "scan"
