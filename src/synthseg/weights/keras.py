"""Networks in the Keras files of the original SynthSeg, as tensors under our names. No torch here.

A network is found by the prefix of its layers; its architecture follows from the shapes of its arrays, so that networks
trained by others with the original's code are read too. Every array of a file belongs to a layer of a network, or the
file is refused.

Source: the reference, sections 4.1 to 4.3 (layers, their names, and how their arrays map to torch's).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import WeightsError
from synthseg.weights.hdf5 import KerasLayers, Stored, open_keras, read_array, read_layers

PREFIXES = ("unet", "l2l", "unet2", "unet_parc", "qc")  # of the original's networks
ENCODER = "qc"
_PARTS = r"conv_(?:down|up)arm_\d+_\d+|bn_(?:down|up)_\d+|likelihood|expand_down_merge_\d+|final_conv_\d+"
_LAYER = re.compile(rf"(?P<prefix>.+?)_(?P<part>{_PARTS})")
CONV = {"kernel": "weight", "bias": "bias"}
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_ELSE = "it is no network of the original's code, or was altered: import another file"


class NoNetworkError(WeightsError):
    """A Keras file with nothing of SynthSeg in it: it belongs to another program."""


@dataclass(frozen=True)
class Slot:
    """A layer of a network: its name after the prefix, our module, and the shapes of its arrays in Keras' order."""

    part: str
    module: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def names(self) -> Mapping[str, str]:
        """Keras' variables -> ours."""
        return CONV if "kernel" in self.shapes else NORM


@dataclass(frozen=True)
class KerasNetwork:
    """A network of a file, by its shapes; :func:`read_tensors` reads its numbers."""

    path: Path
    prefix: str
    architecture: dict[str, Any]  # as in a card
    slots: tuple[Slot, ...]
    layers: Mapping[str, Mapping[str, Stored]]  # by the name after the prefix

    @property
    def arrays(self) -> int:
        """How many arrays of the file it is made of: all that its layers have."""
        return sum(len(slot.shapes) for slot in self.slots)


@dataclass(frozen=True)
class KerasFile:
    """The networks of a file, and the rest of it: layers without numbers, and whether an optimizer's state is there."""

    path: Path
    networks: tuple[KerasNetwork, ...]
    plain: int
    optimizer: bool


def survey(path: str | Path) -> KerasFile:
    """Which networks a Keras HDF5 file holds. Every array is accounted for; none is read.

    Raises: WeightsError naming the file, and the layer where there is one: not HDF5, cut off, h5py missing, arrays of
        no known layer, layers that are missing or of another shape.
    """
    path = Path(path)
    with open_keras(path) as file:
        found = read_layers(file, path)
    return KerasFile(path, _networks(found, path), len(found.plain), found.optimizer)


def read_tensors(network: KerasNetwork) -> dict[str, np.ndarray]:
    """The numbers of a network under our names and in our axis order: float32; counters of batch norm int64, 0.

    Raises: WeightsError for NaN, infinity, a negative variance, and a file that cannot be read to its end.
    """
    tensors: dict[str, np.ndarray] = {}
    with open_keras(network.path) as file:
        for slot in network.slots:
            for variable, ours in slot.names.items():
                array = read_array(file, network.layers[slot.part][variable], network.path)
                if variable == "moving_variance" and array.min(initial=0.0) < 0:
                    layer = f"{network.prefix}_{slot.part}"
                    raise WeightsError(network.path, found=f"a negative variance in layer {layer!r}", fix=_ELSE)
                if variable == "kernel":  # (x, y, z, in, out) -> (out, in, x, y, z); no flip: both correlate
                    array = array.transpose(4, 3, 0, 1, 2)
                tensors[f"{slot.module}.{ours}"] = np.ascontiguousarray(array)
            if "gamma" in slot.shapes:
                tensors[f"{slot.module}.num_batches_tracked"] = np.zeros((), np.int64)  # Keras does not count them
    return tensors


