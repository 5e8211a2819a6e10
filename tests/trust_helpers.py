"""Scans stored in other ways, and small random networks: what the tests of numerical trust share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from inference_helpers import small_protocol
from synthseg.inference import Model, Segmentation, Segmenter, Want
from synthseg.inference.config import InferenceConfig
from synthseg.labels import LabelProtocol
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume

Order = tuple[tuple[int, int, int], tuple[bool, bool, bool]]
ORDERS: list[Order] = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))
)


def stored(volume: Volume, order: Order) -> Volume:
    """The same scan with its axes permuted and flipped, every voxel at its place in the world; a copy in Fortran order.

    ``order[0][i]`` is the old axis that new axis i is, ``order[1][i]`` whether it runs the other way.
    """
    axes, flips = order
    move = np.zeros((4, 4))
    move[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        move[old, new] = -1 if flip else 1
        move[old, 3] = volume.data.shape[old] - 1 if flip else 0
    return Volume(reordered(volume.data, order), volume.affine @ move)


def reordered(data: np.ndarray, order: Order) -> np.ndarray:
    """An array as :func:`stored` keeps it."""
    axes, flips = order
    return np.asfortranarray(data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)])


def random_model(
    norm: str = "instance", *, spacing_mm: float = 2.0, levels: int = 3, seed: int = 0, features: int = 3
) -> Model:
    """A random UNet that gives every label of :func:`small_protocol` to some voxels of a noisy scan."""
    config = UNetConfig(out_channels=7, features=features, levels=levels, convs_per_level=1, norm=norm)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(config).eval()
        with torch.no_grad():
            network.head.weight.mul_(8)
    return Model.from_network(network, small_protocol(), spacing_mm=spacing_mm, multiple=config.multiple)


def segmenter(model: Model, **settings: Any) -> Segmenter:
    """On one thread, all labels kept: the clean-up must not hide what is tested."""
    given = {"topology": False, "channel_threshold": 0.0, "foreground_threshold": 0.0, **settings}
    return Segmenter(model, config=InferenceConfig(**given), threads=1, device="cpu")


def blobs(shape: tuple[int, int, int], seed: int = 0, margin: int = 0) -> np.ndarray:
    """[X, Y, Z] float32 smooth noise of about 0 to 1000 in a frame of zeros ``margin`` voxels wide."""
    inner = [n - 2 * margin for n in shape]
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(inner), 1.5)
    values = np.clip(500 + 250 * noise / noise.std(), 1, 1000).astype(np.float32)
    return np.pad(values, margin)


def at(data: np.ndarray, spacing_mm: tuple[float, float, float], turn: np.ndarray | None = None) -> Volume:
    """A scan with its centre near the world's origin."""
    affine = np.diag([*spacing_mm, 1.0])
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(data.shape) / 2) + (0.3, -1.7, 12.1)
    return Volume(data, affine)


def labels_of(made_by: Segmenter, scan: Volume) -> np.ndarray:
    """Native labels."""
    native = made_by.segment(scan, Want(space="native")).native
    assert native is not None
    return native.data


def share_changed(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the voxels that are not background in either: the share that has another label."""
    return float((ours != theirs).sum() / max(((ours != 0) | (theirs != 0)).sum(), 1))


def partner_values(protocol: LabelProtocol) -> np.ndarray:
    """Look-up table of label values: the other side's."""
    table = np.arange(int(protocol.values.max()) + 1)
    table[protocol.values] = protocol.values[protocol.partner_index]
    return table


def volume_gap(ours: Segmentation, theirs: Segmentation) -> float:
    """The largest relative difference of any structure's volume."""
    pairs = [(ours.volumes_mm3[value], theirs.volumes_mm3[value]) for value in theirs.volumes_mm3]
    return max(abs(a - b) / max(a, b, 1.0) for a, b in pairs)
