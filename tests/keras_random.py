"""Random networks of the original's architecture, with posteriors that look like a segmentation.

Layers, names and widths are those of the behaviour specification, sections 4.1-4.3. Nothing of synthseg is imported.
Weights are random, but smooth kernels, batch norm statistics measured on a phantom and a head of prototypes give
regions of every label on a real scan: thresholds, components and volumes then mean something.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage

from original_reference_networks import Array, Layers, convolve, encoder_features, relu, unet_features

Layer = dict[str, Array]  # tensor name ("kernel") -> values, in stored order; empty for a layer without weights
Network = dict[str, Layer]
Shapes = dict[str, dict[str, tuple[int, ...]]]

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
IMAGE_INPUTS = (1, 3, 6)  # input channels of networks that see the image first; others see one-hot groups only
LARGEST_RANGE = 50.0  # of the logits: exp(-50) is still a positive posterior in single precision
ROUGHNESS = 0.8  # share of white noise in a kernel; the rest is flat, so that responses keep large structures
DEPTH = 0.7  # weight of what comes from below relative to the skip, so that fine structure counts


def _conv(kernel: int, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (kernel, kernel, kernel, n_in, n_out), "bias": (n_out,)}


def _norm(width: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(NORM, (width,))


def unet_shapes(
    prefix: str = "unet",
    *,
    features: int = 24,
    levels: int = 5,
    n_in: int = 1,
    n_out: int = 33,
    kernel: int = 3,
    skips_dropped: int = 0,
) -> Shapes:
    """Layer -> tensor -> shape, in Keras's order, layers without weights included."""
    shapes: Shapes = {f"{prefix}_input": {}}
    widths = [features * 2**level for level in range(levels)]
    before = n_in
    for level, width in enumerate(widths):
        shapes[f"{prefix}_conv_downarm_{level}_0"] = _conv(kernel, before, width)
        shapes[f"{prefix}_conv_downarm_{level}_1"] = _conv(kernel, width, width)
        shapes[f"{prefix}_bn_down_{level}"] = _norm(width)
        if level < levels - 1:
            shapes[f"{prefix}_maxpool_{level}"] = {}
        before = width
    for up in range(levels - 1):
        width, number = widths[levels - 2 - up], levels + up
        skipped = up < levels - 1 - skips_dropped
        shapes[f"{prefix}_up_{number}"] = {}
        if skipped:
            shapes[f"{prefix}_merge_{number}"] = {}
        shapes[f"{prefix}_conv_uparm_{number}_0"] = _conv(kernel, before + width * skipped, width)
        shapes[f"{prefix}_conv_uparm_{number}_1"] = _conv(kernel, width, width)
        shapes[f"{prefix}_bn_up_{up}"] = _norm(width)
        before = width
    shapes[f"{prefix}_likelihood"] = _conv(1, before, n_out)
    shapes[f"{prefix}_prediction"] = {}
    return shapes


def encoder_shapes(
    prefix: str = "qc", *, features: int = 24, levels: int = 4, n_in: int = 9, n_out: int = 9, kernel: int = 5
) -> Shapes:
    """The quality network: layer -> tensor -> shape."""
    shapes: Shapes = {f"{prefix}_input": {}}
    before = n_in
    for level in range(levels):
        width = features * 2**level
        shapes[f"{prefix}_conv_downarm_{level}_0"] = _conv(kernel, before, width)
        shapes[f"{prefix}_conv_downarm_{level}_1"] = _conv(kernel, width, width)
        shapes[f"{prefix}_expand_down_merge_{level}"] = _conv(kernel, before, width)
        shapes[f"{prefix}_bn_down_{level}"] = _norm(width)
        shapes[f"{prefix}_maxpool_{level}"] = {}
        before = width
    shapes[f"{prefix}_final_conv_0"] = _conv(kernel, before, n_out)
    shapes[f"{prefix}_final_conv_1"] = _conv(kernel, n_out, n_out)
    shapes[f"{prefix}_final_pred"] = {}
    return shapes


