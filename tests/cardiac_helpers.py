"""Synthetic hearts and a network that knows left from right: what the tests of other organs than brains share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume, write_volume
from synthseg.weights import make_card, save_weights

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments are no part of the installed package
torch.set_num_threads(1)

HEART = {"organ": "heart", "flip": False}


def heart(side: int = 30, spacing_mm: float = 4.0, shift: int = 0) -> Volume:
    """An HVSMR-like map in RAS order: blood in a wall of myocardium, two vessels above it, air around."""
    x, y, z = np.meshgrid(*[np.arange(side) - side / 2 + shift] * 3, indexing="ij")
    data = np.zeros((side, side, side), dtype=np.int32)
    data[(np.abs(x - 3) < 2) & (np.abs(y) < 2) & (z > 0) & (z < 11)] = 64
    data[(np.abs(x + 3) < 2) & (np.abs(y - 2) < 2) & (z > 0) & (z < 10)] = 71
    data[(x / 8) ** 2 + (y / 7) ** 2 + ((z + 3) / 7) ** 2 < 1] = 1
    data[(x / 6) ** 2 + (y / 5) ** 2 + ((z + 3) / 5) ** 2 < 1] = 2
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -side * spacing_mm / 2
    return Volume(data, affine)


def save_hearts(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_volume(heart(shift=number % 2), folder / f"heart_{number}.nii.gz")
    return folder


class Halves(nn.Module):
    """The left ventricle in the left half of what is bright, the right ventricle in the right half: no mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, image: Tensor) -> Tensor:
        self.passes += 1
        channels = {value: n for n, value in enumerate(load_protocol("whole-heart").target_values.tolist())}
        logits = torch.full((1, len(channels), *image.shape[2:]), -20.0)
        logits[:, 0] = 5.0
        bright = image[0, 0] > 0.5
        right = (torch.arange(image.shape[2]) >= image.shape[2] // 2).view(-1, 1, 1).expand_as(bright)
        logits[0, channels[500]][bright & ~right] = 20.0
        logits[0, channels[600]][bright & right] = 20.0
        return logits


def save_heart_weights(folder: Path, *, norm: str = "batch", **facts: object) -> Path:
    """Random weights for whole-heart, with the card's facts given."""
    config = UNetConfig(features=4, levels=2, out_channels=8, norm=norm)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        network.head.weight.mul_(8)  # or the background might be all there is
    card = make_card(
        "heart", config.to_dict(), load_protocol("whole-heart"), spacing_mm=2.0, facts={"role": "structures", **facts}
    )
    return save_weights(folder / "heart.safetensors", network.state_dict(), card)
