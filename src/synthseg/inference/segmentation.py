"""What a segmentation is: labels on their grid, volumes, and everything worth saying about how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from synthseg.errors import InvariantError
from synthseg.inference.structures import Structure, find_structures, unsided
from synthseg.volumes import Volume

CSF_VALUE = 24
VOLUME_TOLERANCE = 1e-5  # relative: sums of float32 posteriors, each rounded on its own; measured: at most 6e-7


@dataclass(frozen=True)
class Map4D:
    """Posteriors: ``data`` [C, X, Y, Z] float32, one channel a structure in their order; ``affine`` [4, 4]."""

    data: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        subject: the scan's path, or "scan".
        native: int32 labels on the scan's own grid and orientation; None when only 1 mm was asked for.
        fine: int32 labels on the 1 mm grid in RAS order; None when only the native grid was asked for.
        structures: what the values mean, background first.
        volumes_mm3: soft volume of every structure but background, by value: the sum of its posteriors at 1 mm.
        total_mm3: sum over all structures of the protocol, CSF included; not changed by choosing structures.
        posteriors: on the grid of ``labels``; None unless asked for.
        resampled: the scan on the 1 mm grid, intensities as they were; None unless asked for.
        notes: what was noticed, decided or mended on the way, in sentences.
        timings_s: seconds by stage.
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
    timings_s: dict[str, float] = field(default_factory=dict)
    intracranial: bool = True  # whether the protocol has CSF, so that the total is the intracranial volume

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
    def total_name(self) -> str:
        """'total intracranial' where the protocol has CSF (reference 6.8), else 'total segmented'."""
        return "total intracranial" if self.intracranial else "total segmented"

    def volumes_by_name(self) -> dict[str, float]:
        """Soft volumes in mm3 by structure name, the total first."""
        named = {s.name: self.volumes_mm3[s.value] for s in self.structures if s.value != 0}
        return {self.total_name: self.total_mm3, **named}


def check_invariants(segmentation: Segmentation, foreground_mm3: float) -> None:
    """What must hold before anything is written.

    Args:
        foreground_mm3: the volume of all that is not background, from the background's posterior alone: a quantity
            that knows nothing of the structures, so that one lost, counted twice or not normalised shows.
    Raises: InvariantError if there is no structure at all, a label the protocol does not know, a volume that is not a
        finite number, or volumes or a total other than ``foreground_mm3``.
    """
    subject = segmentation.subject
    known = [structure.value for structure in segmentation.structures]
    for labels in segmentation.label_maps:
        present = np.unique(labels.data)
        if not present.any():
            raise InvariantError(
                subject, found="no structure anywhere", fix="look at the scan: is it a brain, upright?"
            )
        unknown = sorted(set(present.tolist()) - set(known))
        if unknown:
            raise InvariantError(subject, found=f"labels {unknown} outside the protocol", fix="report this as a bug")
    volumes = np.array(list(segmentation.volumes_mm3.values()))
    if not np.isfinite(volumes).all() or volumes.min(initial=0) < 0:
        raise InvariantError(
            subject, found="volumes that are not numbers", fix="check the weights: synthseg weights verify"
        )
    for what, sum_mm3 in (("volumes that add up to", volumes.sum()), ("a total of", segmentation.total_mm3)):
        if abs(sum_mm3 - foreground_mm3) > VOLUME_TOLERANCE * max(foreground_mm3, 1):
            found = f"{what} {sum_mm3:.0f} mm3, where {foreground_mm3:.0f} mm3 are not background"
            raise InvariantError(subject, found=found, fix="report this as a bug")


def merge_sides(segmentation: Segmentation) -> Segmentation:
    """Left and right as one: right labels take their left partner's value, volumes and posteriors are added.

    Works after structures were chosen too: a right label whose left partner was not chosen keeps its value.
    """
    left = {s.value for s in segmentation.structures if s.side == "left"}
    target = {
        s.value: s.partner if s.side == "right" and s.partner in left else s.value for s in segmentation.structures
    }
    kept = [s for s in segmentation.structures if target[s.value] == s.value]
    volumes = {s.value: 0.0 for s in kept if s.value != 0}
    for value, volume in segmentation.volumes_mm3.items():
        volumes[target[value]] += volume
    order = {s.value: index for index, s in enumerate(kept)}
    channels = [order[target[s.value]] for s in segmentation.structures]
    structures = tuple(Structure(s.value, unsided(s.name), s.color, partner=s.value) for s in kept)
    return _relabelled(segmentation, target, structures, volumes, channels)


def choose_structures(segmentation: Segmentation, wanted: Sequence[str]) -> Segmentation:
    """Keep some structures, the others become background; ``total_mm3`` stays that of the whole.

    A note names those that no voxel has: an empty label map should not come without a word.

    Raises: UsageError for a name or value that is not there (see :func:`find_structures`).
    """
    chosen = find_structures(wanted, segmentation.structures)
    kept = {structure.value for structure in chosen}
    target = {s.value: s.value if s.value in kept else 0 for s in segmentation.structures}
    structures = (segmentation.structures[0], *chosen)
    order = {s.value: index for index, s in enumerate(structures)}
    channels = [order[target[s.value]] for s in segmentation.structures]
    volumes = {s.value: segmentation.volumes_mm3[s.value] for s in chosen}
    result = _relabelled(segmentation, target, structures, volumes, channels)
    return replace(result, notes=(*segmentation.notes, *_absent(result)))


def _absent(segmentation: Segmentation) -> list[str]:
    """A note on the structures that no voxel has on any grid."""
    present = set().union(*(np.unique(labels.data).tolist() for labels in segmentation.label_maps))
    asked = [s for s in segmentation.structures if s.value != 0]
    names = ", ".join(s.name for s in asked if s.value not in present)
    if not names:
        return []
    if not present - {0}:
        return [f"none of the chosen structures was found, the label map is empty: {names}"]
    return [f"of the chosen structures these were not found: {names}"]


def _relabelled(
    segmentation: Segmentation,
    target: dict[int, int],
    structures: tuple[Structure, ...],
    volumes: dict[int, float],
    channels: list[int],
) -> Segmentation:
    """Apply value -> value to the label maps and channel -> channel (adding up) to the posteriors."""
    values = np.array(sorted(target))
    new_values = np.array([target[value] for value in sorted(target)], dtype=np.int32)

    def mapped(volume: Volume | None) -> Volume | None:
        if volume is None:
            return None
        return replace(volume, data=new_values[np.searchsorted(values, volume.data)])

    posteriors = segmentation.posteriors
    if posteriors is not None:
        summed = np.zeros((len(structures), *posteriors.data.shape[1:]), dtype=np.float32)
        for channel, new_channel in zip(posteriors.data, channels, strict=True):
            summed[new_channel] += channel
        posteriors = Map4D(summed, posteriors.affine)
    return replace(
        segmentation,
        native=mapped(segmentation.native),
        fine=mapped(segmentation.fine),
        structures=structures,
        volumes_mm3=volumes,
        posteriors=posteriors,
    )
