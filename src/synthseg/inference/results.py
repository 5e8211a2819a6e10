"""From cleaned posteriors to a :class:`Segmentation`: labels on the grids asked for, volumes and the rest."""

from __future__ import annotations

import numpy as np

from synthseg.inference.config import InferenceConfig
from synthseg.inference.parcels import Parcels, scaled_to_cortex
from synthseg.inference.postprocess import labels_on, posteriors_on
from synthseg.inference.prepare import RESULT_SPACING_MM, Prepared, subject_of
from synthseg.inference.segmentation import Map4D, Segmentation
from synthseg.inference.sparse import SparsePosteriors, labels_in_box
from synthseg.inference.structures import CORTEX_VALUES, CSF_VALUE, Channels
from synthseg.inference.want import Want
from synthseg.volumes import Volume, from_ras, resample_to_spacing


def assemble(
    prepared: Prepared,
    cleaned: SparsePosteriors,
    channels: Channels,
    want: Want,
    config: InferenceConfig,
    parcels: Parcels | None = None,
) -> Segmentation:
    """Everything that a segmentation holds but its quality, timings and intervals.

    Args:
        cleaned: normalised posteriors on ``prepared.fine``, one channel a structure of ``channels``.
        parcels: divide the cortex, when given.
    Raises: InvariantError if the parcels cannot divide the cortex.
    """
    native, fine, sums = _label_maps(prepared, cleaned, channels, want, parcels)
    mm3 = cleaned.voxels * cleaned.grid.voxel_volume_mm3
    volumes = {int(value): float(volume) for value, volume in zip(channels.values[1:], mm3[1:], strict=True)}
    structures = channels.structures
    if parcels is not None:
        joint = config.parcel_scaling == "joint"
        structures = (*structures, *parcels.structures)
        volumes |= scaled_to_cortex(sums, parcels.structures, volumes, joint=joint)
    return Segmentation(
        subject=subject_of(prepared.scan),
        native=native,
        fine=fine,
        structures=structures,
        volumes_mm3=volumes,
        total_mm3=float(mm3[1:].sum()),
        posteriors=_posteriors(prepared, cleaned, want) if want.posteriors else None,
        resampled=_resampled(prepared) if want.resampled else None,
        notes=(*prepared.notes, *(parcels.notes if parcels is not None else ())),
        intracranial=CSF_VALUE in volumes,
        tissue_maps=_tissue_maps(prepared, cleaned, channels, want) if want.tissue_maps else None,
    )


def _label_maps(
    prepared: Prepared, cleaned: SparsePosteriors, channels: Channels, want: Want, parcels: Parcels | None
) -> tuple[Volume | None, Volume | None, dict[int, float]]:
    """Labels on the scan's own grid and on the 1 mm grid, as asked for, and the parcels' soft sums of the latter.

    With parcels the 1 mm grid is always computed: volumes do not depend on the grid of the labels.
    """
    values = channels.values.astype(np.int32)
    same = prepared.native.same_as(cleaned.grid)
    sums: dict[int, float] = {}
    at_1mm = native = fine = None
    if parcels is not None or same or want.space != "native":
        box = labels_in_box(cleaned, values)
        if parcels is not None:
            row = {int(value): channel for channel, value in enumerate(values)}
            weights = {value: cleaned.channel(row[value]) for value in CORTEX_VALUES.values()}
            sums = parcels.divide(box, cleaned.box, weights)
        at_1mm = np.zeros(cleaned.grid.shape, np.int32)
        at_1mm[cleaned.slices] = box
    if want.space != "1mm":
        own = at_1mm if same else None
        if own is None:
            own = labels_on(cleaned, prepared.native, values)
            if parcels is not None:
                parcels.divide(own, prepared.native)
        elif want.space == "both":  # two results, each its own
            own = own.copy()
        native = Volume(_on_scan(own, prepared), prepared.original_affine, prepared.scan.path)
    if want.space != "native" and at_1mm is not None:
        fine = Volume(at_1mm, prepared.fine.affine, prepared.scan.path)
    return native, fine, sums


def _on_scan(data: np.ndarray, prepared: Prepared) -> np.ndarray:
    """From RAS order to the scan's own axes, in C order; the data itself where those are the same."""
    return np.ascontiguousarray(from_ras(data, prepared.orientation))


def _posteriors(prepared: Prepared, cleaned: SparsePosteriors, want: Want) -> Map4D:
    if want.space == "1mm":
        return Map4D(posteriors_on(cleaned, prepared.fine), prepared.fine.affine)
    return Map4D(from_ras(posteriors_on(cleaned, prepared.native), prepared.orientation), prepared.original_affine)


def _tissue_maps(prepared: Prepared, cleaned: SparsePosteriors, channels: Channels, want: Want) -> dict[str, Volume]:
    """Summed by tissue first, brought to the labels' grid then: both are linear, and three channels are few."""
    from synthseg.inference.tissue_maps import TISSUES, tissue_posteriors

    tissues = _posteriors(prepared, tissue_posteriors(cleaned, channels.values), want)
    return {
        name: Volume(np.ascontiguousarray(data), tissues.affine, prepared.scan.path)
        for name, data in zip(TISSUES, tissues.data[1:], strict=True)
    }


def _resampled(prepared: Prepared) -> Volume:
    if prepared.fine.same_as(prepared.native):
        return prepared.scan
    return resample_to_spacing(prepared.scan, RESULT_SPACING_MM, order=1)
