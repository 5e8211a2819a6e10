"""Made-up heads: label maps of ellipsoids and scans of them, so that every study runs anywhere in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from experiments.contrasts import contrast_prior, write_prior

from synthseg.generation.bank import LabelBank
from synthseg.generation.config import (
    AcquisitionPrior,
    AnatomyPrior,
    BiasPrior,
    DeformationPrior,
    GenerationConfig,
    GridPrior,
    IntensityPrior,
)
from synthseg.generation.model import GenerativeModel
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.volumes.volume import Volume
from synthseg.volumes.write import write_volume

SPACING_MM = 3.0
SCALE = 0.6  # of a person's head: a smoke test's time goes into the 1 mm grid of results
SHAPE = (40, 48, 42)
N_MAPS, N_SCANS = 20, 1
PROTOCOL = "synthseg-generation"

# value: centre (right, front, up) and half axes in mm of a grown-up head; a second value is the mirrored
# structure. Painted in order.
_PARTS: tuple[tuple[int, int | None, tuple[float, float, float], tuple[float, float, float]], ...] = (
    (511, None, (0, 0, 0), (86, 104, 92)),
    (515, None, (0, 0, 2), (80, 98, 86)),
    (24, None, (0, 0, 4), (74, 92, 78)),
    (8, 47, (-24, -56, -36), (26, 24, 20)),
    (7, 46, (-20, -54, -36), (12, 12, 10)),
    (3, 42, (-34, 4, 14), (33, 80, 60)),
    (2, 41, (-33, 4, 14), (25, 68, 48)),
    (16, None, (0, -24, -36), (13, 13, 30)),
    (28, 60, (-9, -12, -10), (8, 9, 9)),
    (4, 43, (-12, 8, 20), (9, 36, 14)),
    (5, 44, (-36, -16, -12), (7, 16, 7)),
    (10, 49, (-11, -14, 6), (10, 14, 10)),
    (11, 50, (-16, 20, 12), (7, 15, 11)),
    (12, 51, (-27, 8, 2), (8, 18, 12)),
    (13, 52, (-20, 2, 0), (6, 11, 8)),
    (17, 53, (-28, -18, -14), (9, 20, 10)),
    (18, 54, (-26, 4, -18), (9, 9, 9)),
    (26, 58, (-11, 18, -4), (6, 7, 6)),
    (14, None, (0, -8, 4), (4, 14, 12)),
    (15, None, (0, -40, -30), (8, 8, 10)),
)


def head(seed: int, spacing_mm: float = SPACING_MM, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A head of label values: [X, Y, Z] int32, RAS; its size and every structure's vary with the seed."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    size = SCALE * rng.uniform(0.92, 1.06, 3)
    values = np.zeros(shape, dtype=np.int32)
    for value, partner, centre, radii in _PARTS:
        place = (np.asarray(centre) + rng.normal(0, 1.5, 3)) * size
        widths = np.maximum(np.asarray(radii) * size * rng.uniform(0.92, 1.08, 3), 0.75 * spacing_mm)
        for side, painted in ((1, value), (-1, partner)):
            if painted is None:
                continue
            at = place * (np.array([side, 1, 1]) if partner is not None else np.array([0, 1, 1]))
            inside = sum(((g - c) / w) ** 2 for g, c, w in zip(grid, at, widths, strict=True)) <= 1
            values[inside] = painted
    return values


def toy_bank(path: Path, n_maps: int = N_MAPS, first_seed: int = 0) -> Path:
    """Write a bank of made-up heads, unless it is there."""
    if not path.is_file():
        maps = [head(first_seed + n) for n in range(n_maps)]
        names = [f"toy-{first_seed + n:02d}" for n in range(n_maps)]
        LabelBank.from_maps(maps, [(SPACING_MM,) * 3] * n_maps, names, load_protocol(PROTOCOL)).save(path)
    return path


def plain_config(bank: LabelBank, contrast: str, spacing_mm: float, shape: tuple[int, int, int]) -> GenerationConfig:
    """Scans as a good scanner makes them: one contrast, a weak bias field, no deformation, no thick slices."""
    return GenerationConfig(
        grid=GridPrior(shape=shape, spacing_mm=spacing_mm, focus="brain", jitter_mm=0.0),
        deformation=DeformationPrior(scaling=0.0, rotation_deg=0.0, shearing=0.0, svf_max_std_mm=0.0),
        anatomy=AnatomyPrior(flip_probability=0.0, strip_probability=0.0, lesion_probability=0.0),
        mixture=contrast_prior(bank.protocol, contrast),
        bias=BiasPrior(max_std=0.2),
        intensity=IntensityPrior(gamma_std=0.0),
        acquisition=AcquisitionPrior(native_probability=1.0, native_sigma_vox=0.4),
    )


def toy_scans(folder: Path, contrasts: tuple[str, ...] = ("t1", "t2")) -> Path:
    """Write scans ``toyN_CONTRAST.nii.gz`` of heads that are in no toy bank, and their truths ``toyN_aseg.nii.gz``."""
    protocol = load_protocol(PROTOCOL)
    for number in range(N_SCANS):
        truth = folder / f"toy{number}_aseg.nii.gz"
        if truth.is_file():
            continue
        bank = LabelBank.from_maps([head(900 + number)], [(SPACING_MM,) * 3], [f"held-out {number}"], protocol)
        affine = np.diag([SPACING_MM] * 3 + [1.0])
        for contrast in contrasts:
            model = GenerativeModel(plain_config(bank, contrast, SPACING_MM, SHAPE), bank)
            pair = model.sample(1, rng=torch.Generator().manual_seed(number))
            scan = Volume((pair.image[0, 0] * 1000).numpy(), affine)
            write_volume(scan, folder / f"toy{number}_{contrast}.nii.gz")
        write_volume(labels_of(pair.target[0], protocol, affine), truth)  # last: it says that the scans are there
    return folder


def toy_priors(folder: Path) -> Path:
    """Write tables of priors for the made-up contrasts."""
    for contrast in ("t1", "t2", "flair"):
        if not (folder / f"{contrast}.tsv").is_file():
            write_prior(load_protocol(PROTOCOL), contrast, folder / f"{contrast}.tsv")
    return folder


def labels_of(target: torch.Tensor, protocol: LabelProtocol, affine: np.ndarray) -> Volume:
    """A target of channels as a label map of values."""
    return Volume(protocol.target_values[target.numpy()].astype(np.int32), affine)
