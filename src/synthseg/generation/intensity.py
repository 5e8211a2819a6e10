"""Intensities: Gaussian mixture, bias field, rescaling and gamma (Billot et al. 2023, Eqs. 11-19)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.errors import ConfigError, ShapeError
from synthseg.generation.config import BiasPrior, GridPrior, IntensityPrior, MixturePrior
from synthseg.generation.deformation import coin, uniform
from synthseg.generation.priors import ClassPriors, prior_blocks
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix


class MixtureDraw(NamedTuple):
    """Gaussian of every class, and the voxels' standard normal noise."""

    means: Tensor  # [B, G]
    stds: Tensor  # [B, G]
    noise: Tensor  # [B, 1, X, Y, Z]


class BiasDraw(NamedTuple):
    """Logarithm of the gain on its coarse grid."""

    log_gain: Tensor  # [B, 1, x, y, z]


class GammaDraw(NamedTuple):
    """Logarithm of the exponent."""

    log_gamma: Tensor  # [B]


def draw_mixture(
    prior: MixturePrior, left_class: Tensor, grid: GridPrior, stripped: Tensor, *, rng: torch.Generator
) -> MixtureDraw:
    """Draw means and standard deviations per class, then class 0 anew as reference 2.3 step 0' says.

    Args:
        left_class: [G] int64, the class whose Gaussian each class takes when both sides look alike.
        stripped: [B] bool, which elements are skull stripped.
    Raises: ConfigError if class priors have another number of classes.
    """
    batch, classes = len(stripped), len(left_class)
    check_classes(prior, classes)
    means = _draw_values(prior, prior.class_means, prior.mean_range, (batch, classes), rng=rng)
    stds = _draw_values(prior, prior.class_stds, prior.std_range, (batch, classes), rng=rng)
    alike = coin(batch, prior.symmetric_probability, rng=rng)[:, None]
    means, stds = (torch.where(alike, values[:, left_class], values) for values in (means, stds))
    means, stds = _draw_background(prior, means, stds, stripped, rng=rng)
    noise = torch.randn(batch, 1, *grid.shape, generator=rng, device=rng.device)
    return MixtureDraw(means, stds, noise)


def _draw_values(
    prior: MixturePrior,
    given: tuple[ClassPriors, ...] | ClassPriors,
    ends: tuple[float, float],
    shape: tuple[int, int],
    *,
    rng: torch.Generator,
) -> Tensor:
    """[B, G] means or standard deviations: from class priors, where there are any, and else from one range for all."""
    blocks = prior_blocks(given)
    if not blocks:
        return uniform(shape, *ends, rng=rng)
    table = torch.tensor(blocks, device=rng.device)
    if len(blocks) > 1:
        table = table[torch.randint(len(blocks), shape[:1], generator=rng, device=rng.device)]
    first, second = table.unbind(-1)  # [B or 1, G or 1] each
    if prior.kind == "normal":
        values = first + second * torch.randn(shape, generator=rng, device=rng.device)
    else:
        values = first + (second - first) * torch.rand(shape, generator=rng, device=rng.device)
    values = values.clamp(min=0)
    if prior.mix_probability > 0:
        mixed = coin(shape[0], prior.mix_probability, rng=rng)[:, None]
        values = torch.where(mixed, uniform(shape, *ends, rng=rng), values)
    return values


def check_classes(prior: MixturePrior, classes: int) -> None:
    """Raise ConfigError if class priors are for another number of classes than the label protocol has."""
    for key in ("class_means", "class_stds"):
        for block in prior_blocks(getattr(prior, key))[:1]:
            if len(block) not in (1, classes):
                column = "label_classes" if prior.label_classes else f"column '{prior.classes}'"
                pair = "(mean, std)" if prior.kind == "normal" else "(lowest, highest)"
                raise ConfigError(
                    f"generation.mixture.{key}",
                    found=f"{len(block)} classes",
                    fix=f"give {pair} for each of the {classes} classes of {column}",
                )


