"""The original's network in Keras, run by an interpreter that has TensorFlow (no part of this package is needed).

    PEERS/keras/bin/python benchmarks/inference/peer_keras.py paper.npz --shape 192 224 192 --passes 1

Our own words for the published description: levels of two convolutions with ELU, then batch norm; the skip connection
leaves before the norm; upsampling to the nearest voxel, [skip, upsampled]; a 1^3 convolution and softmax. Tensors are
those of an .npz named as in this package.

It is called as the original calls it (``predict`` of one image, channels last), once, or twice as for its mirror
averaging, and nothing else is done: reading, resampling, smoothing and clean-up would come on top.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

EPSILON = 1e-3  # of batch norm


def build(tensors: dict[str, Any], shape: tuple[int, int, int]) -> Any:
    """The network for one shape, with its tensors in place."""
    levels = sum(name.startswith("down.") and name.endswith("norm.weight") for name in tensors)
    filled: list[tuple[Any, list[Any]]] = []

    def convolution(x: Any, name: str, activation: str | None) -> Any:
        kernel = tensors[f"{name}.weight"]
        layer = keras.layers.Conv3D(kernel.shape[0], kernel.shape[2:], padding="same", activation=activation)
        filled.append((layer, [kernel.transpose(2, 3, 4, 1, 0), tensors[f"{name}.bias"]]))
        return layer(x)

    def norm(x: Any, name: str) -> Any:
        layer = keras.layers.BatchNormalization(epsilon=EPSILON)
        filled.append(
            (layer, [tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
        )
        return layer(x)

    def level(x: Any, name: str) -> Any:
        count = sum(key.startswith(f"{name}.convs.") and key.endswith("weight") for key in tensors)
        for index in range(count):
            x = convolution(x, f"{name}.convs.{index}", "elu")
        return x

    image = keras.Input((*shape, 1))
    x, skips = image, []
    for depth in range(levels):
        x = keras.layers.MaxPooling3D(2)(x) if depth else x
        x = level(x, f"down.{depth}")
        skips.append(x)
        x = norm(x, f"down.{depth}.norm")
    for depth in range(levels - 1):
        x = keras.layers.UpSampling3D(2)(x)
        x = keras.layers.concatenate([skips[levels - 2 - depth], x])
        x = norm(level(x, f"up.{depth}"), f"up.{depth}.norm")
    x = keras.layers.Softmax()(convolution(x, "head", None))
    model = keras.Model(image, x)
    for layer, values in filled:
        layer.set_weights(values)
    return model


def main() -> None:
    """Build, predict, tell the costs; with ``--against`` also how far the posteriors are from given ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tensors", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 192, 192))
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", type=Path, help=".npz with an image [X, Y, Z] and posteriors [C, X, Y, Z]")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with np.load(given.tensors) as stored:
        tensors = {name: stored[name] for name in stored.files}
    facts: dict[str, Any] = {"tensorflow": tf.__version__, "shape": list(given.shape)}
    if given.against:
        with np.load(given.against) as case:
            image, posteriors = case["image"], case["posteriors"]
        found = build(tensors, image.shape).predict(image[None, ..., None], verbose=0)[0]
        facts["largest_difference"] = float(np.abs(np.moveaxis(found, -1, 0) - posteriors).max())
        return tell(facts)
    model = build(tensors, tuple(given.shape))
    image = np.random.default_rng(0).random((1, *given.shape, 1), dtype=np.float32)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(given.passes):
        model.predict(image, verbose=0)
    facts |= {"forward_cpu_s": time.process_time() - cpu, "forward_wall_s": time.perf_counter() - wall}
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts |= {"process_cpu_s": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 2**20}
    return tell(facts)


def tell(facts: dict[str, Any]) -> None:
    print("result: " + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