def parameters(shapes: Shapes) -> tuple[int, int]:
    """(all, trainable) without allocating anything: moving statistics are not trained."""
    sizes = [(name, int(np.prod(shape))) for layer in shapes.values() for name, shape in layer.items()]
    return sum(n for _, n in sizes), sum(n for name, n in sizes if not name.startswith("moving"))


class _Calibration(Layers):
    """A forward pass on a phantom that scales convolutions and sets batch norm statistics to what it sees."""

    def __init__(self, network: Network, prefix: str) -> None:
        super().__init__({name: list(layer.values()) for name, layer in network.items() if layer}, prefix)
        self.network = network

    def conv(self, x: Array, name: str) -> Array:
        """Outputs of unit spread around the random bias."""
        layer = self.network[f"{self.prefix}_{name}"]
        out = super().conv(x, name)
        if "arm" not in name:
            return out
        scale = 1 / (out.std((1, 2, 3)) + 1e-2)
        layer["kernel"] *= scale.astype(np.float32)
        layer["bias"][:] = scale * (layer["bias"] - out.mean((1, 2, 3))) + layer["bias"]
        return super().conv(x, name)

    def normalise(self, x: Array, name: str) -> Array:
        layer = self.network[f"{self.prefix}_{name}"]
        layer["moving_mean"][:] = x.mean((1, 2, 3))
        layer["moving_variance"][:] = x.var((1, 2, 3)) + 1e-2  # a dead channel stays dead
        return super().normalise(x, name)


def _random(shapes: Shapes, rng: np.random.Generator, bounded: bool = False) -> Network:
    """He-like scale for inputs that vary slowly: the sum over channels counts, the taps of a kernel mostly agree.

    bounded: a level's second kernels are negative. ELU's outputs are above -1, so theirs are bounded on both sides, and
    no scan, however unlike the phantom, drives the softmax into saturation (ties of rounding, 0/0).
    """
    network: Network = {}
    for name, layer in shapes.items():
        network[name] = {}
        for tensor, shape in layer.items():
            if tensor == "kernel":
                taps, n_in = int(np.prod(shape[:3])), shape[3]
                flat = rng.normal(size=(1, 1, 1, *shape[3:])) / taps
                rough = rng.normal(size=shape) / np.sqrt(taps) if taps > 1 else 0.0
                values = np.sqrt(2 / n_in) * (flat + ROUGHNESS * rough) + np.zeros(shape)
                if bounded and name.endswith("_1"):
                    values = -np.abs(values) * (1 + 4 * np.eye(*shape[3:]))
                if "_uparm_" in name and name.endswith("_0") and n_in > shape[4]:
                    values[..., shape[4] :, :] *= DEPTH  # channels after the skip's
            elif tensor == "gamma":
                values = rng.uniform(0.6, 1.4, shape)
            elif tensor == "moving_variance":
                values = np.ones(shape)
            else:
                values = 0.2 * rng.normal(size=shape)
            network[name][tensor] = values.astype(np.float32)
    return network


@functools.cache
def phantom(n_groups: int, size: int = 80) -> tuple[Array, Array]:
    """(image [size]^3 in 0..1, one-hot groups [n_groups, ...]): part of a head of smooth patches, in air."""
    rng = np.random.default_rng(1234)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.7, 0.5, size)] * 3, indexing="ij"))
    inside = (grid**2).sum(0) < 1  # a quadrant and some: depth as in a real scan, in a small volume
    field = sum(ndimage.gaussian_filter(rng.normal(size=[size] * 3), s, mode="wrap") * s**1.5 for s in (2, 4, 10))
    rank = np.searchsorted(np.sort(field[inside]), field) / inside.sum()
    image = np.where(inside, 0.15 + 0.85 * rank, 0.0) + 0.01 * rng.random(inside.shape)
    groups = np.where(inside, 1 + np.minimum(rank * (n_groups - 1), n_groups - 2).astype(int), 0)
    one_hot = (groups == np.arange(n_groups)[:, None, None, None]).astype(np.float32)
    return ndimage.gaussian_filter(image, 0.5).clip(0, 1).astype(np.float32), one_hot


