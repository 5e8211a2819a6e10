"""The networks of SynthSeg+ one after another: coarse groups, mended groups, structures.

Source: Billot et al. 2022 (MICCAI), Billot et al. 2023 (PNAS); data flow from the reference, fetal-and-plus C.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def one_hot_argmax(scores: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 in the channel that is largest at each voxel (the lowest of equals), 0 in the others.

    Args:
        scores: [B, C, X, Y, Z] logits or posteriors.
    Returns: [B, C, X, Y, Z] of ``dtype``.
    """
    return one_hot(scores.argmax(1), scores.shape[1], dtype)


def one_hot(index: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channel indices [B, X, Y, Z] as [B, channels, X, Y, Z] of ``dtype``."""
    hot = torch.zeros(index.shape[0], channels, *index.shape[1:], dtype=dtype, device=index.device)
    return hot.scatter_(1, index[:, None], 1)


class GroupsFirst(nn.Module):
    """An image through S1, D and S2: groups, mended groups, structures.

    Args:
        tissues: S1, [B, 1, ...] -> logits of the groups [B, G, ...].
        denoiser: D, one-hot groups [B, G, ...] -> logits [B, G, ...]; None uses S1's groups as they are.
        guided: S2, image and one-hot groups [B, 1 + G, ...] -> logits of the structures; None ends with the groups.
    """

    def __init__(self, tissues: nn.Module, denoiser: nn.Module | None = None, guided: nn.Module | None = None) -> None:
        super().__init__()
        self.tissues, self.denoiser, self.guided = tissues, denoiser, guided

    def groups(self, image: Tensor) -> Tensor:
        """Logits of the mended groups: [B, 1, X, Y, Z] -> [B, G, X, Y, Z]."""
        scores: Tensor = self.tissues(image)
        if self.denoiser is None:
            return scores
        mended: Tensor = self.denoiser(one_hot_argmax(scores, image.dtype))
        return mended

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the structures (or of the groups, without S2): [B, 1, X, Y, Z] -> [B, C, X, Y, Z]."""
        scores = self.groups(image)
        if self.guided is None:
            return scores
        seen: Tensor = self.guided(torch.cat([image, one_hot_argmax(scores, image.dtype)], 1))
        return seen
