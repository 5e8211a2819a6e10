"""The robust way to the structures: tissue groups (S1), denoised (D), guide the network that segments (S2).

Each network reads the hard decision of the one before it, one-hot. Source: reference 6.4 ("Robust"); Billot et al.
2022 (MICCAI), 2023 (PNAS).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from synthseg.inference.config import InferenceConfig
from synthseg.inference.model import Model
from synthseg.inference.predict import predict_posteriors, require_finite
from synthseg.networks.hierarchy import one_hot


def first_look(model: Model, image: Tensor, config: InferenceConfig, subject: str) -> Tensor:
    """Posteriors of a single pass, neither mirrored nor smoothed: [1, C_in, X, Y, Z] -> [C, X, Y, Z]."""
    plain = replace(config, flip=False, smoothing_sigma_vox=0)
    return require_finite(predict_posteriors(model.network, image, model.channels.partners, plain), model.name, subject)


@torch.inference_mode()
def tissue_groups(tissues: Model, image: Tensor, config: InferenceConfig, subject: str) -> Tensor:
    """The most probable group at every voxel: [1, 1, X, Y, Z] -> channel indices [X, Y, Z], the lowest of equals."""
    return first_look(tissues, image, config, subject).argmax(0)


@torch.inference_mode()
def denoised(denoiser: Model, groups: Tensor, config: InferenceConfig, subject: str) -> Tensor:
    """Groups as the denoiser would have them: channel indices [X, Y, Z] -> channel indices [X, Y, Z]."""
    hot = one_hot(groups[None], denoiser.in_channels)
    return first_look(denoiser, hot, config, subject).argmax(0)


@torch.inference_mode()
def with_groups(image: Tensor, groups: Tensor, count: int) -> Tensor:
    """What the guided network reads: the image, then its groups one-hot: [1, 1 + count, X, Y, Z].

    The groups have no side, so that mirror averaging may mirror them with the image.
    """
    return torch.cat([image, one_hot(groups[None], count, image.dtype)], dim=1)
