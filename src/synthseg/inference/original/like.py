"""Segmenting with the original's settings and onto the original's grid, by our own pipeline.

What the settings are is the original's (reference 6.3 to 6.8), how they are carried out is ours: windows around the
brain, slabs, sums in double precision, parcels of their own hemisphere. The original's slips are not repeated; who
needs its very digits takes ``original/strict.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from synthseg.errors import VolumeError
from synthseg.inference.bundle import AnyWeights, Weights
from synthseg.inference.config import InferenceConfig
from synthseg.inference.modes import mode_config
from synthseg.inference.original.prepare import crop_sizes, crop_window
from synthseg.inference.original.result import ScanResult
from synthseg.inference.original.scan import read_scan
from synthseg.inference.prepare import RESULT_SPACING_MM, Prepared, grid_of, looks_like_ct
from synthseg.inference.segmentation import Map4D, Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.structures import Structure
from synthseg.inference.want import Want
from synthseg.volumes import (
    Orientation,
    Volume,
    Window,
    from_ras,
    read_volume,
    resample_to_spacing,
    reslice,
    to_ras,
)
from synthseg.volumes.standard import SPACING_TOLERANCE, close_to_spacing

PERCENTILES = (0.5, 99.5)  # of all voxels: become 0 and 1 (reference 6.3, step 6)
DECIMALS = 3  # of volumes in mm3
MODES = {(False, False): "default", (False, True): "fast", (True, False): "robust-fast", (True, True): "robust-fast"}


def mode_of(*, robust: bool, fast: bool) -> str:
    """The mode that the original's flags stand for: ``--robust`` always is fast as well (reference 6.1)."""
    return MODES[robust, fast]


def settings_of(*, robust: bool, fast: bool, ct: bool) -> InferenceConfig:
    """The original's settings: CT is what it is told to be, never guessed."""
    return replace(mode_config(mode_of(robust=robust, fast=fast)), percentiles=PERCENTILES, ct=ct)


@final
class LikeOriginal:
    """Segments scans as the original's command does, with our pipeline.

    Args:
        weights, parcels, quality: as in :class:`Segmenter`.
        robust, fast, ct: the original's flags of these names.
        crop: one size or three, in voxels of 1 mm in RAS order, rounded up to multiples of 32: only the middle of the
            scan is shown to the networks, everything else is background.
        keep_geometry: labels and posteriors on the scan's own grid instead of the original's. With ``crop``, they go
            there by :func:`on_grid_of`.
        device, threads, backend, memory: as in :class:`Segmenter`.

    Attributes:
        segmenter: the pipeline; structures: what the labels can be, background first, parcels last.

    Raises: what :class:`Segmenter` does.
    """

    def __init__(
        self,
        weights: Weights = None,
        *,
        robust: bool = False,
        fast: bool = False,
        ct: bool = False,
        parcels: bool | AnyWeights = False,
        quality: bool | AnyWeights = False,
        crop: int | Sequence[int] | None = None,
        keep_geometry: bool = False,
        device: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        memory: str | int | None = None,
    ) -> None:
        self.crop = crop_sizes(crop)
        self.keep_geometry = keep_geometry
        self.segmenter = Segmenter(
            weights,
            mode_of(robust=robust, fast=fast),
            config=settings_of(robust=robust, fast=fast, ct=ct),
            parcels=parcels,
            quality=quality,
            device=device,
            threads=threads,
            backend=backend,
            memory=memory,
        )

    @property
    def structures(self) -> tuple[Structure, ...]:
        return self.segmenter.structures

    def segment(self, scan: str | Path | Volume, *, posteriors: bool = False, resampled: bool = False) -> ScanResult:
        """Segment one scan.

        Args:
            scan: a file or a volume.
            posteriors, resampled: put these into the result too.
        Raises: what :meth:`Segmenter.segment` does.
        """
        volume = scan if isinstance(scan, Volume) else read_like_original(scan)
        at_1mm = volume
        if not close_to_spacing(volume.spacing_mm, RESULT_SPACING_MM, SPACING_TOLERANCE):
            at_1mm = resample_to_spacing(volume, RESULT_SPACING_MM, order=1)
        answer = self._cropped if self.crop is not None else self._whole
        segmentation, labels, maps = answer(volume, at_1mm, posteriors)
        notes = segmentation.notes
        if self.segmenter.config.ct is False and looks_like_ct(volume.data):
            notes = (*notes, "looks like CT (Hounsfield units): without --ct, intensities are not clipped to [0, 80]")
        quality = segmentation.quality
        result = ScanResult(
            labels=labels,
            posteriors=None if maps is None else np.moveaxis(maps, 0, -1),
            resampled=at_1mm if resampled and at_1mm is not volume else None,
            volumes_mm3=volumes_of(segmentation),
            quality=None if quality is None else dict(quality.scores),
            notes=notes,
        )
        return on_grid_of(result, volume) if self.keep_geometry and self.crop is not None else result

    def _whole(
        self, volume: Volume, at_1mm: Volume, posteriors: bool
    ) -> tuple[Segmentation, Volume, np.ndarray | None]:
        """All of the scan: its segmentation, labels on their grid, posteriors [C, X, Y, Z] there."""
        prepared, orientation = self._prepared(volume, at_1mm)
        space = "native" if self.keep_geometry else "1mm"
        segmentation = self.segmenter.segment(prepared, Want(space=space, posteriors=posteriors))
        maps = None if segmentation.posteriors is None else segmentation.posteriors.data
        if segmentation.fine is None:
            return segmentation, segmentation.labels, maps
        labels = _in_own_axes(segmentation.fine.data, orientation)
        if maps is not None:
            maps = from_ras(maps, orientation)
        return segmentation, replace(at_1mm, data=labels, notes=()), maps

    def _prepared(self, volume: Volume, at_1mm: Volume) -> tuple[Prepared, Orientation]:
        """What the networks read, and a result grid that begins at the edges of the scan's own first voxels.

        Our grids begin at the left, back and bottom, whatever way the scan's axes run. Where a scan's sides are no
        whole millimetres, the original's 1 mm grid is another one: it is resampled along the scan's own axes first and
        turned afterwards. Networks at 1 mm are shown just that grid, so that nothing is interpolated on the way back.
        """
        at_1mm_network = abs(self.segmenter.model.spacing_mm - RESULT_SPACING_MM) < 1e-6
        prepared = self.segmenter.prepare(at_1mm if at_1mm_network else volume)
        scan, orientation = to_ras(volume)
        fine, _ = to_ras(at_1mm)
        with_grids = replace(prepared, scan=scan, original_affine=volume.affine, fine=grid_of(fine))
        return replace(with_grids, orientation=orientation), orientation

    def _cropped(
        self, volume: Volume, at_1mm: Volume, posteriors: bool
    ) -> tuple[Segmentation, Volume, np.ndarray | None]:
        """As :meth:`_whole`, of the middle only: the patch is segmented as if it were the scan, then put back."""
        assert self.crop is not None  # or the whole would be asked for
        scan, orientation = to_ras(at_1mm)
        window = crop_window(scan.shape, self.crop)
        patch = replace(scan, data=window.crop(scan.data), affine=window.affine(scan.affine))
        segmentation = self.segmenter.segment(patch, Want(space="1mm", posteriors=posteriors))
        assert segmentation.fine is not None  # it was asked for
        labels = _in_own_axes(window.uncrop(segmentation.fine.data), orientation)
        maps = _uncropped(segmentation.posteriors, window)
        return (
            segmentation,
            replace(at_1mm, data=labels, path=volume.path, notes=()),
            None if maps is None else from_ras(maps, orientation),
        )