def _draw_background(
    prior: MixturePrior, means: Tensor, stds: Tensor, stripped: Tensor, *, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    batch = len(stripped)
    u = torch.rand(batch, generator=rng, device=rng.device)
    zero = u < prior.background_zero_probability
    zero |= stripped & coin(batch, prior.stripped_dark_probability, rng=rng)
    dark = (u >= prior.background_zero_probability) & (
        u < prior.background_zero_probability + prior.background_dark_probability
    )
    dark_mean, dark_std = uniform((batch,), 0.0, 15.0, rng=rng), uniform((batch,), 0.0, 5.0, rng=rng)
    means, stds = means.clone(), stds.clone()
    means[:, 0] = torch.where(dark, dark_mean, means[:, 0]).masked_fill(zero, 0)
    stds[:, 0] = torch.where(dark, dark_std, stds[:, 0]).masked_fill(zero, 0)
    return means, stds


def sample_mixture(classes: Tensor, means: Tensor, stds: Tensor, noise: Tensor) -> Tensor:
    """Draw an image from the Gaussian mixture that a label map conditions.

    Args:
        classes: [B, X, Y, Z] int64, class index in 0..G-1 (not the label value).
        means, stds: [B, G] in the prior's intensity units (0 to 255).
        noise: [B, 1, X, Y, Z] standard normal.
    Returns: [B, 1, X, Y, Z] float32, same units, not clipped: negatives are kept.
    Raises: ShapeError if ``means`` and ``stds`` disagree.
    Source: Eqs. 11-13.
    """
    if means.shape != stds.shape:
        raise ShapeError(
            "mixture", found=f"means {tuple(means.shape)}, stds {tuple(stds.shape)}", fix="give both [B, G]"
        )
    flat = classes.flatten(1)
    mean = means.gather(1, flat).view_as(noise)
    return torch.addcmul(mean, stds.gather(1, flat).view_as(noise), noise)


def bias_nodes(prior: BiasPrior, grid: GridPrior) -> tuple[int, ...]:
    """Nodes of the bias field along each axis."""
    return tuple(max(math.ceil(n * grid.spacing_mm / prior.node_mm), 2) for n in grid.shape)


def draw_bias(prior: BiasPrior, grid: GridPrior, batch: int, *, rng: torch.Generator) -> BiasDraw:
    """Draw the coarse grid of Eqs. 14-15; all zeros where the stage is off for an element."""
    nodes = bias_nodes(prior, grid)
    std = uniform((batch, 1, 1, 1, 1), 0.0, prior.max_std, rng=rng)
    std = std * coin(batch, prior.probability, rng=rng).view(-1, 1, 1, 1, 1)
    return BiasDraw(std * torch.randn(batch, 1, *nodes, generator=rng, device=rng.device))


def apply_bias(image: Tensor, draw: BiasDraw) -> Tensor:
    """Multiply by the exponential of the upsampled field (Eqs. 16-17); outermost nodes lie on the image's border.

    exp, not 1 + field: multiplying and dividing by the same gain are then equally likely.
    """
    matrices = tuple(
        interpolation_matrix(centered_positions(n, (m - 1) / max(n - 1, 1), m, 1.0, device=image.device), m)[None]
        for n, m in zip(image.shape[2:], draw.log_gain.shape[2:], strict=True)
    )
    return image * apply_separable(draw.log_gain, matrices).exp_()  # type: ignore[arg-type]


def draw_gamma(prior: IntensityPrior, batch: int, *, rng: torch.Generator) -> GammaDraw:
    """log gamma ~ N(0, gamma_std) (Eq. 18)."""
    return GammaDraw(prior.gamma_std * torch.randn(batch, generator=rng, device=rng.device))


def apply_gamma(image: Tensor, draw: GammaDraw, *, clip_max: float | None) -> Tensor:
    """Rescale each element to [0, 1] by its extremes, then raise to exp(log_gamma) (Eq. 19).

    Args:
        image: [B, 1, X, Y, Z] in intensity units.
        clip_max: clip to [0, clip_max] first (the code's 300), or None. Either way negatives are clipped to 0.
    Returns: the same shape, in [0, 1]; a constant element becomes 0.
    """
    clipped = image.clamp(min=0) if clip_max is None else image.clamp(0, clip_max)
    low = clipped.amin(dim=(2, 3, 4), keepdim=True)
    span = clipped.amax(dim=(2, 3, 4), keepdim=True) - low
    unit = (clipped - low) / (span + 1e-7)
    return unit.pow_(draw.log_gamma.exp().view(-1, 1, 1, 1, 1))


def stretch_percentiles(image: Tensor, percentiles: tuple[float, float]) -> Tensor:
    """Map two percentiles of each element to 0 and 1 and clip, as inference prepares its scans.

    Percentiles are taken over every n-th voxel (about 2^16 of them), without interpolation.
    """
    flat = image.flatten(1)
    step = max(flat.shape[1] // 2**16, 1)
    # A step that divides a side would see the same few planes only: 4 of 128 in a crop of 128^3.
    while math.gcd(step, flat.shape[1]) > 1:
        step += 1
    sample = flat[:, ::step].sort(1).values
    ranks = [round(p / 100 * (sample.shape[1] - 1)) for p in percentiles]
    low, high = (sample[:, rank].view(-1, 1, 1, 1, 1) for rank in ranks)
    return ((image - low) / (high - low).clamp(min=1e-7)).clamp_(0, 1)
