"""A painted brain whose every structure can be read off its intensity, and networks of every role that do so."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import inference_helpers  # noqa: F401  (sets torch to one thread)
from synthseg.inference import InferenceConfig, Model
from synthseg.inference.modes import ADD_ONS, add_on_weights, find_mode
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume
from synthseg.weights.store import ALIASES

STRUCTURES = load_protocol("synthseg-2.0")
GROUPS = load_protocol("tissue-groups")
PARCELS = load_protocol("desikan-killiany")
QUALITY = load_protocol("quality-groups")
# The weights of every role, as modes.toml names them; "default" is their name itself.
SHIPPED = {
    "structures": ALIASES[find_mode("default").weights.by_role()["structures"]],
    **find_mode("robust").weights.by_role(),
    **{role: add_on_weights(role) for role in ADD_ONS},
}
VALUES = STRUCTURES.target_values
TOP = len(VALUES) - 1  # the channel whose intensity is 1
# Intensities as they are: channel / 32. Nothing is smoothed or cleaned, so that the answer is known voxel by voxel.
EXACT = InferenceConfig(
    percentiles=(0, 100), flip=False, topology=False, smoothing_sigma_vox=0, parcel_smoothing_sigma_vox=0
)
SHAPE = (64, 60, 16)  # voxels of 1 mm: two sides as long as a head's must be, the third as short as may be


def painted(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Label values [X, Y, Z]: white matter in cortex on both sides, csf between, cerebellum, nuclei."""
    nx, ny, _ = shape
    labels = np.zeros(shape, np.int64)
    for cortex, white, deep, cerebellum, low, high in (
        (3, 2, (10, 17, 12, 4), 8, 6, nx // 2 - 1),
        (42, 41, (49, 53, 60, 43), 47, nx // 2 + 1, nx - 4),
    ):
        labels[low:high, 6 : ny - 6, 2:-2] = cortex
        labels[low + 4 : high - 4, 10 : ny - 10, 4:-4] = white
        for row, value in enumerate(deep):
            labels[low + 6 : high - 6, 14 + 6 * row : 18 + 6 * row, 5:-5] = value
        labels[low + 8 : high - 8, 3:6, 4:-4] = cerebellum
    labels[nx // 2 - 1 : nx // 2 + 1, 6 : ny - 6, 2:-2] = 24
    labels[nx // 2 - 1 : nx // 2 + 1, 20:30, 4:8] = 16
    return labels


def scan_of(labels: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    """The scan in which every structure has the intensity of its channel."""
    image = np.searchsorted(VALUES, labels).astype(np.float32) / TOP
    return Volume(image, np.eye(4) if affine is None else affine)


class Reader(nn.Module):
    """Answers by intensity: channel ``table[c]`` where the image has that of structure channel c; keeps its inputs."""

    def __init__(self, table: np.ndarray | list[int], outputs: int) -> None:
        super().__init__()
        self.table, self.outputs = torch.as_tensor(np.asarray(table)), outputs
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        index = self.table[(x[:, 0] * TOP).round().long().clamp(0, TOP)]
        return 40.0 * functional.one_hot(index, self.outputs).movedim(-1, 1).float()


class Denoiser(nn.Module):
    """Hands groups on, but takes one for background."""

    def __init__(self, erased: int = 4) -> None:
        super().__init__()
        self.erased = erased
        self.seen: list[Tensor] = []

    def forward(self, groups: Tensor) -> Tensor:
        self.seen.append(groups.clone())
        mended = groups.clone()
        mended[:, 0] += mended[:, self.erased]
        mended[:, self.erased] = 0
        return 40.0 * mended


class Guided(Reader):
    """A reader of structures that sees nothing where its groups say background."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        logits[:, 0] += 100 * x[:, 1]
        return logits


class Slabs(nn.Module):
    """Parcels in slabs from back to front, 34 on each side of ``split`` (a share of the width), where cortex is."""

    def __init__(self, split: float = 0.5) -> None:
        super().__init__()
        self.split = split
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        _, _, nx, ny, nz = x.shape
        slab = (torch.arange(ny) * 34 // ny)[None, :, None]
        right = (torch.arange(nx) >= nx * self.split)[:, None, None]
        index = (1 + slab + 34 * right).expand(nx, ny, nz)
        return 40.0 * functional.one_hot(torch.where(x[0, 2] > 0, index, 0), 69).movedim(-1, 0)[None].float()


class NoiseParcels(nn.Module):
    """Smooth random logits for all parcels, everywhere, the same for the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(5)
        coarse = 4 * torch.randn(1, 69, 5, 6, 4, generator=rng)
        return functional.interpolate(coarse, x.shape[2:], mode="trilinear")


class Means(nn.Module):
    """Scores are a linear function of the mean of every input group."""

    def __init__(self, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.gain * x.mean((2, 3, 4)) + self.offset


def structures_model(spacing_mm: float = 1.0) -> Model:
    return Model.from_network(Reader(range(33), 33), STRUCTURES, spacing_mm=spacing_mm, multiple=4, name="structures")


def hierarchy_models(spacing_mm: float = 1.0, erased: int = 4, multiple: int = 4) -> dict[str, Model]:
    """S1, D and S2 that read the painted brain; D takes one group away."""
    tissue = [STRUCTURES.by_value(int(value)).tissue for value in VALUES]
    options = {"spacing_mm": spacing_mm, "multiple": multiple}
    return {
        "tissues": Model.from_network(Reader(tissue, 5), GROUPS, role="tissues", name="tissues", **options),
        "denoiser": Model.from_network(Denoiser(erased), GROUPS, role="denoiser", name="denoiser", **options),
        "guided": Model.from_network(Guided(range(33), 33), STRUCTURES, role="guided", name="guided", **options),
    }


def parcels_model(network: nn.Module | None = None, spacing_mm: float = 1.0, multiple: int = 4) -> Model:
    network = Slabs() if network is None else network
    return Model.from_network(
        network, PARCELS, role="parcels", spacing_mm=spacing_mm, multiple=multiple, name="parcels"
    )


def quality_model(network: nn.Module | None = None, *, soft: bool = False, side_mm: float | None = 80.0) -> Model:
    return Model.from_network(
        Means() if network is None else network,
        QUALITY,
        role="quality",
        spacing_mm=1.0,
        name="quality",
        soft_inputs=soft,
        field_of_view_mm=None if side_mm is None else (side_mm, side_mm, side_mm),
    )


def random_unet(in_channels: int, out_channels: int, seed: int, **options: int) -> UNet:
    """A tiny network that decides at random, but decidedly."""
    config = UNetConfig(
        in_channels=in_channels, out_channels=out_channels, features=2, levels=2, convs_per_level=1, **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(config).eval()
    with torch.no_grad():
        network.head.weight.mul_(8)
    return network
