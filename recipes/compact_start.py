"""Starting weights of the compact network, cut out of the default's: one level fewer, at twice the pitch.

    python recipes/compact_start.py -o runs/compact-start.safetensors

A block of eight voxels takes the place of one voxel: the first convolution sees their mean, the head gives all eight
the same logits, and the deepest level is left out. It segments nothing yet, but training has less to find.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from synthseg.weights import load_weights, save_weights

PATCH = 2


def compact_start(tensors: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Tensors of a UNet of ``levels`` levels as those of one on blocks of 2^3 voxels with a level fewer."""
    block = PATCH**3
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        room, number, *rest = name.split(".")
        if (room, number) in (("down", str(levels - 1)), ("up", "0")):
            continue
        if room == "up":
            name = ".".join([room, str(int(number) - 1), *rest])
        value = tensor.float()
        if name == "down.0.convs.0.weight":
            value = value.repeat_interleave(block, 1) / block
        elif room == "head":
            value = value.repeat_interleave(block, 0)
        kept[name] = value
    return kept


def main() -> None:
    """Read the weights named, write those to start from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    weights = load_weights(given.weights)
    architecture = weights.card["architecture"]
    levels = int(architecture["levels"])
    untold = ("created", "scores", "scores_step", "steps", "samples", "hours")  # true of the default, not of this
    card = {
        **{key: value for key, value in weights.card.items() if key not in untold},
        "name": "compact-start",
        "architecture": {**architecture, "levels": levels - 1, "patch": PATCH},
        "started_from": {"name": weights.name, "sha256": weights.card["sha256"], "steps": weights.card.get("steps")},
        "description": "To start training from: not trained in this shape, segments nothing.",
    }
    print(save_weights(given.out, compact_start(dict(weights.tensors), levels), card))


if __name__ == "__main__":
    main()
