"""Random networks in the original's Keras .h5 files (behaviour specification, section 4.3); h5py only, no synthseg.

write_keras(path, [unet("unet", features=4, n_out=33)])
files = write_family(folder, features=4)  # all five: {"1.0": path, "2.0": ..., "robust": ..., "parc": ..., "qc": ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras_random import Layer, Network, encoder_shapes, parameters, phantom, qc_encoder, unet, unet_shapes

__all__ = [
    "FAMILY",
    "Layer",
    "Network",
    "encoder_shapes",
    "parameters",
    "phantom",
    "qc_encoder",
    "unet",
    "unet_shapes",
    "write_family",
    "write_keras",
]

FAMILY = {
    "1.0": "synthseg_1.0.h5",
    "2.0": "synthseg_2.0.h5",
    "robust": "synthseg_robust_2.0.h5",
    "parc": "synthseg_parc_2.0.h5",
    "qc": "synthseg_qc_2.0.h5",
}


def write_keras(
    path: str | Path,
    networks: Mapping[str, Network] | Sequence[Network],
    *,
    layout: str = "root",
    text: str = "bytes",
    split: bool = False,
    suffix: str = "",
    variable_suffix: str = "",
    extra: Mapping[str, Layer] | None = None,
) -> Path:
    """Write networks as Keras does (section 4.3).

    Args:
        networks: one or several, e.g. {"unet": unet("unet")}; keys only serve the reader.
        layout: "root" (weights only) or "model_weights" (full model, with optimiser state and configuration).
        text: "bytes" (Keras 2.3.1 with h5py 2) or "str" attributes.
        split: layer names in layer_names0, layer_names1, ... as Keras does for long lists.
        suffix: of the variable scope, e.g. "_1": unet_likelihood/unet_likelihood_1/kernel:0.
        variable_suffix: of the variable itself: unet_likelihood/unet_likelihood/kernel_1:0.
        extra: further layers, e.g. {"random_crop": {}} or one with tensors that belong to no network.
    """
    layers: dict[str, Layer] = {}
    for network in networks.values() if isinstance(networks, Mapping) else networks:
        layers |= network
    layers |= extra or {}
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if layout == "model_weights" else file
        _write_names(root, list(layers), text, split)
        for holder in {file, root}:
            holder.attrs["backend"] = _texts(["tensorflow"], text)[0]
            holder.attrs["keras_version"] = _texts(["2.3.1"], text)[0]
        for name, layer in layers.items():
            group = root.create_group(name)
            tensors = {f"{name}{suffix}/{tensor}{variable_suffix}:0": values for tensor, values in layer.items()}
            # Keras stores an empty list as an empty array of numbers
            group.attrs["weight_names"] = _texts(list(tensors), text) if tensors else np.asarray([])
            for tensor, values in tensors.items():
                group.create_dataset(tensor, data=values)
        if layout == "model_weights":
            _write_training_state(file, layers, text)
    return Path(path)


def _texts(names: Sequence[str], text: str) -> Any:
    return np.array([n.encode() for n in names]) if text == "bytes" else np.array(names, dtype=h5py.string_dtype())


def _write_names(root: h5py.Group, names: list[str], text: str, split: bool) -> None:
    if not split:
        root.attrs["layer_names"] = _texts(names, text)
        return
    for i, start in enumerate(range(0, len(names), 7)):
        root.attrs[f"layer_names{i}"] = _texts(names[start : start + 7], text)


def _write_training_state(file: h5py.File, layers: Mapping[str, Layer], text: str) -> None:
    """What a checkpoint has beside its weights; an importer has no use for it."""
    config = {"class_name": "Model", "config": {"name": "model_1", "layers": [{"name": name} for name in layers]}}
    file.attrs["model_config"] = _texts([json.dumps(config)], text)[0]
    file.attrs["training_config"] = _texts([json.dumps({"optimizer_config": {"class_name": "Adam"}})], text)[0]
    optimiser = file.create_group("optimizer_weights")
    optimiser.attrs["weight_names"] = _texts(["Adam/iterations:0"], text)
    optimiser.create_dataset("Adam/iterations:0", data=np.int64(300))


def write_family(
    folder: str | Path, *, features: int = 4, levels: int = 5, seed: int = 0, sharpness: float = 10.0
) -> dict[str, Path]:
    """All five files of the original under their names; keys: the version or the role (see `FAMILY`)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    common = {"features": features, "levels": levels, "sharpness": sharpness}
    denoiser = {**common, "features": max(1, features * 2 // 3), "n_in": 5, "n_out": 5, "kernel": 5, "skips_dropped": 2}
    networks = {
        "1.0": [unet(seed=seed + 1, n_out=32, **common)],
        "2.0": [unet(seed=seed + 2, n_out=33, **common)],
        "robust": [
            unet("unet", seed=seed + 3, n_out=5, **common),
            unet("l2l", seed=seed + 4, **denoiser),
            unet("unet2", seed=seed + 5, n_in=6, n_out=33, **common),
        ],
        "parc": [unet("unet_parc", seed=seed + 6, n_in=3, n_out=69, **common)],
        "qc": [qc_encoder(seed=seed + 7, features=features)],
    }
    return {role: write_keras(folder / FAMILY[role], found) for role, found in networks.items()}
