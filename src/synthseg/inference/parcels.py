"""Cortical parcels: which part of the cortex every cortical voxel belongs to, and how large the parts are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from synthseg.engine.memory import Plan
from synthseg.errors import InvariantError
from synthseg.inference.bundle import parcel_structures
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.model import CORTEX_INPUTS, Model
from synthseg.inference.predict import Smoother, require_finite, stream_posteriors
from synthseg.inference.structures import CORTEX_VALUES, Channels, Structure
from synthseg.networks.hierarchy import one_hot
from synthseg.volumes.grid import sample_linear

CHUNK = 1 << 17  # voxels sampled at a time: 34 parcels of them take 18 MB
# Posterior of all parcels of a side together up to which a voxel tells nothing of them: what a softmax leaves over.
LEAST_SEEN = 1e-3
# What is left of the posteriors outside the cortex that the network was shown: so little that it decides only where
# nothing else does, in a hemisphere of which the network was shown nothing.
BEYOND = 1e-9


@dataclass(frozen=True)
class Parcels:
    """Posteriors of the parcels on the working grid, asked only where there is cortex.

    ``posteriors`` [C, X, Y, Z] lie on ``grid``, next to 0 away from its cortex; ``structures`` are what channels 1 to
    C - 1 stand for; ``shown`` are the values of the cortex that the network was shown any of. ``notes`` gathers, in
    sentences, what :meth:`divide` had to guess.
    """

    posteriors: Tensor
    grid: Grid
    structures: tuple[Structure, ...]
    subject: str = "scan"
    shown: frozenset[int] = frozenset(CORTEX_VALUES.values())
    notes: list[str] = field(default_factory=list, compare=False)

    def divide(
        self, labels: np.ndarray, grid: Grid, weights: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, float]:
        """Give every voxel of cerebral cortex the most probable parcel of its own hemisphere, in place.

        The original takes the most probable parcel of all, so that a left parcel can lie in the right hemisphere
        (reference 6.6). Here the side is that of the cortex label, and where the parcels of that side have next to
        no posterior (the network sees the other side, or was shown no cortex), the nearest voxel with one decides. If
        no voxel of a side has more, or the network was shown nothing of that side, the little that there is decides
        everywhere, and a note says that this is a guess.

        Args:
            labels: [X, Y, Z] label values on ``grid``; 3 and 42 become parcels.
            weights: posterior [X, Y, Z] of the cortex by its value, for the volumes.
        Returns: for each parcel, in voxels of ``grid``, the sum of the cortex's posterior times the parcel's share of
            it over the cortex's voxels (over all that the posterior reaches, where it wins none; evenly, where the
            parcels have posterior 0 in all of that); 0 without weights.
        Raises: InvariantError if all parcels of a side have posterior 0 in all voxels of its cortex.
        """
        sums = {structure.value: 0.0 for structure in self.structures}
        for value in CORTEX_VALUES.values():
            voxels = np.argwhere(labels == value)
            won = len(voxels) > 0
            if not won and weights is not None:
                voxels = np.argwhere(weights[value] > 0)
            if len(voxels) == 0:
                continue
            index = tuple(voxels.T)
            amount = np.zeros(len(voxels), np.float32) if weights is None else weights[value][index]
            best, side_sums = self._shares(value, voxels, grid, amount, won=won)
            if won:
                labels[index] = best
            sums |= side_sums
        return sums

    def _shares(
        self, cortex: int, voxels: np.ndarray, grid: Grid, amount: np.ndarray, *, won: bool
    ) -> tuple[np.ndarray, dict[int, float]]:
        """Best parcel value [N] of the cortex's side at ``voxels`` [N, 3], and ``amount`` [N] shared out among them."""
        channels = [i for i, s in enumerate(self.structures, start=1) if s.whole == cortex]
        values = np.array([self.structures[channel - 1].value for channel in channels])
        data = self.posteriors[channels][None]
        move = np.linalg.inv(self.grid.affine) @ grid.affine
        best = np.empty(len(voxels), np.int64)
        total = np.empty(len(voxels), np.float32)
        sums = np.zeros((2, len(channels)))  # of voxels where the side was hardly seen, and of the others
        for start in range(0, len(voxels), CHUNK):
            part = slice(start, start + CHUNK)
            places = voxels[part] @ move[:3, :3].T + move[:3, 3]
            there = torch.from_numpy(places.astype(np.float32)).to(data.device)
            found = sample_linear(data, there[None, :, None, None])[0, :, :, 0, 0].cpu().numpy()
            best[part] = found.argmax(0)
            total[part] = found.sum(0)
            share = found * (amount[part] / np.maximum(total[part], np.finfo(np.float32).tiny))
            for row, chosen in enumerate((total[part] <= LEAST_SEEN, total[part] > LEAST_SEEN)):
                sums[row] += share[:, chosen].sum(1, dtype=np.float64)
        seen = total > LEAST_SEEN
        if cortex not in self.shown or not seen.any():  # then the little there is decides
            self._note_guess(cortex, won=won)
            seen, sums[1] = total > 0, sums.sum(0)
        if not seen.any():
            if won:
                raise self._unseen(cortex)
            return values[best], dict.fromkeys(values.tolist(), float(amount.sum(dtype=np.float64)) / len(values))
        if not seen.all():
            from scipy.spatial import cKDTree  # a tenth of a second to load, and seldom needed

            places_mm = voxels * grid.spacing_mm
            best[~seen] = best[seen][cKDTree(places_mm[seen]).query(places_mm[~seen])[1]]
            sums[1] += np.bincount(best[~seen], amount[~seen], minlength=len(channels))
        return values[best], dict(zip(values.tolist(), sums[1].tolist(), strict=True))

    def _note_guess(self, cortex: int, *, won: bool) -> None:
        side = _side_of(cortex)
        what = f"no {side} parcel was seen in the {side} cerebral cortex: its parcels are"
        if not won:
            what = f"no voxel is {side} cerebral cortex: how its volume is shared among its parcels is"
        note = f"{what} a guess"
        if note not in self.notes:
            self.notes.append(note)

    def _unseen(self, cortex: int) -> InvariantError:
        side = _side_of(cortex)
        found = f"no {side} parcel anywhere in the {side} cerebral cortex"
        return InvariantError(self.subject, found=found, fix="segment it without parcels, and look at the cortex")


