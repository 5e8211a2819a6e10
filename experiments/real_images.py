"""Real images in the place of synthetic ones: the supervised baseline's data, moved and corrupted by the same stages.

Source: the T1 baseline of Billot et al. 2023, section 4.3 (same spatial deformation, intensity augmentation and bias
field); "image as intensity" of reference, fetal-and-plus F.2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthseg.errors import TrainingError, VolumeError
from synthseg.files import atomic_file
from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol

_FORMAT = "synthseg-images-1"
BRIGHTEST = 255.0


@dataclass(frozen=True)
class ImageBank:
    """The images of a label bank's maps, voxel by voxel: [X, Y, Z] float32 in 0 to 255 each."""

    images: tuple[Tensor, ...]
    sha256_of_bank: str

    def save(self, path: Path) -> Path:
        """Write one safetensors file, in half precision."""
        tensors = {f"image.{n:05d}": image.half().contiguous() for n, image in enumerate(self.images)}
        header = {"format": _FORMAT, "bank": self.sha256_of_bank}
        with atomic_file(path) as file:
            file.write(save(tensors, metadata={"images": json.dumps(header)}))
        return path

    @classmethod
    def load(cls, path: Path, bank: LabelBank) -> ImageBank:
        """Read the images of a bank. Raises: TrainingError for a missing or damaged file, or another bank's."""
        fix = "give a folder of images with label maps as --images"
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("images", "{}"))
                images = tuple(file.get_tensor(name).float().to(bank.device) for name in sorted(file.keys()))
        except (SafetensorError, OSError, ValueError) as error:
            raise TrainingError(path, found=f"no readable images ({error})", fix=fix) from error
        shapes = [tuple(image.shape) for image in images]
        if header.get("bank") != bank.sha256 or shapes != [tuple(shape) for shape in bank.shapes.tolist()]:
            raise TrainingError(path, found="images of another label bank", fix="pack images and label maps again")
        return cls(images, bank.sha256)


def images_beside(bank: Path) -> Path:
    """Where the images of a bank's file are."""
    return bank.with_name(f"{bank.stem}-images.safetensors")


def pack_pairs(pairs: Sequence[tuple[Path, Path]], protocol: LabelProtocol, bank: Path) -> Path:
    """Pack images and their label maps (one grid each) into a bank and, beside it, the images.

    Raises: VolumeError for an image that is not on its label map's grid; LabelError for unknown values.
    """
    from synthseg.volumes import bounding_box, read_volume, to_ras
    from synthseg.volumes.standard import rescale

    maps, spacings, names, images = [], [], [], []
    for image_path, label_path in pairs:
        scan, _ = to_ras(read_volume(image_path))
        labels, _ = to_ras(read_volume(label_path, labels=True))
        if scan.shape != labels.shape or not np.allclose(scan.affine, labels.affine, atol=1e-2):
            fix = f"resample {label_path.name} to the image's grid first"
            raise VolumeError(image_path, found="another grid than its label map's", fix=fix)
        box = bounding_box(labels.data != 0, margin=8)  # wider than a map's own: the image goes on beyond the labels
        maps.append(box.crop(labels.data))
        spacings.append(labels.spacing_mm.tolist())
        names.append(image_path.name)
        scaled = rescale(scan.data, subject=str(image_path)) * BRIGHTEST
        images.append(torch.from_numpy(np.ascontiguousarray(box.crop(scaled), dtype=np.float32)))
    made = LabelBank.from_maps(maps, spacings, names, protocol)
    ImageBank(tuple(images), made.sha256).save(images_beside(bank))
    return made.save(bank)


def find_pairs(folder: Path, contrast: str = "t1") -> list[tuple[Path, Path]]:
    """Images ``NAME_t1.nii.gz`` with their label maps ``NAME_aseg.nii.gz``. Raises: TrainingError for none."""
    images = sorted(folder.glob(f"*_{contrast}.nii.gz"))
    pairs = [(p, p.with_name(p.name.replace(f"_{contrast}.nii.gz", "_aseg.nii.gz"))) for p in images]
    pairs = [(image, labels) for image, labels in pairs if labels.is_file()]
    if not pairs:
        found = f"no NAME_{contrast}.nii.gz with a NAME_aseg.nii.gz beside it"
        raise TrainingError(folder, found=found, fix="name images and label maps so")
    return pairs