def _phantom_input(n_in: int) -> tuple[Array, Array]:
    """(network input [n_in, ...], air mask)."""
    with_image = n_in in IMAGE_INPUTS
    image, groups = phantom(max(2, n_in - with_image))
    x = np.concatenate([image[None], groups])[:n_in] if with_image else groups
    return x, groups[0] > 0


def _prototype_head(features: Array, air: Array, head: Layer, sharpness: float, seed: int) -> None:
    """Give each channel the voxels whose features are nearest to its own prototype, a voxel of the phantom.

    The negative squared distance, halved, is linear in the features but for a term all channels share: f.c - |c|^2 / 2.
    So every channel wins somewhere, which random directions would not do. Channel 0's prototype is the air.
    """
    rng = np.random.default_rng(seed)
    flat, outside = features.reshape(len(features), -1).T.astype(np.float64), air.ravel()
    centre = flat.mean(0)
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(flat.T)) + 1e-3 * np.eye(flat.shape[1]))
    whiten = axes / np.sqrt(variances)
    seen = (flat - centre) @ whiten
    chosen = [seen[outside].mean(0)]
    candidates = seen[rng.choice(np.flatnonzero(~outside), 4000)]
    for _ in range(head["bias"].size - 1):  # spread over what occurs: each far from those before (k-means++)
        distance = ((candidates[:, None] - np.array(chosen)) ** 2).sum(2).min(1)
        chosen.append(candidates[rng.choice(len(candidates), p=distance / distance.sum())])
    prototypes = np.array(chosen)
    prototypes[1:] = rng.permutation(prototypes[1:])
    halves = np.sort(((candidates[:, None] - prototypes) ** 2).sum(2), 1) / 2
    lead, reach = np.percentile(halves[:, 1] - halves[:, 0], 95), np.percentile(halves[:, -1] - halves[:, 0], 99)
    scale = min(sharpness / lead, LARGEST_RANGE / reach)
    kernel = scale * prototypes @ whiten.T
    head["kernel"][:] = kernel.T.reshape(head["kernel"].shape)
    head["bias"][:] = -scale * (prototypes**2).sum(1) / 2 - kernel @ centre


def unet(prefix: str = "unet", *, seed: int = 0, sharpness: float = 10.0, **architecture: int) -> Network:
    """A random UNet; `sharpness`: a large lead of the winning logit (95th percentile); see `unet_shapes` as well."""
    shapes = unet_shapes(prefix, **architecture)
    network = _random(shapes, np.random.default_rng(seed), bounded=True)
    n_in = shapes[f"{prefix}_conv_downarm_0_0"]["kernel"][3]
    x, air = _phantom_input(n_in)
    features = unet_features(x, _Calibration(network, prefix))
    _prototype_head(features, air, network[f"{prefix}_likelihood"], sharpness, seed)
    return network


def qc_encoder(prefix: str = "qc", *, seed: int = 0, **architecture: int) -> Network:
    """A random quality network whose raw scores spread over about 0.2 to 1.2, so that some are clipped."""
    shapes = encoder_shapes(prefix, **architecture)
    rng = np.random.default_rng(seed)
    network = _random(shapes, rng)
    x, _ = _phantom_input(shapes[f"{prefix}_conv_downarm_0_0"]["kernel"][3])
    x = encoder_features(x, _Calibration(network, prefix))
    first, last = (network[f"{prefix}_final_conv_{i}"] for i in range(2))
    raw = convolve(relu(convolve(x, *first.values())), *last.values())
    spread = raw.std((1, 2, 3)) + 0.1
    last["kernel"] *= (0.3 / spread).astype(np.float32)
    wanted = rng.permutation(np.linspace(0.2, 1.2, len(spread)))
    last["bias"][:] = wanted + 0.3 * (last["bias"] - raw.mean((1, 2, 3))) / spread
    return network