def _networks(found: KerasLayers, path: Path) -> tuple[KerasNetwork, ...]:
    parts: dict[str, dict[str, Mapping[str, Stored]]] = {}
    strange: list[str] = []
    for layer, arrays in found.layers.items():
        match = _LAYER.fullmatch(layer)
        if match is None or match["prefix"] not in PREFIXES:
            strange.append(layer)
        else:
            parts.setdefault(match["prefix"], {})[match["part"]] = arrays
    if not parts:
        fix = "give one that Keras 2 wrote of the original's networks: model.save(NAME.h5), not NAME.weights.h5"
        raise NoNetworkError(path, found="no layer of a SynthSeg network with weights", fix=fix)
    if strange:
        fix = f"give a file whose networks are called {', '.join(PREFIXES)}, without other layers that have weights"
        found_there = f"weights in the layer {strange[0]!r}, which no network of SynthSeg has"
        raise WeightsError(path, found=found_there, fix=fix)
    return tuple(_network(path, prefix, parts[prefix]) for prefix in PREFIXES if prefix in parts)


def _network(path: Path, prefix: str, layers: Mapping[str, Mapping[str, Stored]]) -> KerasNetwork:
    """A network of which every layer is there, and no other, each with the shapes that the whole asks for."""
    sizes = _Sizes(path, prefix, layers)
    for part, given in layers.items():  # first within each layer: the others tell what this one should be
        ends = {variable: stored.shape[-1:] for variable, stored in given.items()}
        if len(set(ends.values())) > 1:
            told = ", ".join(f"{variable} {stored.shape}" for variable, stored in given.items())
            raise sizes.refused(part, f"with arrays that do not fit each other: {told}")
    architecture, slots = (_encoder if prefix == ENCODER else _unet)(sizes)
    for slot in slots:
        if slot.part not in layers:
            raise sizes.refused(slot.part, "missing", of="layer")
        given = layers[slot.part]
        if list(given) != list(slot.shapes):
            raise sizes.refused(slot.part, f"with the arrays {', '.join(given)} instead of {', '.join(slot.shapes)}")
        for variable, shape in slot.shapes.items():
            if given[variable].shape != shape:
                raise sizes.refused(slot.part, f"with {variable} {given[variable].shape} instead of {shape}")
    extra = sorted(set(layers) - {slot.part for slot in slots})
    if extra:
        raise sizes.refused(extra[0], "left over")
    return KerasNetwork(path, prefix, architecture, tuple(slots), layers)


class _Sizes:
    """Numbers read off a network's layers."""

    def __init__(self, path: Path, prefix: str, layers: Mapping[str, Mapping[str, Stored]]) -> None:
        self.path, self.prefix, self.layers = path, prefix, layers

    def kernel(self, part: str) -> tuple[int, ...]:
        """Shape of a convolution's kernel: three sides, channels in, channels out."""
        shape = self.layers.get(part, {}).get("kernel", Stored("", ())).shape
        if len(shape) != 5 or min(shape) < 1:
            raise self.refused(part, f"with a kernel of shape {shape}, not five sides" if shape else "without a kernel")
        return shape

    def one_more(self, pattern: str) -> int:
        """1 + the largest number that a pattern picks from the layers' names; 0 without any."""
        numbers = [int(match[1]) for part in self.layers if (match := re.fullmatch(pattern, part))]
        return 1 + max(numbers, default=-1)

    def shape(self) -> tuple[int, int, int, int, int]:
        """Levels, convolutions a level, kernel, features, channels in."""
        levels = max(self.one_more(r"conv_downarm_(\d+)_\d+"), self.one_more(r"bn_down_(\d+)"))
        convs = self.one_more(r"conv_(?:down|up)arm_\d+_(\d+)")
        kernel = self.kernel("conv_downarm_0_0")
        if len(set(kernel[:3])) > 1 or kernel[0] % 2 == 0:
            raise self.refused("conv_downarm_0_0", f"with a kernel of {kernel[:3]} voxels, not a cube of odd sides")
        if levels > 9 or convs > 99:
            raise self.refused("conv_downarm_0_0", f"in a network of {levels} levels and {convs} convolutions a level")
        return levels, convs, kernel[0], kernel[4], kernel[3]

    def refused(self, part: str, what: str, of: str = "the layer") -> WeightsError:
        name = f"{self.prefix}_{part}"
        return WeightsError(self.path, found=f"{of} {name!r} {what}, in network {self.prefix!r}", fix=_ELSE)


