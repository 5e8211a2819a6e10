"""Scores on real scans while a network trains, at its working resolution and without test-time extras.

The scans are packed once (with the volumes room, where nibabel is), so that a bare training machine can read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from synthseg.errors import TrainingError
from synthseg.generation.intensity import stretch_percentiles
from synthseg.labels.protocol import LabelProtocol

if TYPE_CHECKING:
    import numpy as np

IGNORED = 255  # channel written where the truth is not to be scored
PERCENTILES = (1.0, 99.0)  # as inference rescales its scans


@dataclass(frozen=True)
class ValidationSet:
    """Scans and their labels on the working grid: float [X, Y, Z] in [0, 1], uint8 channel index [X, Y, Z]."""

    names: tuple[str, ...]
    images: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    spacing_mm: float

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (images in half precision)."""
        tensors = {}
        for n, (image, target) in enumerate(zip(self.images, self.targets, strict=True)):
            tensors[f"image.{n}"] = image.half().contiguous()
            tensors[f"target.{n}"] = target.contiguous()
        header = {"format": "synthseg-validation-1", "names": self.names, "spacing_mm": self.spacing_mm}
        save_file(tensors, path, metadata={"validation": json.dumps(header)})
        return Path(path)


def load_validation(path: Path, protocol: LabelProtocol, spacing_mm: float) -> ValidationSet:
    """Read a packed set, or pack a folder of pairs ``NAME_t1.nii.gz`` / ``NAME_aseg.nii.gz`` (any scan suffix).

    Raises: TrainingError for a missing place, a folder without pairs, or a set packed at another spacing.
    """
    if path.is_dir():
        return pack_validation(path, protocol, spacing_mm)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("validation", "{}"))
            names = tuple(header.get("names", ()))
            images = tuple(file.get_tensor(f"image.{n}").float() for n in range(len(names)))
            targets = tuple(file.get_tensor(f"target.{n}") for n in range(len(names)))
    except (SafetensorError, OSError) as error:
        raise TrainingError(path, found=f"no validation set ({error})", fix="give a folder or a packed file") from error
    if abs(header["spacing_mm"] - spacing_mm) > 1e-3:
        raise TrainingError(
            path, found=f"scans at {header['spacing_mm']} mm", fix=f"pack them again at {spacing_mm} mm"
        )
    return ValidationSet(names, images, targets, spacing_mm)


def pack_validation(folder: Path, protocol: LabelProtocol, spacing_mm: float) -> ValidationSet:
    """Bring a folder of pairs onto the working grid. Needs the volumes room (nibabel)."""
    from synthseg.volumes.orient import to_ras
    from synthseg.volumes.read import read_volume
    from synthseg.volumes.resample import resample_to_spacing

    names, images, targets = [], [], []
    for scan, truth in find_pairs(folder):
        image, _ = to_ras(resample_to_spacing(read_volume(scan), spacing_mm, order=1))
        label_map, _ = to_ras(resample_to_spacing(read_volume(truth, labels=True), spacing_mm, order=0))
        if image.shape != label_map.shape:
            raise TrainingError(
                truth, found=f"shape {label_map.shape} beside a scan of {image.shape}", fix="align them"
            )
        tensor = torch.from_numpy(image.data.copy()).float()[None, None]
        images.append(stretch_percentiles(tensor, PERCENTILES)[0, 0])
        targets.append(torch.from_numpy(channels_of(label_map.data, protocol)))
        names.append(scan.name)
    if not names:
        raise TrainingError(
            folder, found="no pairs of scan and label map", fix="name them NAME_t1.nii.gz, NAME_aseg.nii.gz"
        )
    return ValidationSet(tuple(names), tuple(images), tuple(targets), spacing_mm)


def find_pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Scans with a label map ``NAME_aseg`` or ``NAME_seg`` of the same beginning, sorted by name."""
    for truth in sorted([*folder.glob("*_aseg.nii*"), *folder.glob("*_seg.nii*")]):
        stem = truth.name.rsplit("_", 1)[0]
        for scan in sorted(folder.glob(f"{stem}_*.nii*")):
            if scan.name.split(".")[0].rsplit("_", 1)[-1] in ("t1", "t2", "pd", "flair", "ct"):
                yield scan, truth


def channels_of(label_map: np.ndarray, protocol: LabelProtocol) -> np.ndarray:
    """Label values to target channels; values the targets do not know become :data:`IGNORED`."""
    import numpy as np

    table = np.full(max(int(label_map.max()), int(protocol.values.max())) + 1, IGNORED, dtype=np.uint8)
    table[protocol.values] = protocol.target_channel
    return table[np.clip(label_map, 0, None)]


@torch.no_grad()
def validate(network: nn.Module, scans: ValidationSet, device: torch.device, multiple: int) -> dict[str, float]:
    """Mean Dice over the labels each truth holds, per scan (``dice.NAME``) and over scans (``dice``)."""
    was_training = network.training
    network.eval()
    scores: dict[str, float] = {}
    for name, image, target in zip(scans.names, scans.images, scans.targets, strict=True):
        pad = [p for n in reversed(image.shape) for p in (0, -n % multiple)]
        padded = functional.pad(image, pad)[None, None].to(device, memory_format=torch.channels_last_3d)
        predicted = network(padded).argmax(1)[0, : image.shape[0], : image.shape[1], : image.shape[2]].cpu()
        scores[f"dice.{name}"] = _mean_dice(predicted, target.long())
    network.train(was_training)
    return {"dice": sum(scores.values()) / len(scores), **scores}


def _mean_dice(predicted: Tensor, target: Tensor) -> float:
    scored = target != IGNORED
    a, b = predicted[scored], target[scored]
    n = int(max(a.max(), b.max())) + 1
    both = torch.bincount(a[a == b], minlength=n).double()
    in_a, in_b = torch.bincount(a, minlength=n).double(), torch.bincount(b, minlength=n).double()
    present = in_b > 0
    present[0] = False
    return float((2 * both / (in_a + in_b))[present].mean())
