"""Intensities without supervision: Gaussian mixtures of tissues and a smooth bias field, by expectation-maximisation.

Source: Van Leemput et al. 1999; Ashburner & Friston 2005; Puonti et al. 2016 (logarithm of the intensities, so that the
field is added; cosines as its basis).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Gaussians [N] and the tissue each belongs to; weights add up to 1 within a tissue."""

    tissue: Tensor  # [N] int64
    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_likelihood(self, values: Tensor, n_tissues: int) -> Tensor:
        """log p(value | tissue): [T, V] of values [V]."""
        terms = self.terms(values)
        rows = [torch.logsumexp(terms[self.tissue == number], 0) for number in range(n_tissues)]
        return torch.stack(rows)

    def terms(self, values: Tensor) -> Tensor:
        """Logarithm of each weighted Gaussian's density: [N, V]."""
        distance = (values[None] - self.means[:, None]) ** 2 / self.variances[:, None]
        constant = self.weights.clamp_min(1e-8).log() - 0.5 * (2 * math.pi * self.variances).log()
        return constant[:, None] - 0.5 * distance


def start_mixture(values: Tensor, prior: Tensor, components: tuple[int, ...]) -> Mixture:
    """Each tissue's Gaussian from the values where the atlas expects it, split where it has several.

    Args:
        values: [V] log intensities. prior: [T, V] probabilities. components: Gaussians of each of the T tissues.
    """
    tissue, weights, means, variances = [], [], [], []
    for number, count in enumerate(components):
        share = prior[number] ** 2  # where it is likely counts most: elsewhere the atlas is yet unaligned
        total = share.sum().clamp_min(1e-6)
        mean = (share * values).sum() / total
        spread = ((share * (values - mean) ** 2).sum() / total).clamp_min(1e-4).sqrt()
        for part in range(count):
            offset = 0.0 if count == 1 else 1.2 * (part / (count - 1) - 0.5)
            tissue.append(number)
            weights.append(1.0 / count)
            means.append(mean + offset * spread)
            variances.append(spread**2 if count == 1 else 0.5 * spread**2)
    return Mixture(torch.tensor(tissue), torch.tensor(weights), torch.stack(means), torch.stack(variances))


def em_step(
    mixture: Mixture, values: Tensor, prior: Tensor, *, least_variance: float = 2e-4
) -> tuple[Mixture, Tensor, float]:
    """One step of expectation and maximisation.

    Returns: the new mixture; responsibilities [N, V] of the old one's Gaussians; mean log likelihood of the old one.
    """
    joint = mixture.terms(values) + prior[mixture.tissue].log()
    evidence = torch.logsumexp(joint, 0)
    shares = (joint - evidence).exp()
    mass = shares.sum(1)
    strength = 20.0  # voxels' worth of the pooled variance: no Gaussian shrinks onto a handful of voxels
    means = (shares @ values) / mass.clamp_min(1e-6)
    squares = (shares * (values[None] - means[:, None]) ** 2).sum(1)
    pooled = float(values.var()) * 0.05
    variances = ((squares + strength * pooled) / (mass + strength)).clamp_min(least_variance)
    of_tissue = torch.zeros(int(mixture.tissue.max()) + 1).index_add_(0, mixture.tissue, mass)
    weights = mass / of_tissue[mixture.tissue].clamp_min(1e-6)
    seen = mass > 1.0
    updated = replace(
        mixture,
        weights=torch.where(seen, weights, mixture.weights),
        means=torch.where(seen, means, mixture.means),
        variances=torch.where(seen, variances, mixture.variances),
    )
    return updated, shares, float(evidence.mean())


def cosine_basis(positions_mm: Tensor, low_mm: Tensor, high_mm: Tensor, period_mm: float) -> Tensor:
    """[V, N] products of cosines along the axes at positions [V, 3]; the constant is left out.

    Args:
        period_mm: shortest period: a bias field is smoother than anatomy.
    """
    size = (high_mm - low_mm).clamp_min(1.0)
    counts = (2 * size / period_mm).floor().int().clamp(1, 5) + 1
    share = ((positions_mm - low_mm) / size).clamp(0, 1)
    along = [torch.cos(math.pi * share[:, a, None] * torch.arange(int(counts[a]))) for a in range(3)]
    basis = torch.einsum("vi,vj,vk->vijk", *along).flatten(1)
    return basis[:, 1:]


def fit_bias(basis: Tensor, values: Tensor, mixture: Mixture, shares: Tensor, brain: Tensor) -> Tensor:
    """Coefficients of the field by weighted least squares: what the Gaussians' means leave of the values.

    Args:
        basis: [V, N]. values: [V], uncorrected. shares: [G, V] responsibilities. brain: [V] how much a voxel counts.
    """
    precision = shares / mixture.variances[:, None]
    weight = precision.sum(0) * brain
    expected = (precision * mixture.means[:, None]).sum(0) / precision.sum(0).clamp_min(1e-12)
    weighted = basis * weight[:, None]
    system = weighted.T @ basis
    ridge = 1e-3 * system.diagonal().mean() * torch.eye(len(system))
    return torch.linalg.solve(system + ridge, weighted.T @ (values - expected))
