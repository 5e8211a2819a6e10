"""The small protocol with cortex and quality groups, and hand-made networks that score it and divide its cortex."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inference_helpers import BandNetwork, small_protocol
from synthseg.inference import Model
from synthseg.labels import LabelProtocol, load_protocol

GROUPS = load_protocol("quality-groups").names[1:]
CORTEX = {2: 3, 41: 42}  # the shell is white matter in the small protocol, cortex here
QUALITY = {3: 2, 42: 2, 16: 5, 17: 8, 53: 8}
GOOD = (0.91, 0.82, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98)


def cortex_protocol() -> LabelProtocol:
    rows = []
    for label in small_protocol().labels:
        value = CORTEX.get(label.value, label.value)
        name = label.name.replace("white matter", "cortex")
        partner = CORTEX.get(label.partner, label.partner)
        rows.append(
            replace(label, value=value, name=name, partner=partner, target=value, quality=QUALITY.get(value, 0))
        )
    return LabelProtocol("small cortex", "seven labels", tuple(rows))


def cortex_model() -> Model:
    return Model.from_network(BandNetwork(), cortex_protocol(), spacing_mm=2.0, multiple=4)


def save_cortex_weights(path: Path) -> Path:
    """Weights in a file: a small random UNet of :func:`cortex_protocol`."""
    from synthseg.networks import UNet, UNetConfig
    from synthseg.weights import make_card, save_weights

    config = UNetConfig(out_channels=7, features=2, levels=2, convs_per_level=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = UNet(config)
    with torch.no_grad():
        network.head.weight.mul_(8)
    return save_weights(
        path, network.state_dict(), make_card("tiny", config.to_dict(), cortex_protocol(), spacing_mm=2.0)
    )


class FixedScores(nn.Module):
    """Says the same of every segmentation; background's number is never shown."""

    def __init__(self, scores: tuple[float, ...]) -> None:
        super().__init__()
        self.scores = torch.tensor([[0.123, *scores]])

    def forward(self, groups: Tensor) -> Tensor:
        return self.scores.to(groups.device)


def quality_model(*scores: float) -> Model:
    protocol = load_protocol("quality-groups")
    return Model.from_network(FixedScores(scores or GOOD), protocol, spacing_mm=2.0, role="quality", name="scorer")


class FrontAndBack(nn.Module):
    """Divides the cortex of each side into four parcels, one behind the other: channels 1-4 and 35-38."""

    def forward(self, inputs: Tensor) -> Tensor:
        n_x, n_y = inputs.shape[2:4]
        logits = torch.zeros(1, 69, *inputs.shape[2:])
        band = (torch.arange(n_y) * 4 // n_y).reshape(1, n_y, 1)
        right = (torch.arange(n_x) >= n_x / 2).reshape(n_x, 1, 1)
        for parcel in range(4):
            logits[0, 1 + parcel] += 20.0 * ((band == parcel) & ~right)
            logits[0, 35 + parcel] += 20.0 * ((band == parcel) & right)
        return logits


def parcels_model() -> Model:
    protocol = load_protocol("desikan-killiany")
    return Model.from_network(FrontAndBack(), protocol, spacing_mm=2.0, multiple=4, role="parcels", name="parcels")
