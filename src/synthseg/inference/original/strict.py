"""The original's way from a scan to its outputs, step by step and dense (reference 6.3 to 6.9): for its very digits.

What our own pipeline does better is left as it was there: single-precision sums, the window of quality control, parcels
that reach outside the cortex and may lie on the other side. What differs: scans on which the original fails are refused
in words or segmented with a note, and where it divides 0 by 0, its volumes are NaN and ours are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from synthseg.engine.choose import choose
from synthseg.errors import UsageError
from synthseg.inference.bundle import check_fit, main_of, parcel_structures
from synthseg.inference.model import Model
from synthseg.inference.modes import LOCATOR
from synthseg.inference.original.clean import clean, normalise
from synthseg.inference.original.networks import (
    needs_as_original,
    parcel_posteriors,
    require_originals_kind,
    structure_posteriors,
)
from synthseg.inference.original.parcels import divide_cortex
from synthseg.inference.original.prepare import OriginalInput, crop_sizes, prepare_as_original
from synthseg.inference.original.quality import original_quality
from synthseg.inference.original.result import ScanResult
from synthseg.inference.original.scan import read_scan
from synthseg.inference.original.sums import RunningSums, volume_table
from synthseg.inference.placement import Placement, place, wherever_there_is_memory
from synthseg.inference.predict import enough_memory, pick_device
from synthseg.volumes import Volume, from_ras


@dataclass(frozen=True)
class _Segmented:
    """What is known of the patch [x, y, z] in RAS order; posteriors [x, y, z, C] only if they were asked for."""

    labels: np.ndarray
    posteriors: np.ndarray | None
    volumes_mm3: dict[str, float | np.float32]
    quality: dict[str, float] | None
    notes: tuple[str, ...]


@final
class StrictSegmenter:
    """Segments as the original would, with its networks.

    Args:
        models: by role, as ``bundle.gather(mode, ..., locator=False)`` gives them: "structures", or "tissues",
            "denoiser" and "guided" (its robust mode); perhaps "parcels" and "quality".
        fast: no mirror averaging, no topology clean-up; robust networks have neither anyway, and no smoothing.
        ct: clip to 0 to 80 Hounsfield units first.
        crop: one size or three, in voxels of 1 mm in RAS order, of the centred patch that is segmented: rounded up to
            multiples of 32; what is outside becomes background. Volumes are then added up in double precision.
        device, threads, backend: as for :class:`synthseg.inference.Segmenter`. Always in single precision.

    Attributes:
        placement: what carries the networks out.

    Raises: WeightsError for networks that the original's steps are not made for, or that do not fit each other;
        UsageError for an unknown device, backend or crop.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        fast: bool = False,
        ct: bool = False,
        crop: int | Sequence[int] | None = None,
        device: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
    ) -> None:
        models = {role: model for role, model in models.items() if role != LOCATOR}
        check_fit(models)
        require_originals_kind(models)
        self.robust = "guided" in models
        self.fast, self.ct, self.crop = fast or self.robust, ct, crop_sizes(crop)
        if threads is not None:
            if threads < 1:
                raise UsageError("threads", found=str(threads), fix="use a number of at least 1")
            torch.set_num_threads(threads)
        choice = choose(backend, precision="float32", device=pick_device(device), threads=threads)
        self.placement = place(models, choice)

    @property
    def models(self) -> Mapping[str, Model]:
        return self.placement.models

    def segment(self, scan: str | Path | Volume, *, posteriors: bool = False, resampled: bool = False) -> ScanResult:
        """Segment one scan.

        Args:
            scan: a file (the header's voxel sizes are the original's), or a volume from memory.
            posteriors, resampled: also give these.
        Raises: VolumeError if the scan cannot be read, InvariantError if a network gives no numbers, OutOfMemory.
        """
        read = read_scan(scan)
        subject = read.subject
        with enough_memory(subject, torch.device("cpu"), read.data.shape):
            prepared = prepare_as_original(read, ct=self.ct, crop=self.crop, keep_resampled=resampled)
        del read
        done, _ = wherever_there_is_memory(
            self.placement,
            lambda placement: self._segment(placement, prepared, subject, posteriors=posteriors),
            subject,
            prepared.padded.shape,
        )
        path = Path(scan) if isinstance(scan, (str, Path)) else scan.path
        changed = prepared.resampled
        return ScanResult(
            labels=Volume(_own_axes(done.labels, prepared), prepared.affine, path),
            posteriors=None if done.posteriors is None else _own_axes_of_channels(done.posteriors, prepared),
            resampled=None if changed is None else Volume(changed.astype(np.float32), prepared.affine, path),
            volumes_mm3=done.volumes_mm3,
            quality=done.quality,
            notes=(*prepared.notes, *done.notes),
        )

    def _segment(self, placement: Placement, prepared: OriginalInput, subject: str, *, posteriors: bool) -> _Segmented:
        """Structures, then what is read of their labels: parcels, quality. Posteriors go as soon as they may."""
        models, image = placement.models, prepared.image
        channels = main_of(models).channels
        precision = np.float32 if self.crop is None else np.float64
        needs = needs_as_original(models, prepared.padded.shape)
        dense, winners = structure_posteriors(
            placement, image, flip=not self.fast, smooth=not self.robust, needs=needs, subject=subject
        )
        clean(dense, prepared.inside, channels, topology=not self.fast)
        kept: np.ndarray | None = dense[prepared.inside]
        assert kept is not None
        labels, sums, empty = _read(kept, channels.values, precision, prepared.orientation.flips)
        if not posteriors:
            kept = None
        del dense
        notes = [placement.note] if placement.note else []
        if empty:
            notes.append(_nothing_left(empty, "posterior of any label"))
        parcel_sums, parcels = None, parcel_structures(models["parcels"]) if "parcels" in models else ()
        if "parcels" in models:
            values = models["parcels"].channels.values
            slabs = parcel_posteriors(placement, image, winners, needs, subject)
            parcel_sums, empty = divide_cortex(labels, slabs, prepared.inside, values, precision)
            if empty:
                notes.append(_nothing_left(empty, "posterior of any parcel"))
        quality = original_quality(placement, winners, channels, subject) if "quality" in models else None
        volumes = volume_table(sums, channels, prepared.voxel_mm3, parcel_sums, parcels)
        return _Segmented(labels, kept, volumes, quality, tuple(notes))