def _side_of(cortex: int) -> str:
    return next(side for side, value in CORTEX_VALUES.items() if value == cortex)


@torch.inference_mode()
def predict_parcels(
    model: Model,
    image: Tensor,
    labels: Tensor,
    channels: Channels,
    config: InferenceConfig,
    *,
    grid: Grid,
    subject: str = "scan",
    plan: Plan | None = None,
) -> Parcels:
    """Posteriors of the parcels, from the image and from where the cortex is.

    Args:
        image: [1, 1, X, Y, Z] on ``grid``, the working grid.
        labels: [X, Y, Z] winning channel of the structures, before any clean-up; ``channels`` says what they are.
    Source: reference 6.4: not cortex and cortex (3 and 42) one-hot beside the image; softmax, smoothed by 0.5 voxels in
        every mode; no mirror averaging. What the network says outside the cortex it was shown counts for next to
        nothing (:data:`BEYOND`): training need not teach it to say background there.
    """
    is_cortex = torch.from_numpy(np.isin(channels.values, list(CORTEX_VALUES.values()))).to(labels.device)
    where = one_hot(is_cortex[labels].long()[None], CORTEX_INPUTS, image.dtype)
    amount = where[0, 1].clamp(min=BEYOND)[..., None]
    posteriors = torch.empty((*labels.shape, len(model.channels)), device=image.device)
    smoother = Smoother(config.parcel_smoothing_sigma_vox)
    inputs = torch.cat([image, where], dim=1)
    for start, slab in stream_posteriors(model.runner, inputs, model.channels.partners, flip=False, plan=plan):
        slab *= amount[start : start + len(slab)]
        _put(posteriors, *smoother.add(start, require_finite(slab, model.name, subject)))
    _put(posteriors, *smoother.finish())
    shown = frozenset(channels.values[labels.unique().cpu().numpy()].tolist()) & set(CORTEX_VALUES.values())
    return Parcels(posteriors.permute(3, 0, 1, 2), grid, parcel_structures(model), subject, shown)


def _put(posteriors: Tensor, start: int, planes: Tensor) -> None:
    posteriors[start : start + len(planes)] = planes


def scaled_to_cortex(
    sums: Mapping[int, float],
    structures: Iterable[Structure],
    volumes_mm3: Mapping[int, float],
    *,
    joint: bool = False,
) -> dict[int, float]:
    """Parcel volumes in mm3: ``sums`` scaled so that each hemisphere's parcels add up to its cortex.

    Args:
        sums: by parcel value, in any unit.
        volumes_mm3: of the structures, the cortex of each side among them.
        joint: one factor for both hemispheres, as in the original's last published snapshot.
    Source: reference 6.8 and C.9.
    """
    wholes = {s.value: s.whole for s in structures if s.whole is not None}
    groups = [set(wholes.values())] if joint else [{whole} for whole in set(wholes.values())]
    volumes: dict[int, float] = {}
    for group in groups:
        members = [value for value, whole in wholes.items() if whole in group]
        total = sum(sums[value] for value in members)
        factor = sum(volumes_mm3[whole] for whole in group) / total if total > 0 else 0.0
        volumes |= {value: sums[value] * factor for value in members}
    return {value: volumes[value] for value in wholes}
