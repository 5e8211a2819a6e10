"""Laying the atlas over a scan: affine, then a smooth displacement, each by gradient ascent on the likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from experiments.bayes.atlas import Atlas
from experiments.bayes.mixture import Mixture, cosine_basis, em_step, fit_bias, start_mixture
from torch import Tensor

from synthseg.volumes.grid import sample_linear

NODE_MM = 20.0  # distance of the displacement's control points
PERIOD_MM = 90.0  # shortest period of the bias field
STIFFNESS = 0.02  # penalty on the displacement's second differences, per mm2, against a mean log likelihood
NEAR = 0.02  # least probability of brain where the displacement and the last intensities are learned
_ROUNDS = 6  # of expectation-maximisation between the gradient's steps


class Samples(NamedTuple):
    """A scan's voxels."""

    world_mm: Tensor  # [V, 3]
    values: Tensor  # [V] log intensities
    tissue: Tensor  # [V] bool: brighter than air


@dataclass(frozen=True)
class Fit:
    """Where the atlas lies and what intensities its tissues have."""

    matrix: Tensor  # [3, 3], world mm (relative to ``center_mm``) to atlas mm
    shift_mm: Tensor
    center_mm: Tensor
    nodes_mm: Tensor  # [1, 3, x, y, z] displacement in atlas mm
    nodes_low_mm: Tensor  # atlas mm of node (0, 0, 0)
    mixture: Mixture
    bias: Tensor
    low_mm: Tensor  # world mm of the box the field's cosines span
    high_mm: Tensor
    stripped: bool
    likelihood: float
    period_mm: float = PERIOD_MM

    def atlas_mm(self, world_mm: Tensor) -> Tensor:
        """Where in the atlas world positions [V, 3] lie."""
        return _displaced(self._affine(world_mm), self.nodes_mm, self.nodes_low_mm)

    def _affine(self, world_mm: Tensor) -> Tensor:
        return (world_mm - self.center_mm) @ self.matrix.T + self.shift_mm


def fit_atlas(atlas: Atlas, tissues: Tensor, samples: Samples, *, steps: int) -> Fit:
    """Affine by the boxes of head or brain first, then by the likelihood; then the displacement.

    Args:
        tissues: [T, X, Y, Z], ``atlas.tissues()``.
        steps: of gradient ascent, for the affine and again for the displacement.
    """
    affine = _fit_affine(atlas, tissues, samples, is_stripped(atlas, samples), steps)
    return _fit_displacement(atlas, tissues, samples, affine, steps)


def is_stripped(atlas: Atlas, samples: Samples) -> bool:
    """Whether there is about as much tissue as a brain has; a head has twice as much or more."""
    low, high = atlas.extent_mm(head=False)
    brain = 0.5 * float((high - low).prod())  # about half a brain's box is brain
    size = samples.world_mm.amax(0) - samples.world_mm.amin(0)
    return float(samples.tissue.float().mean()) * float(size.prod()) < 1.45 * brain


