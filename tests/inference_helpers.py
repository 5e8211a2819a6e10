"""A small label protocol, networks whose answer is known, and phantoms: what the inference tests share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from synthseg.engine.memory import Plan
from synthseg.engine.runner import Runner
from synthseg.inference import BatchOptions, BatchResult, Model, Outputs, Segmenter, plan_jobs, run_batch
from synthseg.inference.config import InferenceConfig
from synthseg.inference.predict import Smoother, stream_posteriors
from synthseg.labels import Label, LabelProtocol

torch.set_num_threads(1)  # these volumes are so small that threads cost more than they bring

# Channels 0..6: background, left shell, brain-stem, left core, csf, right shell, right core.
VALUES = (0, 2, 16, 17, 24, 41, 53)


def small_protocol() -> LabelProtocol:
    def row(value: int, name: str, side: str, partner: int, topology: int) -> Label:
        return Label(value, name, side, partner, 0, 0, value, topology, 0, (value, 2 * value, 3 * value))

    return LabelProtocol(
        "small",
        "seven labels",
        (
            row(0, "background", "neutral", 0, 0),
            row(2, "left cerebral white matter", "left", 41, 1),
            row(16, "brain-stem", "neutral", 16, 2),
            row(17, "left hippocampus", "left", 53, 3),
            row(24, "csf", "neutral", 24, 0),
            row(41, "right cerebral white matter", "right", 2, 4),
            row(53, "right hippocampus", "right", 17, 5),
        ),
    )


class BandNetwork(nn.Module):
    """Labels by intensity band and side: a pure function of the image and of the position left or right of the middle.

    ``bias`` is added to the logits of the right-hand channels: with it the network is not symmetric.
    """

    LEVELS = (0.0, 0.35, 0.5, 0.75, 1.0, 0.35, 0.75)

    def __init__(self, bias: float = 0.0, sharpness: float = 300.0) -> None:
        super().__init__()
        self.bias, self.sharpness = bias, sharpness

    def forward(self, image: Tensor) -> Tensor:
        n = image.shape[2]
        right = (torch.arange(n) >= n / 2).reshape(1, n, 1, 1)
        logits = torch.stack([-self.sharpness * (image[:, 0] - level) ** 2 for level in self.LEVELS], dim=1)
        logits[:, (1, 3)] -= 1000.0 * right
        logits[:, (5, 6)] += self.bias - 1000.0 * ~right
        return logits


def band_model(spacing_mm: float = 1.0, multiple: int = 4, **options: float) -> Model:
    return Model.from_network(BandNetwork(**options), small_protocol(), spacing_mm=spacing_mm, multiple=multiple)


@torch.inference_mode()
def all_posteriors(
    runner: Runner, inputs: Tensor, partners: np.ndarray, config: InferenceConfig, plan: Plan | None = None
) -> Tensor:
    """All posteriors at once, [C, X, Y, Z], averaged and smoothed slab by slab as a run does it."""
    smoother = Smoother(config.smoothing_sigma_vox)
    slabs = stream_posteriors(runner, inputs, partners, flip=config.flip, plan=plan)
    planes = [smoother.add(start, slab)[1] for start, slab in slabs]
    return torch.cat([*planes, smoother.finish()[1]]).permute(3, 0, 1, 2)


@torch.inference_mode()
def smooth_posteriors(posteriors: Tensor, sigma_vox: float) -> Tensor:
    """[C, X, Y, Z] smoothed as a whole; overwrites its argument."""
    smoother = Smoother(sigma_vox)
    parts = [smoother.add(0, posteriors.permute(1, 2, 3, 0))[1], smoother.finish()[1]]
    return torch.cat(parts).permute(3, 0, 1, 2)


def phantom(
    extent_mm: tuple[float, float, float] = (72, 80, 64), spacing_mm: tuple[float, ...] = (1, 1, 1)
) -> np.ndarray:
    """An ellipsoid 'head' [X, Y, Z] float32 in RAS order, larger on the right, with a core on each side; 0 outside."""
    shape = [round(e / s) for e, s in zip(extent_mm, spacing_mm, strict=True)]
    axes = [(np.arange(n) + 0.5) * s - e / 2 for n, s, e in zip(shape, spacing_mm, extent_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    image = np.zeros(shape, dtype=np.float32)
    half = np.where(x > 0, 30.0, 26.0)
    image[(x / half) ** 2 + (y / 32) ** 2 + (z / 24) ** 2 < 1] = 350
    image[(x - 14) ** 2 + (y - 6) ** 2 + z**2 < 64] = 750
    image[(x + 12) ** 2 + (y - 6) ** 2 + z**2 < 64] = 750
    image[x**2 + (y + 16) ** 2 + (z + 4) ** 2 < 50] = 500
    image[(np.abs(x) < 10) & (np.abs(y - 22) < 7) & (np.abs(z) < 12)] = 1000  # over 1 %: the 99th percentile
    return image


def phantom_affine(spacing_mm: tuple[float, ...] = (1, 1, 1), rotation: np.ndarray | None = None) -> np.ndarray:
    affine = np.diag([*spacing_mm, 1.0]).astype(np.float64)
    affine[:3, 3] = (-36, -40, -32)
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    return affine


def save_scan(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, phantom_affine() if affine is None else affine), path)
    return path


NAMES = [  # of the volumes of small_protocol()'s structures, as tables list them
    "total intracranial",
    "left cerebral white matter",
    "brain-stem",
    "left hippocampus",
    "csf",
    "right cerebral white matter",
    "right hippocampus",
]
COARSE = (2.0, 2.0, 2.0)


def coarse_scan(path: Path, scale: float = 1.0) -> Path:
    """A file of the phantom at 2 mm."""
    return save_scan(path, phantom(spacing_mm=COARSE) * np.float32(scale), phantom_affine(COARSE))


def run_scans(
    segmenter: Segmenter, scans: list[Path], out: Path, outputs: Outputs | None = None, **options: object
) -> BatchResult:
    """Segment files as the command does; ``options`` are those of :class:`BatchOptions`."""
    outputs = outputs or Outputs()
    return run_batch(segmenter, plan_jobs(scans, out, outputs), outputs, BatchOptions(**options))  # type: ignore[arg-type]


def save_random_weights(path: Path, features: int = 2, **facts: object) -> Path:
    """Weights in a file, with a card: a small random UNet, for tests that only need something that runs.

    ``facts`` are added to the card.
    """
    from synthseg.networks import UNet, UNetConfig
    from synthseg.weights import make_card, save_weights

    config = UNetConfig(out_channels=len(VALUES), features=features, levels=2, convs_per_level=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = UNet(config)
    with torch.no_grad():
        network.head.weight.mul_(8)
    card = make_card("tiny", config.to_dict(), small_protocol(), spacing_mm=2.0)
    return save_weights(path, network.state_dict(), card | facts)