def read_like_original(path: str | Path) -> Volume:
    """A scan as every other one is read; of a 4D file with few channels the first, with a note (reference 6.3, step 1).

    Raises: VolumeError.
    """
    try:
        return read_volume(path)
    except VolumeError:
        scan = read_scan(path)  # which takes such files, and raises the same for all others
        return Volume(scan.data.astype(np.float32), scan.affine, scan.path, scan.notes)


def on_grid_of(result: ScanResult, scan: Volume) -> ScanResult:
    """A result on the grid of the scan: labels of the nearest voxel, posteriors interpolated; outside, background."""
    labels, posteriors = result.labels, result.posteriors
    if labels.shape == scan.shape and np.array_equal(labels.affine, scan.affine):
        return result
    data = reslice(labels.data, labels.affine, scan.shape, scan.affine, order=0)
    if posteriors is not None:
        maps = np.empty((*scan.shape, posteriors.shape[-1]), dtype=np.float32)
        for channel in range(posteriors.shape[-1]):  # one at a time: a copy of one, not of all
            outside = 1.0 if channel == 0 else 0.0
            source = posteriors[..., channel]
            maps[..., channel] = reslice(source, labels.affine, scan.shape, scan.affine, order=1, outside=outside)
        posteriors = maps
    return replace(result, labels=Volume(data, scan.affine, scan.path), posteriors=posteriors)


def volumes_of(segmentation: Segmentation) -> dict[str, float | np.float32]:
    """Volumes in mm3 by column of the original's table (reference 6.9): without CSF there is no total."""
    named = segmentation.volumes_by_name()
    if not segmentation.intracranial:
        named.pop(segmentation.total_name)
    return {name: round(volume, DECIMALS) for name, volume in named.items()}


def _in_own_axes(data: np.ndarray, orientation: Orientation) -> np.ndarray:
    return np.ascontiguousarray(from_ras(data, orientation))


def _uncropped(posteriors: Map4D | None, window: Window) -> np.ndarray | None:
    """Posteriors [C, X, Y, Z] of a patch in the whole: beyond it all is background."""
    if posteriors is None:
        return None
    maps = window.uncrop(posteriors.data)
    maps[0] = window.uncrop(posteriors.data[0], fill=1)
    return maps
