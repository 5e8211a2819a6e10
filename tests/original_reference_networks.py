"""The original's networks in numpy, channels first: convolutions as matrix products over shifted views.

Written from the published layer descriptions only (behaviour specification, sections 4.1-4.3); nothing of synthseg is
imported. A network's weights are a mapping: layer name -> its tensors, in the order in which Keras stores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.floating]
Weights = Mapping[str, Sequence[Array]]

EPSILON = 1e-3  # batch norm (section 4.1)
COLUMN_ELEMENTS = 1 << 21  # of one block of stacked shifted views: stays in the cache


def read_keras(path: str | Path) -> dict[str, list[Array]]:
    """Layer name -> tensors in `weight_names` order, of either layout (4.3); layers without weights left out."""
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        layers = {}
        for name, group in root.items():
            tensors = [np.asarray(group[_text(tensor)]) for tensor in group.attrs.get("weight_names", ())]
            if tensors:
                layers[name] = tensors
    return layers


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def convolve(x: Array, kernel: Array, bias: Array) -> Array:
    """[C, X, Y, Z] -> [O, X, Y, Z]: cross-correlation with kernel [k, k, k, C, O], zero padding "same"."""
    size, channels, out_channels = kernel.shape[0], *kernel.shape[3:]
    reach = size // 2
    padded = np.pad(x, [(0, 0), *[(reach, reach)] * 3])
    flat = padded.reshape(channels, -1)  # in here a shift by (i, j, k) voxels is one offset, the same for every voxel
    stride = (padded.shape[2] * padded.shape[3], padded.shape[3], 1)
    offsets = [sum((t - reach) * s for t, s in zip(tap, stride, strict=True)) for tap in np.ndindex(*kernel.shape[:3])]
    first = reach * sum(stride)
    last = flat.shape[1] - first
    matrix = np.ascontiguousarray(kernel.reshape(-1, out_channels).T.astype(x.dtype))  # [O, taps * C]
    out = np.zeros((out_channels, flat.shape[1]), x.dtype)
    step = max(256, COLUMN_ELEMENTS // matrix.shape[1])
    columns = np.empty((len(offsets), channels, step), x.dtype)
    for start in range(first, last, step):
        width = min(step, last - start)
        for tap, offset in enumerate(offsets):
            columns[tap, :, :width] = flat[:, start + offset : start + offset + width]
        out[:, start : start + width] = matrix @ columns.reshape(-1, step)[:, :width]
    core = out.reshape(out_channels, *padded.shape[1:])[(slice(None), *[slice(reach, reach + n) for n in x.shape[1:]])]
    return core + bias.astype(x.dtype)[:, None, None, None]


def elu(x: Array) -> Array:
    """x where positive, exp(x) - 1 elsewhere."""
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array) -> Array:
    """With the moving statistics, as at inference."""
    scale, offset, centre, spread = (t.astype(x.dtype)[:, None, None, None] for t in (gamma, beta, mean, variance))
    return (x - centre) / np.sqrt(spread + x.dtype.type(EPSILON)) * scale + offset


def max_pool(x: Array) -> Array:
    """Blocks of 2 x 2 x 2; sizes are even."""
    c, i, j, k = x.shape
    return x.reshape(c, i // 2, 2, j // 2, 2, k // 2, 2).max((2, 4, 6))


def upsample(x: Array) -> Array:
    """Nearest neighbour, factor 2."""
    return x.repeat(2, 1).repeat(2, 2).repeat(2, 3)


def softmax(x: Array) -> Array:
    """Over channels."""
    powers = np.exp(x - x.max(0))
    return powers / powers.sum(0)


class Layers:
    """The layers of one network by name. Calibration (keras_files) overrides `normalise`."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def conv(self, x: Array, name: str) -> Array:
        return convolve(x, *self.weights[f"{self.prefix}_{name}"])

    def normalise(self, x: Array, name: str) -> Array:
        return batch_norm(x, *self.weights[f"{self.prefix}_{name}"])

    def count(self, name: str) -> int:
        """How many levels have a layer of that name, e.g. bn_down_0, bn_down_1, ..."""
        level = 0
        while f"{self.prefix}_{name}_{level}" in self.weights:
            level += 1
        return level


def unet_features(x: Array, layers: Layers) -> Array:
    """[C, X, Y, Z] -> [F, X, Y, Z], what the head sees (section 4.1)."""
    levels = layers.count("bn_down")
    skips = []
    for level in range(levels):
        for i in range(2):
            x = elu(layers.conv(x, f"conv_downarm_{level}_{i}"))
        skips.append(x)  # before batch norm
        x = layers.normalise(x, f"bn_down_{level}")
        if level < levels - 1:
            x = max_pool(x)
    for up in range(levels - 1):
        x = upsample(x)
        taken = layers.weights[f"{layers.prefix}_conv_uparm_{levels + up}_0"][0].shape[3]
        if taken != x.shape[0]:  # otherwise this level has no skip (the denoiser's last two)
            x = np.concatenate([skips[levels - 2 - up], x])
        for i in range(2):
            x = elu(layers.conv(x, f"conv_uparm_{levels + up}_{i}"))
        x = layers.normalise(x, f"bn_up_{up}")
    return x


def unet(x: Array, weights: Weights, prefix: str = "unet", dtype: DTypeLike = np.float32) -> Array:
    """[C, X, Y, Z] -> [n, X, Y, Z] softmax posteriors (section 4.1)."""
    layers = Layers(weights, prefix)
    return softmax(layers.conv(unet_features(x.astype(dtype), layers), "likelihood"))


def encoder_features(x: Array, layers: Layers) -> Array:
    """[9, X, Y, Z] -> [F, X/2^n, ...]: the residual levels of the quality network (section 4.2)."""
    for level in range(layers.count("bn_down")):
        shortcut = relu(layers.conv(x, f"expand_down_merge_{level}"))
        x = layers.conv(relu(layers.conv(x, f"conv_downarm_{level}_0")), f"conv_downarm_{level}_1")
        x = max_pool(layers.normalise(relu(shortcut + x), f"bn_down_{level}"))
    return x


def encoder(x: Array, weights: Weights, prefix: str = "qc", dtype: DTypeLike = np.float32) -> Array:
    """[9, X, Y, Z] one-hot groups -> [9] raw scores (section 4.2)."""
    layers = Layers(weights, prefix)
    x = encoder_features(x.astype(dtype), layers)
    for i in range(2):
        x = relu(layers.conv(x, f"final_conv_{i}"))
    return x.mean((1, 2, 3))
