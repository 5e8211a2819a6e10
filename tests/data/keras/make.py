"""Small files written by Keras itself, with Keras' own answers (see README.md; tests/test_weights_keras.py reads them).

    PYTHON_WITH_TENSORFLOW tests/data/keras/make.py tests/data/keras/written.zip

Networks after the published description, under the original's layer names: convolutions with ELU, then batch norm; the
skip connection leaves before the norm; [skip, upsampled]; the residual encoder of quality control. Nothing of this
package is imported.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def unet(x: Any, prefix: str, outputs: int, features: int, levels: int = 3, kernel: int = 3, no_skip: int = 0) -> Any:
    """Posteriors of a UNet whose ``no_skip`` shallowest decoder levels see no skip connection."""

    def convolutions(x: Any, arm: str, level: int, width: int) -> Any:
        for index in range(2):
            name = f"{prefix}_conv_{arm}_{level}_{index}"
            x = layers.Conv3D(width, kernel, padding="same", activation="elu", name=name)(x)
        return x

    skips = []
    for level in range(levels):
        x = convolutions(x, "downarm", level, features * 2**level)
        skips.append(x)
        x = layers.BatchNormalization(name=f"{prefix}_bn_down_{level}")(x)
        if level < levels - 1:
            x = layers.MaxPooling3D(2, padding="same", name=f"{prefix}_maxpool_{level}")(x)
    for depth in range(levels - 1):
        x = layers.UpSampling3D(2, name=f"{prefix}_up_{levels + depth}")(x)
        if depth < levels - 1 - no_skip:
            name = f"{prefix}_merge_{levels + depth}"
            x = layers.concatenate([skips[levels - 2 - depth], x], name=name)
        x = convolutions(x, "uparm", levels + depth, features * 2 ** (levels - 2 - depth))
        x = layers.BatchNormalization(name=f"{prefix}_bn_up_{depth}")(x)
    x = layers.Conv3D(outputs, 1, name=f"{prefix}_likelihood")(x)
    return layers.Softmax(name=f"{prefix}_prediction")(x)


def encoder(x: Any, outputs: int, features: int, levels: int, kernel: int) -> Any:
    """Scores of quality control's residual encoder."""

    def convolution(x: Any, width: int, name: str, activation: str | None = None) -> Any:
        return layers.Conv3D(width, kernel, padding="same", activation=activation, name=name)(x)

    for level in range(levels):
        width = features * 2**level
        side = convolution(x, width, f"qc_expand_down_merge_{level}", "relu")
        x = convolution(x, width, f"qc_conv_downarm_{level}_0", "relu")
        x = convolution(x, width, f"qc_conv_downarm_{level}_1")
        x = layers.Activation("relu", name=f"qc_res_relu_{level}")(layers.add([side, x], name=f"qc_res_{level}"))
        x = layers.BatchNormalization(name=f"qc_bn_down_{level}")(x)
        x = layers.MaxPooling3D(2, padding="same", name=f"qc_maxpool_{level}")(x)
    x = convolution(x, outputs, "qc_final_conv_0", "relu")
    x = convolution(x, outputs, "qc_final_conv_1", "relu")
    return layers.GlobalAveragePooling3D(name="qc_final_pred")(x)


def one_hot_argmax(x: Any, groups: int, name: str) -> Any:
    return layers.Lambda(lambda y: tf.one_hot(tf.argmax(y, -1), groups), name=name)(x)


def fill(model: Any, rng: np.random.Generator) -> None:
    """Weights that make every tensor matter, statistics of batch norm included."""
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.name
            if "kernel" in name:
                values.append(rng.normal(size=shape) * np.sqrt(1.5 / np.prod(shape[:-1])))
            elif "variance" in name or "gamma" in name:
                values.append(rng.uniform(0.3, 2.5, shape))
            else:
                values.append(rng.normal(size=shape) * 0.4)
        layer.set_weights(values)


def one_hot_noise(rng: np.random.Generator, shape: tuple[int, ...], groups: int) -> np.ndarray:
    return np.eye(groups, dtype=np.float32)[rng.integers(0, groups, shape)]


def weights_only(folder: Path, rng: np.random.Generator) -> None:
    """`save_weights`: layers at the root, as the published 2.0 files."""
    image = rng.random((1, 8, 4, 12, 1), dtype=np.float32)
    seen = keras.Input((None, None, None, 1))
    model = keras.Model(seen, unet(seen, "unet", outputs=6, features=2))
    fill(model, rng)
    model.save_weights(folder / "unet.h5")
    np.savez_compressed(folder / "unet.npz", image=image, unet=model.predict(image, verbose=0))


def robust(folder: Path, rng: np.random.Generator) -> None:
    """Three networks in one file, whose prefixes share a beginning."""
    image = rng.random((1, 8, 4, 8, 1), dtype=np.float32)
    seen = keras.Input((None, None, None, 1))
    tissues = unet(seen, "unet", outputs=5, features=1)
    groups = one_hot_argmax(tissues, 5, "groups")
    mended = unet(groups, "l2l", outputs=5, features=1, kernel=5, no_skip=1)
    both = layers.concatenate([seen, one_hot_argmax(mended, 5, "mended_groups")])
    model = keras.Model(seen, [tissues, groups, mended, both, unet(both, "unet2", outputs=7, features=1)])
    fill(model, rng)
    model.save_weights(folder / "robust.h5")
    names = ("unet", "l2l_input", "l2l", "unet2_input", "unet2")
    np.savez_compressed(
        folder / "robust.npz", image=image, **dict(zip(names, model.predict(image, verbose=0), strict=True))
    )


def quality(folder: Path, rng: np.random.Generator) -> None:
    groups = one_hot_noise(rng, (1, 8, 4, 12), 9)
    seen = keras.Input((None, None, None, 9))
    model = keras.Model(seen, encoder(seen, outputs=9, features=2, levels=2, kernel=3))
    fill(model, rng)
    model.save_weights(folder / "qc.h5")
    np.savez_compressed(folder / "qc.npz", image=groups, qc=model.predict(groups, verbose=0))


def checkpoint(folder: Path, rng: np.random.Generator) -> None:
    """`save` after a step of training: layers under /model_weights, optimizer, Python bytecode in the configuration."""
    image = rng.random((1, 4, 8, 8, 1), dtype=np.float32)
    seen = keras.Input((None, None, None, 1))
    brighter = layers.Lambda(lambda x: x * 1.0, name="generator_like")(seen)  # its code goes into the file
    model = keras.Model(seen, unet(brighter, "unet", outputs=4, features=1))
    fill(model, rng)
    model.compile(keras.optimizers.Adam(1e-2), loss="mse")
    model.fit(image, rng.random((1, 4, 8, 8, 4), dtype=np.float32), epochs=1, verbose=0)
    model.save(folder / "checkpoint.h5", save_format="h5")
    np.savez_compressed(folder / "checkpoint.npz", image=image, unet=model.predict(image, verbose=0))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, make in enumerate((weights_only, robust, quality, checkpoint)):
            keras.utils.set_random_seed(seed)
            make(folder, np.random.default_rng(seed))
        with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for file in sorted(folder.iterdir()):  # HDF5 leaves most of such small files empty
                packed.write(file, file.name)
    versions = {"TensorFlow": tf.__version__, "h5py": h5py.__version__, "numpy": np.__version__}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
