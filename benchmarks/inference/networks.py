"""What the measurements need besides the product: a network of the paper's size, and a scan of 256^3 voxels.

    python -m benchmarks.inference.networks OUT --head HEAD.nii.gz [--paper WEIGHTS]

Without weights of the paper's size the network is random: times and memory of its forward pass do not depend on what it
says. What follows does: so it is made to find foreground in the middle of heads (:func:`random_network`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from synthseg.engine.ranges import observe, to_card
from synthseg.errors import SynthsegError
from synthseg.files import atomic_file
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume, crop_pad, read_volume, to_ras, write_volume
from synthseg.weights import Weights, build_network, load_weights, make_card, protocol_of, save_weights
from synthseg.weights.export import export_weights

PAPER, ARRAYS, ONNX, CONFORMED = "paper.safetensors", "paper.npz", "paper.onnx", "conformed.nii.gz"
SEED = 5
STATISTICS_SIDE, RANGES_SIDE = 64, 160  # voxels of the pictures that statistics and int8 ranges are taken from
PEAK = 4.0  # standard deviation of the random logits: posteriors about as peaked as a trained network's
INSIDE = 0.69  # wide average of the image beyond which it is foreground: a fifth of a T1 head's field of view
STEEP = 50.0  # logits a unit of that average: from background to structure within a few voxels


def make_paper(path: Path, given: Path | None = None) -> Path:
    """Weights of the paper's size for 1 mm, with int8 ranges: the given ones, or random.

    Ranges that are not given come from random pictures: times do not depend on them, int8's accuracy does, and is not
    measured with these.
    """
    facts: dict[str, Any]
    if given is None:
        network: Any = random_network(UNetConfig())
        protocol, facts = load_protocol("synthseg-2.0"), {"data": f"none: random, seed {SEED}"}
        name, spacing_mm = "paper-random", 1.0
    else:
        weights = load_weights(given)
        network, protocol = build_network(weights), protocol_of(weights)
        facts = {key: weights.card[key] for key in ("data", "steps", "int8") if key in weights.card}
        name, spacing_mm = weights.name, float(weights.card["spacing_mm"])
    if "int8" not in facts:
        # Large and full enough for the average to become as high as in a head (random_network).
        pictures = [picture(RANGES_SIDE, seed, radius=radius) for seed, radius in enumerate((0.9, 2.0))]
        facts["int8"] = {"ranges": to_card(observe(network, pictures)), "from": "random pictures"}
    card = make_card(name, network.config.to_dict(), protocol, spacing_mm=spacing_mm, facts=facts)
    return save_weights(path, network.state_dict(), card)


def random_network(config: UNetConfig) -> UNet:
    """In eval mode: Glorot-uniform convolutions, random norms, statistics of random pictures; foreground inside heads.

    One channel of every level is no longer random: it averages the image over its neighbours, and where that average is
    high, in the middle of a head, one of the random structures wins, elsewhere background. Crops, clean-up and sparse
    posteriors then have about as much to do as with a trained network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = UNet(config)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.weight, -0.2, 1.5)  # a few negative: the norm's order with pooling then matters
                nn.init.normal_(module.bias, 0, 0.2)
                module.momentum = None  # plain average over the pictures
    with torch.no_grad():
        network.train()
        for seed in range(3):
            network(picture(STATISTICS_SIDE, seed, channels=config.in_channels))
        network.eval()
        _let_first_channel_average(network)
        _let_it_decide(network, picture(STATISTICS_SIDE, 3, channels=config.in_channels))
    return network


def _let_first_channel_average(network: UNet) -> None:
    """Channel 0 of every level: the mean over each convolution's reach of channel 0 before it, norms left out."""
    levels = network.config.levels
    for position, block in enumerate((*network.down, *network.up)):
        depth = position - levels
        deeper = network.config.features * 2 ** (levels - 2 - depth) if depth >= 0 and network._has_skip(depth) else 0
        for index, conv in enumerate(block.convs):
            conv.weight[0] = 0
            conv.weight[0, 0 if index else deeper] = 1 / network.config.kernel**3  # what was upsampled comes last
            conv.bias[0] = 0
        norm: Any = block.norm
        norm.weight[0], norm.bias[0], norm.running_mean[0], norm.running_var[0] = 1, 0, 0, 1 - norm.eps


def _let_it_decide(network: UNet, image: Tensor) -> None:
    """The head: random among the structures, background against all of them by channel 0."""
    assert network.head.bias is not None
    network.head.weight[:, 0] = 0
    logits = network(image)[0, 1:]
    network.head.weight *= PEAK / logits.std()
    best = (logits * (PEAK / logits.std())).amax(0).mean()  # of the structures, without channel 0: no head start
    network.head.weight[0] = 0
    network.head.weight[0, 0], network.head.weight[1:, 0] = -STEEP, STEEP
    network.head.bias[0], network.head.bias[1:] = STEEP * INSIDE, -STEEP * INSIDE - best


def picture(side: int, seed: int, *, channels: int = 1, radius: float = 0.9) -> Tensor:
    """[1, channels, side, side, side] in [0, 1]: bright random tissue in a ball, noise around it.

    ``radius`` is the ball's, in half sides; 2 fills the field of view.
    """
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 8, 8, 8, generator=rng)
    smooth = functional.interpolate(coarse, size=(side,) * 3, mode="trilinear", align_corners=False)
    noise = torch.rand(1, channels, side, side, side, generator=rng)
    line = torch.linspace(-1, 1, side)
    inside = (line.view(-1, 1, 1) ** 2 + line.view(1, -1, 1) ** 2 + line.view(1, 1, -1) ** 2).sqrt() < radius
    return ((0.5 + 0.4 * smooth) * inside + 0.1 * noise).clamp(0, 1)


def make_conformed(head: Path, path: Path, side: int = 256) -> Path:
    """A head of 1 mm in the middle of side^3 voxels, zeros around."""
    scan, _ = to_ras(read_volume(head))
    start = [(n - side) // 2 for n in scan.shape]
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
    write_volume(Volume(crop_pad(scan.data, start, (side,) * 3), affine), path, dtype=np.int16)
    return path


def write_arrays(weights: Weights, path: Path) -> Path:
    """The same tensors for programs without torch, by the names they have here."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.tensors.items()}
    with atomic_file(path) as file:
        np.savez(file, **arrays)
    return path


def missing(folder: Path, head: Path | None, given: Path | None) -> Iterator[Path]:
    """Make what the folder does not hold yet."""
    if not (folder / PAPER).is_file():
        yield make_paper(folder / PAPER, given)
    if not (folder / ARRAYS).is_file():
        yield write_arrays(load_weights(folder / PAPER), folder / ARRAYS)
    if not (folder / ONNX).is_file():
        try:
            yield export_weights(folder / PAPER, folder / ONNX)[0].path
        except SynthsegError as error:  # a peer less
            print(f"no {ONNX}: {error}", flush=True)
    if head is not None and not (folder / CONFORMED).is_file():
        yield make_conformed(head, folder / CONFORMED)


def main() -> None:
    """Make the files, say which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--head", type=Path, help="a head scan of 1 mm")
    parser.add_argument("--paper", type=Path, help="weights of the paper's size")
    given = parser.parse_args()
    for path in missing(given.out, given.head, given.paper):
        print(f"made {path}", flush=True)


if __name__ == "__main__":
    main()
