"""Test images of fetal brains of which only the label map is at hand: a womb around it, as MRI would show it.

Not the generative model that trains the network: the surroundings are anatomy (skull, scalp, amniotic fluid, the
mother's tissues), not sub-labels, and intensities are those of a contrast, not random. They are phantoms all the same:
what they score compares arms of one study with each other, and says nothing about patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from synthseg.errors import LabelError
from synthseg.volumes import Volume
from synthseg.volumes.artefacts import rician_noise, uneven_gain

SKULL, SCALP, FLUID, MUSCLE, FAT, PLACENTA = range(8, 14)  # beyond FeTA's values 0 to 7
EDGE_SIGMA_MM = 0.6  # of the image's point spread
WAVE_SIGMA_MM = 12.0  # over which the borders of what surrounds the head stray


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How one kind of image shows the tissues.

    Attributes:
        brain: means of FeTA's values 0 to 7 (background, CSF, grey, white, ventricles, cerebellum, deep grey, stem).
        around: means of skull, scalp, amniotic fluid, muscle, fat, placenta; None: the brain alone, a halo around it.
        texture: standard deviation of the tissues' smooth unevenness, in the same units.
        snr: signal-to-noise ratio (Rician).
        gain_std: of the log of the coil's uneven gain.
    """

    brain: tuple[float, ...]
    around: tuple[float, ...] | None
    texture: float = 6.0
    snr: float = 18.0
    gain_std: float = 0.2


_T2 = (0.0, 230.0, 135.0, 175.0, 240.0, 145.0, 140.0, 125.0)
CONTRASTS = {
    # Single-shot T2: fluid bright, unmyelinated white matter brighter than grey.
    "t2": Contrast(brain=_T2, around=(35.0, 120.0, 235.0, 70.0, 190.0, 130.0)),
    # The same as atlases and reconstructions often are: cut out, not quite along the brain's border.
    "t2-stripped": Contrast(brain=_T2, around=None, texture=4.0, snr=25.0, gain_std=0.1),
    # T1 gradient echo: fluid dark, cortex and deep grey matter above white matter.
    "t1": Contrast(
        brain=(0.0, 45.0, 150.0, 115.0, 35.0, 140.0, 160.0, 165.0), around=(30.0, 130.0, 40.0, 120.0, 230.0, 110.0)
    ),
    # Echo-planar T2*: fluid bright, little contrast within the tissue, a poor signal.
    "epi": Contrast(
        brain=(0.0, 210.0, 120.0, 140.0, 220.0, 115.0, 110.0, 105.0),
        around=(20.0, 60.0, 225.0, 65.0, 40.0, 150.0),
        snr=12.0,
        gain_std=0.3,
    ),
}


def womb_around(labels: Volume, *, rng: torch.Generator) -> np.ndarray:
    """A tissue for every voxel: the brain's own, a skull and scalp, fluid in a womb, and the mother around it.

    Args:
        labels: values of FeTA, with room around the brain.
    Returns: [X, Y, Z] uint8: FeTA's values within the brain, this module's constants around it.
    Raises: LabelError for a map without a brain, or with other values.
    """
    brain = _brain_of(labels)
    skull, scalp = 1.0 + 1.5 * _uniform(rng), 1.0 + 2.0 * _uniform(rng)  # mm thick
    far = distance_transform_edt(~brain, sampling=labels.spacing_mm)
    waves = [_wave(labels, rng=rng) for _ in range(3)]
    womb = 6.0 + 14.0 * _uniform(rng) + 6.0 * waves[0]  # mm of fluid beyond the scalp
    tissue = np.where(waves[1] > 0.3, np.uint8(FAT), np.uint8(MUSCLE))
    tissue[waves[2] > 0.8] = PLACENTA
    tissue[far < skull + scalp + np.maximum(womb, 0.0)] = FLUID
    tissue[far < skull + scalp] = SCALP
    tissue[far < skull] = SKULL
    tissue[brain] = labels.data[brain]
    return tissue


def draw_scan(labels: Volume, contrast: str, *, rng: torch.Generator) -> Volume:
    """The image that ``contrast`` (a key of :data:`CONTRASTS`) would show of a brain, on the label map's grid.

    Returns: float32, not negative.
    Raises: LabelError for a map without a brain, or with other values than FeTA's.
    """
    look = CONTRASTS[contrast]
    if look.around is None:
        tissue = _brain_of(labels) * labels.data
        means = np.asarray(look.brain, dtype=np.float32)
    else:
        tissue = womb_around(labels, rng=rng)
        means = np.asarray((*look.brain, *look.around), dtype=np.float32)
    rough = gaussian_filter(torch.randn(labels.shape, generator=rng).numpy(), 1.5)
    clean = means[tissue]
    clean = np.where(clean > 0, clean + look.texture * rough / rough.std(), 0)
    clean = np.maximum(gaussian_filter(clean, EDGE_SIGMA_MM / labels.spacing_mm), 0).astype(np.float32)
    shown = uneven_gain(replace(labels, data=clean, path=None), rng=rng, std=look.gain_std)
    noisy = rician_noise(shown, look.snr, rng=rng)
    if look.around is not None:
        return noisy
    halo = distance_transform_edt(~(labels.data > 0), sampling=labels.spacing_mm) < 1.0 + 1.5 * _uniform(rng)
    return replace(noisy, data=np.where(halo, noisy.data, 0).astype(np.float32))


def _brain_of(labels: Volume) -> np.ndarray:
    brain = np.asarray(labels.data > 0)
    if not brain.any() or int(labels.data.max()) > 7 or int(labels.data.min()) < 0:
        found = f"values from {int(labels.data.min())} to {int(labels.data.max())}"
        raise LabelError(labels.subject, found=found, fix="give a map with FeTA's values, 1 to 7 in the brain")
    return brain


def _wave(labels: Volume, *, rng: torch.Generator) -> np.ndarray:
    """A smooth random field of mean 0 and variance 1."""
    field = gaussian_filter(torch.randn(labels.shape, generator=rng).numpy(), WAVE_SIGMA_MM / labels.spacing_mm)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-12))


def _uniform(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
