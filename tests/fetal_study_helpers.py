"""Made-up fetal brains and small settings: what the tests of the fetal study share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments are no part of the installed package
torch.set_num_threads(1)

from experiments.fetal.config import MILD, SEVERE, Edit, FetalConfig  # noqa: E402

from synthseg.labels import load_protocol  # noqa: E402
from synthseg.volumes import Volume, write_volume  # noqa: E402

FETA = load_protocol("feta")
SIDE, SPACING = 26, 3.0


def brain(seed: int = 0, side: int = SIDE) -> Volume:
    """A fetal brain of ellipsoids with all seven tissues, another for every seed."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(side) - side / 2 + 0.5] * 3, indexing="ij")
    size = rng.uniform(0.92, 1.08, 3)
    data = np.zeros((side, side, side), dtype=np.int32)
    parts = (  # value, centre, half axes
        (1, (0, 0, 0), (9, 10, 9)),
        (2, (0, 0, 1), (8, 9, 7.5)),
        (3, (0, 0, 1), (6.5, 7.5, 6)),
        (6, (0, 0, 0), (3.5, 3, 2.5)),
        (4, (0, 0, 2.5), (3.5, 4, 1.6 + seed % 3 * 0.4)),
        (5, (0, -5, -5), (4, 2.5, 2.5)),
        (7, (0, -1, -6), (1.7, 1.7, 3)),
    )
    for value, at, half in parts:
        place = [(g - c) / (h * s) for g, c, h, s in zip((x, y, z), at, half, size, strict=True)]
        data[sum(p**2 for p in place) < 1] = value
    return Volume(data, np.diag([SPACING, SPACING, SPACING, 1.0]))


def save_maps(folder: Path) -> Path:
    """Four maps of three ages."""
    for number, name in enumerate(("a_ga21", "b_ga25_one", "c_ga25_two", "d_ga30")):
        write_volume(brain(number), folder / f"{name}_feta.nii.gz")
    return folder


TOY = FetalConfig(
    variants=4,
    edited=2,
    margin_mm=12.0,
    edits=(Edit("wide ventricles", "ventricles", SEVERE, 2.0), Edit("thin cortex", "cortex", MILD, 0.8)),
    contrasts=("t2", "t2-stripped"),
    edited_contrasts=("t2",),
    test_spacing_mm=SPACING,
)
