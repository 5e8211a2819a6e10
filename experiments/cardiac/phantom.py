"""Test images for hearts of which only the label map is at hand: a chest around it, as MR or CT would show it.

Not the generative model that trains the network: the surroundings are anatomy (lungs, spine, liver, fat, chest wall),
not sub-labels, and intensities are those of a modality, not random. It is a phantom all the same: what it scores says
that a pipeline works, not how it would fare on patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, zoom

from synthseg.errors import LabelError
from synthseg.labels import LabelProtocol
from synthseg.volumes import Volume
from synthseg.volumes.artefacts import rician_noise, uneven_gain

AIR, FAT, LUNG, MUSCLE, LIVER, BONE, MYOCARDIUM, BLOOD, VENOUS = range(9)
EDGE_SIGMA_MM = 0.6  # of the image's point spread
WAVE_NODE_MM, WAVE_STD_MM = 24.0, 3.5  # how organs' outlines stray from the shapes they are drawn with


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How one modality shows the tissues.

    Attributes:
        means: of the tissues in the order of this module's constants; Hounsfield units where ``hounsfield``.
        texture: standard deviation of each tissue's smooth unevenness, in the same units.
        noise: standard deviation (CT); signal-to-noise ratio (MR, whose noise is Rician).
        gain_std: of the log of the coil's uneven gain; 0 for CT.
    """

    means: tuple[float, ...]
    texture: tuple[float, ...]
    noise: float
    gain_std: float = 0.0
    hounsfield: bool = False


CONTRASTS = {
    # Balanced steady-state free precession, as the maps' own (unavailable) scans: blood and fat bright.
    "mr": Contrast(
        means=(2, 190, 22, 75, 105, 60, 100, 215, 205),
        texture=(0, 18, 6, 9, 9, 12, 9, 14, 14),
        noise=22,
        gain_std=0.15,
    ),
    # T1 spin echo: flowing blood leaves no signal, fat bright: the opposite order of blood and myocardium.
    "mr-black-blood": Contrast(
        means=(2, 220, 12, 120, 135, 90, 130, 22, 28),
        texture=(0, 15, 5, 10, 10, 14, 10, 9, 9),
        noise=18,
        gain_std=0.2,
    ),
    # Angiography with contrast agent, thicker in the left heart than in the right.
    "ct": Contrast(
        means=(-1000, -95, -830, 55, 95, 320, 105, 360, 270),
        texture=(0, 12, 45, 10, 8, 110, 10, 14, 18),
        noise=22,
        hounsfield=True,
    ),
}


def heart_tissues(protocol: LabelProtocol) -> dict[int, int]:
    """Value of each structure -> tissue: myocardium, blood, and blood that comes from the veins.

    Raises: LabelError for a structure that is neither by its name.
    """
    found = {}
    for label in protocol.labels:
        if not label.value or label.target != label.value:
            continue
        name = label.name.lower()
        if "myocardium" in name:
            found[label.value] = MYOCARDIUM
        elif "right" in name or "pulmonary" in name:
            found[label.value] = VENOUS
        elif any(word in name for word in ("left", "aorta", "blood")):
            found[label.value] = BLOOD
        else:
            what = f"{label.value} ({label.name}), neither myocardium nor a place for blood"
            raise LabelError(f"protocol {protocol.name}", found=what, fix="use whole-heart or hvsmr")
    return found


