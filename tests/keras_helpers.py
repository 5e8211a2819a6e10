"""What the tests of reading Keras files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_files import Layer, unet_shapes, write_keras

Shapes = dict[str, dict[str, tuple[int, ...]]]


def fill(shapes: Shapes, seed: int = 0) -> dict[str, Layer]:
    """A number of its own in every place of every array."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) for name, shape in a.items()
        }
        for layer, a in shapes.items()
    }


def tiny(path: Path, **options: Any) -> tuple[Path, dict[str, Layer]]:
    layers = fill(unet_shapes("unet", features=2, levels=2, n_out=4))
    return write_keras(path, [layers], **options), layers
