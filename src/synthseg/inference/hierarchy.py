"""The robust way to the structures: tissue groups (S1), denoised (D), guide the network that segments (S2).

Each network reads the hard decision of the one before it, one-hot. Source: reference 6.4 ("Robust"); Billot et al.
2022 (MICCAI), 2023 (PNAS).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthseg.engine.memory import Plan
from synthseg.inference.model import Model
from synthseg.inference.predict import require_finite, stream_posteriors
from synthseg.networks.hierarchy import one_hot


@torch.inference_mode()
def look(
    model: Model, inputs: Tensor, subject: str, plan: Plan | None = None, *, of: Callable[[Tensor], Tensor]
) -> Tensor:
    """What ``of`` makes of the posteriors of a single pass, neither mirrored nor smoothed, slab by slab.

    Args:
        inputs: [1, C_in, X, Y, Z].
        of: slabs [n, Y, Z, C] -> [n, ...].
    Returns: [X, ...].
    """
    slabs = stream_posteriors(model.runner, inputs, model.channels.partners, flip=False, plan=plan)
    parts = [of(require_finite(slab, model.name, subject)) for _, slab in slabs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def tissue_groups(tissues: Model, image: Tensor, subject: str, plan: Plan | None = None) -> Tensor:
    """The most probable group at every voxel: [1, 1, X, Y, Z] -> channel indices [X, Y, Z], the lowest of equals."""
    return look(tissues, image, subject, plan, of=lambda slab: slab.argmax(-1))


@torch.inference_mode()
def denoised(denoiser: Model, groups: Tensor, subject: str, plan: Plan | None = None) -> Tensor:
    """Groups as the denoiser would have them: channel indices [X, Y, Z] -> channel indices [X, Y, Z]."""
    hot = one_hot(groups[None], denoiser.in_channels)
    return look(denoiser, hot, subject, plan, of=lambda slab: slab.argmax(-1))


@torch.inference_mode()
def with_groups(image: Tensor, groups: Tensor, count: int) -> Tensor:
    """What the guided network reads: the image, then its groups one-hot: [1, 1 + count, X, Y, Z].

    The groups have no side, so that mirror averaging may mirror them with the image.
    """
    return torch.cat([image, one_hot(groups[None], count, image.dtype)], dim=1)