def chest_around(labels: Volume, protocol: LabelProtocol, *, rng: torch.Generator) -> np.ndarray:
    """A tissue for every voxel: the heart's own, and a chest around it.

    Args:
        labels: RAS order; a heart of an adult or child.
    Returns: [X, Y, Z] int8, the constants of this module.
    Raises: LabelError for a map without a heart.
    """
    heart = labels.data != 0
    if not heart.any():
        raise LabelError(labels.subject, found="no heart", fix="give a map with foreground labels")
    spacing = labels.spacing_mm
    x, y, z = _wavy_axes(labels, rng=rng)
    low, high = _ends_mm(heart, spacing)
    mid_x, mid_z = (low[0] + high[0]) / 2 + 12, (low[2] + high[2]) / 2  # the heart lies left of the midline
    spine_y, front_y = low[1] - 24, high[1] + 22
    mid_y, half_y = (spine_y - 40 + front_y) / 2, (front_y - spine_y + 40) / 2
    tissue = np.full(heart.shape, AIR, dtype=np.int8)
    out = np.sqrt(((x - mid_x) / 165) ** 2 + ((y - mid_y) / half_y) ** 2)  # 1 on the skin
    tissue[out < 1] = FAT
    tissue[out < 0.93] = MUSCLE
    lungs = ((x - mid_x) / 132) ** 2 + ((y - mid_y) / (half_y - 26)) ** 2 < 1
    lungs &= (np.abs(x - mid_x) > 24) | (y > spine_y + 30)
    tissue[lungs] = LUNG
    mediastinum = (np.abs(x - mid_x) < 22) & (np.abs(y - (low[1] + high[1]) / 2) < 26) & (z > mid_z)
    tissue[lungs & mediastinum] = FAT
    tissue[(z > high[2] + 70) & (out < 0.93)] = MUSCLE  # shoulders
    dome = low[2] + 8 + 22 * np.exp(-(((x - mid_x - 55) / 60) ** 2)) - 14 * np.exp(-(((x - mid_x + 20) / 40) ** 2))
    below = (out < 0.88) & (z < dome)
    tissue[below] = np.where(x > mid_x - 25, LIVER, MUSCLE)[below]
    tissue[(x - mid_x) ** 2 + (y - spine_y) ** 2 < 17**2] = BONE
    tissue[(np.abs(x - mid_x) < 16) & (np.abs(y - front_y + 8) < 5)] = BONE  # the sternum
    near = distance_transform_edt(~heart, sampling=spacing)
    tissue[near < 2 + np.clip(x - mid_x, -2, 4)] = FAT  # around the heart, thicker on its right
    for value, kind in heart_tissues(protocol).items():
        tissue[labels.data == value] = kind
    return tissue


def draw_scan(labels: Volume, protocol: LabelProtocol, contrast: str, *, rng: torch.Generator) -> Volume:
    """The scan that ``contrast`` (a key of :data:`CONTRASTS`) would show of a heart, on the label map's grid.

    Returns: float32; Hounsfield units for CT.
    """
    look = CONTRASTS[contrast]
    tissue = chest_around(labels, protocol, rng=rng)
    rough = gaussian_filter(torch.randn(tissue.shape, generator=rng).numpy(), 1.5)
    rough /= rough.std()
    clean = (
        np.asarray(look.means, dtype=np.float32)[tissue] + np.asarray(look.texture, dtype=np.float32)[tissue] * rough
    )
    clean = gaussian_filter(clean, EDGE_SIGMA_MM / labels.spacing_mm)
    scan = replace(labels, data=clean.astype(np.float32), path=None)
    if look.hounsfield:
        noise = look.noise * torch.randn(tissue.shape, generator=rng).numpy()
        return replace(scan, data=np.maximum(scan.data + noise, -1024).astype(np.float32))
    scan = replace(scan, data=np.maximum(scan.data, 0))
    return rician_noise(uneven_gain(scan, rng=rng, std=look.gain_std), look.noise, rng=rng)


def _wavy_axes(labels: Volume, *, rng: torch.Generator) -> list[np.ndarray]:
    """Positions in mm from the grid's corner, [X, Y, Z] along each axis, bent smoothly at random."""
    spacing, shape = labels.spacing_mm, labels.data.shape
    nodes = [max(4, int(np.ceil(n * s / WAVE_NODE_MM)) + 1) for n, s in zip(shape, spacing, strict=True)]
    axes = []
    for axis in range(3):
        straight = np.arange(shape[axis]) * spacing[axis]
        wave = WAVE_STD_MM * torch.randn(nodes, generator=rng).numpy()
        bent = zoom(wave, [n / k for n, k in zip(shape, nodes, strict=True)], order=1)
        axes.append(bent + straight.reshape([-1 if other == axis else 1 for other in range(3)]))
    return axes


def _ends_mm(heart: np.ndarray, spacing: np.ndarray) -> tuple[list[float], list[float]]:
    where = [np.flatnonzero(heart.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    low = [float(w[0] * s) for w, s in zip(where, spacing, strict=True)]
    return low, [float(w[-1] * s) for w, s in zip(where, spacing, strict=True)]
