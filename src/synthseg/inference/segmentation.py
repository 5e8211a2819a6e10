"""What a segmentation is: labels on their grid, volumes, and everything worth saying about how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from synthseg.errors import InvariantError
from synthseg.inference.quality import Quality
from synthseg.inference.scan_warnings import ScanWarning
from synthseg.inference.structures import Structure, find_structures, unsided
from synthseg.volumes import Volume

VOLUME_TOLERANCE = 1e-5  # relative: sums of float32 posteriors, each rounded on its own; measured: at most 6e-7


@dataclass(frozen=True)
class Map4D:
    """Posteriors: ``data`` [C, X, Y, Z] float32, one channel a structure in their order; ``affine`` [4, 4]."""

    data: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A volume over ``n`` repetitions, all in mm3: mean, standard deviation, and the interval from low to high."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


@dataclass(frozen=True)
class Ran:
    """What carried a network out: the backend, the device it was on, the precision of its arithmetic."""

    backend: str
    device: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        subject: the scan's path, or "scan".
        native: int32 labels on the scan's own grid and orientation; None when only 1 mm was asked for.
        fine: int32 labels on the 1 mm grid in RAS order; None when only the native grid was asked for.
        structures: what the values mean, background first. With cortical parcels: the network's structures, then the
            parcels, each of which names in ``Structure.whole`` the cortex it is a part of.
        volumes_mm3: soft volume of every structure but background, by value: the sum of its posteriors at 1 mm. Those
            of parcels add up to the cortex of their hemisphere, which keeps its own volume though no voxel has its
            value any more.
        total_mm3: sum over all structures of the protocol, CSF included and parcels not counted again; not changed by
            choosing structures.
        posteriors: on the grid of ``labels``; None unless asked for. Their channels are ``posterior_structures``.
        resampled: the scan on the 1 mm grid, intensities as they were; None unless asked for.
        notes: what was noticed, decided or mended on the way, in sentences.
        warnings: why the result should be looked at before it is used (``scan_warnings.py``), serious ones first.
        timings_s: seconds by stage.
        quality: predicted Dice of the whole segmentation; None unless asked for.
        intervals: spread of the volumes over repetitions, by value, the total's under 0; None unless asked for.
        tissue_maps: probabilities of grey matter, white matter and CSF ("gm", "wm", "csf"), float32, each on the grid
            and in the orientation of ``labels``; None unless asked for. Not changed by choosing structures.
        ran: what carried out each network, by role: where memory ran out, not what was planned.
    """

    subject: str
    native: Volume | None
    fine: Volume | None
    structures: tuple[Structure, ...]
    volumes_mm3: dict[int, float]
    total_mm3: float
    posteriors: Map4D | None = None
    resampled: Volume | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[ScanWarning, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    intracranial: bool = True  # whether the protocol has CSF, so that the total is the intracranial volume
    quality: Quality | None = None
    intervals: dict[int, Interval] | None = None
    tissue_maps: dict[str, Volume] | None = None
    ran: dict[str, Ran] = field(default_factory=dict)

    @property
    def labels(self) -> Volume:
        """Labels on the grid asked for; on the scan's own when both were."""
        labels = self.native if self.native is not None else self.fine
        assert labels is not None  # a segmentation is made with at least one
        return labels

    @property
    def label_maps(self) -> tuple[Volume, ...]:
        return tuple(volume for volume in (self.native, self.fine) if volume is not None)

    @property
    def posterior_structures(self) -> tuple[Structure, ...]:
        """What the channels of ``posteriors`` stand for, in order: cortical parcels have none of their own."""
        return tuple(structure for structure in self.structures if structure.whole is None)

    @property
    def total_name(self) -> str:
        """'total intracranial' where the protocol has CSF (reference 6.8), else 'total segmented'."""
        return "total intracranial" if self.intracranial else "total segmented"

    def volumes_by_name(self) -> dict[str, float]:
        """Soft volumes in mm3 by structure name, the total first."""
        named = {s.name: self.volumes_mm3[s.value] for s in self.structures if s.value != 0}
        return {self.total_name: self.total_mm3, **named}


def check_invariants(segmentation: Segmentation, foreground_mm3: float, *, joint: bool = False) -> None:
    """What must hold before anything is written.

    Args:
        foreground_mm3: the volume of all that is not background, from the background's posterior alone: a quantity
            that knows nothing of the structures, so that one lost, counted twice or not normalised shows.
        joint: parcels were scaled to the cortex of both hemispheres together, not to that of each.
    Raises: InvariantError if there is no structure at all, a label the protocol does not know, a volume that is not a
        finite number, volumes or a total other than ``foreground_mm3``, or parcels that do not add up to their cortex.
    """
    subject = segmentation.subject
    known = [structure.value for structure in segmentation.structures]
    for labels in segmentation.label_maps:
        present = np.unique(labels.data)
        if not present.any():
            fix = "look at the scan: is it a brain (or what the weights are for), upright?"
            raise InvariantError(subject, found="no structure anywhere", fix=fix)
        unknown = sorted(set(present.tolist()) - set(known))
        if unknown:
            raise InvariantError(subject, found=f"labels {unknown} outside the protocol", fix="report this as a bug")
    volumes = np.array(list(segmentation.volumes_mm3.values()))
    if not np.isfinite(volumes).all() or volumes.min(initial=0) < 0:
        raise InvariantError(
            subject, found="volumes that are not numbers", fix="check the weights: synthseg weights verify"
        )
    parts = {s.value for s in segmentation.structures if s.whole is not None}
    sum_of_wholes = sum(volume for value, volume in segmentation.volumes_mm3.items() if value not in parts)
    for what, sum_mm3 in (("volumes that add up to", sum_of_wholes), ("a total of", segmentation.total_mm3)):
        if abs(sum_mm3 - foreground_mm3) > VOLUME_TOLERANCE * max(foreground_mm3, 1):
            found = f"{what} {sum_mm3:.0f} mm3, where {foreground_mm3:.0f} mm3 are not background"
            raise InvariantError(subject, found=found, fix="report this as a bug")
    if parts:
        _check_parts(segmentation, joint)


def _check_parts(segmentation: Segmentation, joint: bool) -> None:
    """Parcels add up to the cortex they are parts of. Raises InvariantError."""
    sums: dict[int, float] = {}
    for structure in segmentation.structures:
        if structure.whole is not None:
            sums[structure.whole] = sums.get(structure.whole, 0.0) + segmentation.volumes_mm3[structure.value]
    wholes = {value: segmentation.volumes_mm3[value] for value in sums}
    if joint:
        sums, wholes = {0: sum(sums.values())}, {0: sum(wholes.values())}
    for value, whole in wholes.items():
        if abs(sums[value] - whole) > VOLUME_TOLERANCE * max(whole, 1):
            found = f"parcels that add up to {sums[value]:.0f} mm3 of a cortex of {whole:.0f} mm3"
            raise InvariantError(segmentation.subject, found=found, fix="report this as a bug")


def merge_sides(segmentation: Segmentation) -> Segmentation:
    """Left and right as one: right labels take their left partner's value, volumes and posteriors are added.

    Works after structures were chosen too: a right label whose left partner was not chosen keeps its value. The
    intervals of what was merged are left out: they do not follow from those of the sides.
    """
    left = {s.value for s in segmentation.structures if s.side == "left"}
    target = {
        s.value: s.partner if s.side == "right" and s.partner in left else s.value for s in segmentation.structures
    }
    kept = [s for s in segmentation.structures if target[s.value] == s.value]
    volumes = {s.value: 0.0 for s in kept if s.value != 0}
    for value, volume in segmentation.volumes_mm3.items():
        volumes[target[value]] += volume
    structures = tuple(replace(s, name=unsided(s.name), side="neutral", partner=s.value) for s in kept)
    merged = {value for value, new in target.items() if value != new}
    alone = {s.value for s in kept} - {target[value] for value in merged}
    return _relabelled(segmentation, target, structures, volumes, alone)


def choose_structures(segmentation: Segmentation, wanted: Sequence[str]) -> Segmentation:
    """Keep some structures, the others become background; ``total_mm3`` stays that of the whole.

    A parcel that was not chosen belongs to its cortex, if that was. Notes name those that no voxel has and those that
    the posteriors lack: an empty label map, or posteriors of background alone, should not come without a word.

    Raises: UsageError for a name or value that is not there (see :func:`find_structures`).
    """
    chosen = find_structures(wanted, segmentation.structures)
    kept = {structure.value for structure in chosen}

    def target_of(structure: Structure) -> int:
        return next((value for value in (structure.value, structure.whole) if value in kept and value is not None), 0)

    target = {s.value: target_of(s) for s in segmentation.structures}
    structures = (segmentation.structures[0], *chosen)
    volumes = {s.value: segmentation.volumes_mm3[s.value] for s in chosen}
    result = _relabelled(segmentation, target, structures, volumes, kept)
    return replace(result, notes=(*segmentation.notes, *_absent(result), *_without_posteriors(result)))


def _absent(segmentation: Segmentation) -> list[str]:
    """A note on the structures that no voxel has on any grid."""
    present = set().union(*(np.unique(labels.data).tolist() for labels in segmentation.label_maps))
    present |= {s.whole for s in segmentation.structures if s.value in present}
    asked = [s for s in segmentation.structures if s.value != 0]
    names = ", ".join(s.name for s in asked if s.value not in present)
    if not names:
        return []
    if not present - {0, None}:
        return [f"none of the chosen structures was found, the label map is empty: {names}"]
    return [f"of the chosen structures these were not found: {names}"]


def _without_posteriors(segmentation: Segmentation) -> list[str]:
    """A note on the structures that the posteriors, if there are any, have no channel for."""
    names = ", ".join(s.name for s in segmentation.structures if s not in segmentation.posterior_structures)
    if segmentation.posteriors is None or not names:
        return []
    return [f"of the chosen structures these have no posteriors, being parcels: {names}"]


def _relabelled(
    segmentation: Segmentation,
    target: dict[int, int],
    structures: tuple[Structure, ...],
    volumes: dict[int, float],
    same: set[int],
) -> Segmentation:
    """Apply value -> value to the label maps and to the channels of the posteriors (adding up).

    ``same`` are the values whose intervals still hold; that of the total always does.
    """
    values = np.array(sorted(target))
    new_values = np.array([target[value] for value in sorted(target)], dtype=np.int32)

    def mapped(volume: Volume | None) -> Volume | None:
        if volume is None:
            return None
        return replace(volume, data=new_values[np.searchsorted(values, volume.data)])

    posteriors, intervals = segmentation.posteriors, segmentation.intervals
    if posteriors is not None:
        order = {s.value: i for i, s in enumerate(s for s in structures if s.whole is None)}
        summed = np.zeros((len(order), *posteriors.data.shape[1:]), dtype=np.float32)
        for channel, structure in zip(posteriors.data, segmentation.posterior_structures, strict=True):
            summed[order[target[structure.value]]] += channel
        posteriors = Map4D(summed, posteriors.affine)
    if intervals is not None:
        intervals = {value: interval for value, interval in intervals.items() if value == 0 or value in same}
    return replace(
        segmentation,
        native=mapped(segmentation.native),
        fine=mapped(segmentation.fine),
        structures=structures,
        volumes_mm3=volumes,
        posteriors=posteriors,
        intervals=intervals,
    )