def _read(
    posteriors: np.ndarray,
    values: np.ndarray,
    precision: type[np.float32] | type[np.float64],
    flips: tuple[bool, bool, bool],
) -> tuple[np.ndarray, np.ndarray, int]:
    """Normalise [x, y, z, C] in place, plane by plane, and read them.

    The original adds up after it has turned the posteriors back to the scan's own axes (reference 6.7, then 6.8). That
    array is a view, of which numpy's sum follows the flips, and not the order of axes.

    Args:
        flips: which of the axes run the other way in the scan.
    Returns: labels [x, y, z] int32, sums of the channels but background in voxels, how many voxels had nothing left.
    """
    labels = np.empty(posteriors.shape[:3], np.int32)
    sums = RunningSums(len(values) - 1, precision)
    empty = 0
    backwards, *in_plane = (slice(None, None, -1 if flipped else 1) for flipped in flips)
    for plane, found in zip(posteriors[backwards], labels[backwards], strict=True):
        empty += normalise(plane)
        found[...] = values[plane.argmax(axis=-1)]
        sums.add(plane[(*in_plane, slice(1, None))])
    return labels, sums.sums, empty


def _nothing_left(voxels: int, of: str) -> str:
    return f"{voxels} voxels have no {of} left and became background: the original's volumes are NaN here."


def _own_axes(labels: np.ndarray, prepared: OriginalInput) -> np.ndarray:
    """Labels of the patch in the whole of the scan's own axes, 0 elsewhere."""
    whole = prepared.patch.uncrop(labels)
    return np.ascontiguousarray(from_ras(whole, prepared.orientation))


def _own_axes_of_channels(posteriors: np.ndarray, prepared: OriginalInput) -> np.ndarray:
    """Posteriors [x, y, z, C] likewise, where background is 1 elsewhere."""
    patch = prepared.patch
    if patch.shape != patch.full_shape:
        whole = np.zeros((*patch.full_shape, posteriors.shape[-1]), np.float32)
        whole[..., 0] = 1
        x, y, z = (slice(begin, begin + size) for begin, size in zip(patch.start, patch.shape, strict=True))
        whole[x, y, z] = posteriors
        posteriors = whole
    return np.moveaxis(from_ras(np.moveaxis(posteriors, -1, 0), prepared.orientation), 0, -1)