def _start(atlas: Atlas, samples: Samples, stripped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix, shift and centre that put the scan's head (or stripped brain) onto the atlas'."""
    places = samples.world_mm[samples.tissue]
    low, high = torch.quantile(_thinned(places), torch.tensor([0.005, 0.995]), dim=0)
    theirs_low, theirs_high = atlas.extent_mm(head=not stripped)
    # In width and length; downwards a scan may end anywhere, so that the top is what is laid on the atlas' top.
    across = ((theirs_high - theirs_low) / (high - low).clamp_min(1.0))[:2].clamp(0.75, 1.35)
    middle = torch.stack([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[2]])
    theirs = torch.stack([*(theirs_low[:2] + theirs_high[:2]) / 2, theirs_high[2]])
    return torch.diag(torch.cat([across, across.mean()[None]])), theirs, middle


def _thinned(places: Tensor, most: int = 200_000) -> Tensor:
    return places[:: max(1, len(places) // most)]


def _used(samples: Samples, stripped: bool) -> Samples:
    """A head's voxels are all looked at; of a stripped brain's those that were not set to nothing."""
    return Samples(*(part[samples.tissue] for part in samples)) if stripped else samples


def _prior(tissues: Tensor, atlas: Atlas, where_mm: Tensor, stripped: bool) -> Tensor:
    """[T, V] tissue probabilities at atlas positions; a stripped brain has no bone and no soft tissue."""
    where = where_mm / atlas.spacing_mm + atlas.center_vox
    found = sample_linear(tissues[None], where[None, None, None])[0, :, 0, 0].clamp_min(1e-6)
    if stripped:
        found = torch.cat([found[:-3], found[-3:] * 1e-3])
    return found / found.sum(0)


def _fit_affine(atlas: Atlas, tissues: Tensor, samples: Samples, stripped: bool, steps: int) -> Fit:
    """Gaussians, field and affine."""
    used = _used(samples, stripped)
    matrix, shift, center = _start(atlas, samples, stripped)
    low, high = used.world_mm[used.tissue].amin(0), used.world_mm[used.tissue].amax(0)
    basis = cosine_basis(used.world_mm, low, high, PERIOD_MM)
    bias = torch.zeros(basis.shape[1])
    change = torch.zeros(3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=0.01)

    def place() -> Tensor:
        return (used.world_mm - center) @ (matrix + change[:, :3]).T + shift + 10 * change[:, 3]

    with torch.no_grad():
        prior = _prior(tissues, atlas, place(), stripped)
        mixture = start_mixture(used.values, prior, atlas.kinds.components)
    likelihood = 0.0
    for step in range(steps):
        if step % max(steps // 6, 1) == 0:
            with torch.no_grad():
                prior = _prior(tissues, atlas, place(), stripped)
                if step <= steps // 2:  # afresh: tissues that an unaligned atlas took for others stay so otherwise
                    mixture = start_mixture(used.values - basis @ bias, prior, atlas.kinds.components)
                mixture, bias, likelihood = _learn(mixture, used, prior, basis, bias, with_field=step > 0)
        terms = mixture.log_likelihood(used.values - basis @ bias, len(atlas.kinds.components))
        optimizer.zero_grad()
        loss = -torch.logsumexp(_prior(tissues, atlas, place(), stripped).log() + terms, 0).mean()
        loss.backward()
        optimizer.step()
    moved = change.detach()
    empty = torch.zeros(1, 3, *_node_counts(atlas))
    return Fit(
        matrix=matrix + moved[:, :3],
        shift_mm=shift + 10 * moved[:, 3],
        center_mm=center,
        nodes_mm=empty,
        nodes_low_mm=-atlas.center_vox * atlas.spacing_mm,
        mixture=mixture,
        bias=bias,
        low_mm=low,
        high_mm=high,
        stripped=stripped,
        likelihood=likelihood,
    )


def _learn(
    mixture: Mixture, used: Samples, prior: Tensor, basis: Tensor, bias: Tensor, *, with_field: bool
) -> tuple[Mixture, Tensor, float]:
    """A few rounds of expectation-maximisation, of the Gaussians and then of the field."""
    likelihood = 0.0
    brain = prior[:-3].sum(0)  # the field is learned from the brain: outside it the model is poor
    for _ in range(_ROUNDS):
        mixture, shares, likelihood = em_step(mixture, used.values - basis @ bias, prior)
        if with_field:
            bias = fit_bias(basis, used.values, mixture, shares, brain)
    return mixture, bias, likelihood


def _fit_displacement(atlas: Atlas, tissues: Tensor, samples: Samples, fit: Fit, steps: int) -> Fit:
    """Control points on top of the affine, kept smooth by a penalty on their second differences."""
    used = _used(samples, fit.stripped)
    where = (used.world_mm - fit.center_mm) @ fit.matrix.T + fit.shift_mm
    # Only in and around the brain: what a head has elsewhere would outvote it.
    with torch.no_grad():
        near = _prior(tissues, atlas, where, fit.stripped)[:-3].sum(0) > NEAR
    used, where = Samples(*(part[near] for part in used)), where[near]
    basis = cosine_basis(used.world_mm, fit.low_mm, fit.high_mm, PERIOD_MM)
    nodes = fit.nodes_mm.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([nodes], lr=0.3)
    mixture, bias, likelihood = fit.mixture, fit.bias, fit.likelihood
    for step in range(steps):
        placed = _displaced(where, nodes, fit.nodes_low_mm)
        if step % max(steps // 6, 1) == 0:
            with torch.no_grad():
                prior = _prior(tissues, atlas, placed, fit.stripped)
                mixture, bias, likelihood = _learn(mixture, used, prior, basis, bias, with_field=True)
        terms = mixture.log_likelihood(used.values - basis @ bias, len(atlas.kinds.components))
        optimizer.zero_grad()
        loss = -torch.logsumexp(_prior(tissues, atlas, placed, fit.stripped).log() + terms, 0).mean()
        (loss + STIFFNESS * _roughness(nodes)).backward()
        optimizer.step()
    return replace(fit, nodes_mm=nodes.detach(), mixture=mixture, bias=bias, likelihood=likelihood)


def _node_counts(atlas: Atlas) -> list[int]:
    return [round((n - 1) * atlas.spacing_mm / NODE_MM) + 2 for n in atlas.probabilities.shape[1:]]


def _displaced(where_mm: Tensor, nodes_mm: Tensor, low_mm: Tensor) -> Tensor:
    """Atlas positions [V, 3], moved by the control points' displacement."""
    coordinates = (where_mm - low_mm) / NODE_MM
    return where_mm + sample_linear(nodes_mm, coordinates[None, None, None])[0, :, 0, 0].T


def _roughness(nodes: Tensor) -> Tensor:
    """Mean square of the second differences, in mm2, and of a hundredth of the displacement itself."""
    parts = [nodes.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4)]
    return torch.stack(parts).sum() + 0.01 * nodes.square().mean()