def _unet(sizes: _Sizes) -> tuple[dict[str, Any], list[Slot]]:
    """Reference 4.1: levels of convolutions and batch norm down and up, numbered on, and the likelihood."""
    levels, convs, kernel, features, n_in = sizes.shape()
    widths = [features * 2**level for level in range(levels)]
    slots: list[Slot] = []
    for level, width in enumerate(widths):
        first = n_in if level == 0 else widths[level - 1]
        slots += _convs(f"conv_downarm_{level}", f"down.{level}.convs", convs, kernel, first, width)
        slots.append(_norm(f"bn_down_{level}", f"down.{level}.norm", width))
    dropped = 0
    for depth, level in enumerate(reversed(range(levels - 1))):
        part = f"conv_uparm_{levels + depth}"
        below, width = widths[level + 1], widths[level]
        given = sizes.kernel(f"{part}_0")[3]
        skipped = given == below  # else [skip, upsampled] is what must come in
        if not skipped and dropped:
            raise sizes.refused(f"{part}_0", f"with {given} channels in, a skip connection above levels without")
        dropped += skipped
        slots += _convs(part, f"up.{depth}.convs", convs, kernel, below if skipped else below + width, width)
        slots.append(_norm(f"bn_up_{depth}", f"up.{depth}.norm", width))
    n_out = sizes.kernel("likelihood")[4]
    slots.append(_conv("likelihood", "head", 1, features, n_out))
    architecture = {
        "kind": "unet",
        "in_channels": n_in,
        "out_channels": n_out,
        "patch": 1,
        "features": features,
        "levels": levels,
        "convs_per_level": convs,
        "kernel": kernel,
        "dropped_skips": dropped,
        "norm": "batch",
        "batch_norm_eps": 1e-3,
        "batch_norm_momentum": 0.01,
    }
    return architecture, slots


def _encoder(sizes: _Sizes) -> tuple[dict[str, Any], list[Slot]]:
    """Reference 4.2: residual levels with an 'expand' convolution each, and two last convolutions."""
    levels, convs, kernel, features, n_in = sizes.shape()
    widths = [n_in, *(features * 2**level for level in range(levels))]
    slots: list[Slot] = []
    for level in range(levels):
        first, width = widths[level], widths[level + 1]
        slots.append(_conv(f"expand_down_merge_{level}", f"down.{level}.expand", kernel, first, width))
        slots += _convs(f"conv_downarm_{level}", f"down.{level}.convs", convs, kernel, first, width)
        slots.append(_norm(f"bn_down_{level}", f"down.{level}.norm", width))
    n_out = sizes.kernel("final_conv_0")[4]
    slots.append(_conv("final_conv_0", "final.0", kernel, widths[-1], n_out))
    slots.append(_conv("final_conv_1", "final.1", kernel, n_out, n_out))
    architecture = {
        "kind": "encoder",
        "in_channels": n_in,
        "out_channels": n_out,
        "features": features,
        "levels": levels,
        "convs_per_level": convs,
        "kernel": kernel,
        "patch": 1,
        "norm": "batch",
        "expected_dice": False,
    }
    return architecture, slots


def _convs(part: str, module: str, count: int, kernel: int, first: int, width: int) -> list[Slot]:
    widths = [first] + [width] * count
    return [_conv(f"{part}_{i}", f"{module}.{i}", kernel, widths[i], width) for i in range(count)]


def _conv(part: str, module: str, kernel: int, n_in: int, n_out: int) -> Slot:
    return Slot(part, module, {"kernel": (kernel, kernel, kernel, n_in, n_out), "bias": (n_out,)})


def _norm(part: str, module: str, width: int) -> Slot:
    return Slot(part, module, dict.fromkeys(NORM, (width,)))
