"""Scores on real scans while a network trains, at its working resolution and without test-time extras.

The scans are packed once (where nibabel is), so that a bare training machine can read them. Packing prepares a scan
by the rules inference follows (``volumes.standard``): the tolerance within which it is not resampled, and the
percentiles that become 0 and 1. CT is left out: it would need the Hounsfield window too, on which inference decides
scan by scan and says so in notes.

A set can hold the same scans under several *conditions* (``volumes.degrade``: thick slices, other contrasts); their
names are then ``NAME@CONDITION``. After all that, scans are cut to the head with a margin: a validation is training
time lost, and the air around a head is up to nine tenths of a field of view. A network sees a little less surroundings
than in inference: compare validations with each other, and final weights by ``make scores``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from synthseg.errors import TrainingError
from synthseg.files import atomic_file
from synthseg.generation.bank import hash_content
from synthseg.labels.protocol import LabelProtocol
from synthseg.reading import require_file
from synthseg.scarce import MORE_MEMORY, lacks_memory

if TYPE_CHECKING:
    import numpy as np

    from synthseg.volumes.volume import Volume

IGNORED = 255  # channel written where the truth is not to be scored
CONTRASTS = ("t1", "t2", "pd", "flair")  # endings that a scan's name may have
PLAIN = "plain"  # the condition of scans as they are
CROP_MARGIN_MM = 10.0  # kept around the head
AIR = 0.1  # prepared intensities below this are air, as far as cutting is concerned
_FORMAT = "synthseg-validation-1"
# The last key came with version 0.2, those before it one by one: older files are read without.
_HEADER = {"format", "names", "spacing_mm", "targets", "conditions", "crop_margin_mm", "sha256"}


@dataclass(frozen=True)
class ValidationSet:
    """Scans and their labels on the working grid: float [X, Y, Z] in [0, 1], uint8 channel index [X, Y, Z]."""

    names: tuple[str, ...]
    images: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    spacing_mm: float
    target_values: tuple[int, ...] = ()  # label value of each channel; empty in files that do not say
    crop_margin_mm: float | None = None  # kept around the head; None when the whole field of view was kept

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the scans went through, in the order in which it first appears."""
        return tuple(dict.fromkeys(condition_of(name) for name in self.names))

    def __post_init__(self) -> None:
        if not self.names:
            raise TrainingError("validation set", found="no scans", fix="give at least one scan with its label map")
        for name, target in zip(self.names, self.targets, strict=True):
            if not bool(((target != 0) & (target != IGNORED)).any()):
                raise TrainingError(
                    name,
                    found="a label map without any label to score",
                    fix="take it out, or use label values of the bank's protocol",
                )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (images in half precision). Raises OutputError if it cannot be written."""
        tensors = {}
        for n, (image, target) in enumerate(zip(self.images, self.targets, strict=True)):
            tensors[f"image.{n}"] = image.half().contiguous()
            tensors[f"target.{n}"] = target.contiguous()
        header = {
            "format": _FORMAT,
            "names": self.names,
            "spacing_mm": self.spacing_mm,
            "targets": self.target_values,
            "conditions": self.conditions,
            "crop_margin_mm": self.crop_margin_mm,
        }
        header["sha256"] = hash_content(header, tensors)
        with atomic_file(path) as file:
            file.write(save(tensors, metadata={"validation": json.dumps(header)}))
        return Path(path)


def load_validation(path: Path, protocol: LabelProtocol, spacing_mm: float) -> ValidationSet:
    """Read a packed set, or pack a folder of pairs ``NAME_t1.nii.gz`` / ``NAME_aseg.nii.gz`` (:data:`CONTRASTS`).

    Raises: TrainingError for a missing place, a folder without pairs, or a set packed at another spacing or for
        other target labels.
    """
    if path.is_dir():
        return pack_validation(path, protocol, spacing_mm)
    remake = "give a folder of pairs, or a file made with: synthseg bank FOLDER --validation -o FILE"
    require_file(path, error=TrainingError, fix=remake, as_text=True)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("validation", "{}"))
            if not isinstance(header, dict):
                raise ValueError("its header is no table")
            if header.get("format") != _FORMAT:
                raise TrainingError(path, found=f"format {header.get('format')!r}, no validation set", fix=remake)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if not header.keys() <= _HEADER or header.get("sha256", "") not in ("", hash_content(header, tensors)):
            raise ValueError("its content is not what it has the hash of")
        packed = _of_file(header, tensors)
    except TrainingError:
        raise
    except Exception as error:  # a damaged header makes parsers and torch raise anything
        if lacks_memory(error):
            raise TrainingError(path, found=f"no memory to read it ({error})", fix=MORE_MEMORY) from error
        raise TrainingError(path, found=f"no readable validation set ({error})", fix=remake) from error
    known, wanted = packed.target_values, tuple(protocol.target_values.tolist())
    if known and known != wanted:
        raise TrainingError(path, found=f"targets {list(known)}, not {list(wanted)}", fix="pack it with this protocol")
    if abs(packed.spacing_mm - spacing_mm) > 1e-3:
        raise TrainingError(path, found=f"scans at {packed.spacing_mm} mm", fix=f"pack them again at {spacing_mm} mm")
    return replace(packed, spacing_mm=spacing_mm)


def _of_file(header: dict[str, Any], tensors: dict[str, Tensor]) -> ValidationSet:
    """Check and put together: what is wrong here would end a training at its first validation. Raises ValueError."""
    names = tuple(map(str, header["names"]))
    known = tuple(int(value) for value in header.get("targets", ()))
    spacing, margin = float(header["spacing_mm"]), header.get("crop_margin_mm")
    if not 0 < spacing < 100 or not (margin is None or 0 <= float(margin) < 1000):
        raise ValueError(f"voxels of {spacing} mm, cropped to {margin} mm")
    images = tuple(tensors[f"image.{n}"].float() for n in range(len(names)))
    targets = tuple(tensors[f"target.{n}"] for n in range(len(names)))
    for name, image, target in zip(names, images, targets, strict=True):
        if image.ndim != 3 or image.shape != target.shape or not image.numel() or target.dtype != torch.uint8:
            raise ValueError(f"{name}: an image of shape {tuple(image.shape)}, labels {tuple(target.shape)}")
        if not bool(image.isfinite().all()):
            raise ValueError(f"{name}: voxels that are NaN or infinite")
    try:
        return ValidationSet(names, images, targets, spacing, known, margin)
    except TrainingError as error:
        raise ValueError(f"{error.subject}: {error.found}") from error


def pack_validation(
    folder: Path, protocol: LabelProtocol, spacing_mm: float, conditions: Sequence[str] = (PLAIN,)
) -> ValidationSet:
    """Bring a folder of pairs onto the working grid, prepared as inference does. Needs nibabel and scipy.

    Args:
        conditions: names of ``synthseg.volumes.degrade.degrade``; every scan is packed once under each. Scans are
            degraded at their full resolution, before anything else. Those that move the head are refused.
    Raises: TrainingError for a folder without pairs, or a pair on different grids; VolumeError for a scan that cannot
        be read, degraded or has no contrast; UsageError for an unknown condition.
    """
    names, images, targets = [], [], []
    for scan, truth in find_pairs(folder):
        for condition in conditions:
            image, target = _prepared_pair(scan, truth, condition, protocol, spacing_mm)
            images.append(image)
            targets.append(target)
            names.append(scan.name if condition == PLAIN else f"{scan.name}@{condition}")
    if not names:
        fix = f"name them NAME_t1.nii.gz, NAME_aseg.nii.gz; instead of t1 also {', '.join(CONTRASTS[1:])}, but not ct"
        raise TrainingError(folder, found="no pairs of scan and label map", fix=fix)
    values = tuple(protocol.target_values.tolist())
    return ValidationSet(tuple(names), tuple(images), tuple(targets), spacing_mm, values, CROP_MARGIN_MM)


def _prepared_pair(
    scan: Path, truth: Path, condition: str, protocol: LabelProtocol, spacing_mm: float
) -> tuple[Tensor, Tensor]:
    """One scan under one condition: image and target channels on the working grid, cut to the head."""
    import numpy as np

    from synthseg.volumes.degrade import degrade
    from synthseg.volumes.read import read_volume
    from synthseg.volumes.resample import reslice
    from synthseg.volumes.standard import rescale
    from synthseg.volumes.window import bounding_box

    whole, labels = read_volume(scan), read_volume(truth, labels=True)
    changed, kept = degrade(whole, labels, condition, name=scan.name)
    if kept is not labels:
        fix = "validate under conditions that leave it in place: thick slices, other contrasts, stripped"
        raise TrainingError(scan, found=f"the condition {condition}, which moves the head", fix=fix)
    image = _on_grid(changed, spacing_mm, order=1)
    label_map = _on_grid(labels, spacing_mm, order=0)
    data = rescale(image.data, subject=str(scan))
    if condition != PLAIN:  # thick slices end elsewhere than the scan did
        data = reslice(data, image.affine, label_map.shape, label_map.affine, order=1)
    elif image.shape != label_map.shape or np.abs(image.affine - label_map.affine).max() > spacing_mm / 2:
        apart = np.abs(image.affine - label_map.affine).max()
        raise TrainingError(
            truth,
            found=f"shape {label_map.shape}, {apart:.3g} mm away from {scan.name} of {image.shape}",
            fix="bring scan and label map onto one grid",
        )
    target = channels_of(label_map.data, protocol)
    box = bounding_box((data > AIR) | (target != 0), margin=round(CROP_MARGIN_MM / spacing_mm))
    return torch.from_numpy(box.crop(data)), torch.from_numpy(box.crop(target))


def _on_grid(volume: Volume, spacing_mm: float, *, order: int) -> Volume:
    """A scan or label map in RAS order, at the working spacing or close enough to it."""
    from synthseg.volumes.orient import to_ras
    from synthseg.volumes.resample import resample_to_spacing
    from synthseg.volumes.standard import close_to_spacing

    if not close_to_spacing(volume.spacing_mm, spacing_mm):
        volume = resample_to_spacing(volume, spacing_mm, order=order)
    return to_ras(volume)[0]


def find_pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Scans with a label map ``NAME_aseg`` or ``NAME_seg`` of the same beginning, sorted by name; CT passed over."""
    for truth in sorted([*folder.glob("*_aseg.nii*"), *folder.glob("*_seg.nii*")]):
        stem = truth.name.rsplit("_", 1)[0]
        for contrast in sorted(CONTRASTS):
            for scan in (folder / f"{stem}_{contrast}{end}" for end in (".nii", ".nii.gz")):
                if scan.is_file():
                    yield scan, truth


def channels_of(label_map: np.ndarray, protocol: LabelProtocol) -> np.ndarray:
    """Label values to target channels; values the targets do not know become :data:`IGNORED`."""
    import numpy as np

    order = np.argsort(protocol.values)
    values, channels = protocol.values[order], protocol.target_channel[order]
    position = np.searchsorted(values, label_map).clip(max=len(values) - 1)
    return np.where(values[position] == label_map, channels[position], IGNORED).astype(np.uint8)


def condition_of(name: str) -> str:
    """The condition in a scan's name: ``a_t1.nii.gz@axial-5mm`` is ``axial-5mm``, without one :data:`PLAIN`."""
    return name.partition("@")[2] or PLAIN


@torch.no_grad()
def validate(network: nn.Module, scans: ValidationSet, device: torch.device, multiple: int) -> dict[str, float]:
    """Mean Dice over the labels each truth holds.

    Returns: ``dice`` over all scans; with several conditions ``dice@CONDITION`` for each; ``dice.NAME`` for each scan.
    """
    was_training = network.training
    network.eval()
    scores: dict[str, float] = {}
    for name, image, target in zip(scans.names, scans.images, scans.targets, strict=True):
        pad = [p for n in reversed(image.shape) for p in (0, -n % multiple)]
        padded = functional.pad(image, pad)[None, None].to(device, memory_format=torch.channels_last_3d)
        predicted = network(padded).argmax(1)[0, : image.shape[0], : image.shape[1], : image.shape[2]].cpu()
        scores[name] = _mean_dice(predicted, target.long())
    network.train(was_training)
    means = {"dice": sum(scores.values()) / len(scores)}
    if len(scans.conditions) > 1:
        for condition in scans.conditions:
            of_condition = [score for name, score in scores.items() if condition_of(name) == condition]
            means[f"dice@{condition}"] = sum(of_condition) / len(of_condition)
    return {**means, **{f"dice.{name}": score for name, score in scores.items()}}


def _mean_dice(predicted: Tensor, target: Tensor) -> float:
    scored = target != IGNORED
    a, b = predicted[scored], target[scored]
    n = int(max(a.max(), b.max())) + 1
    both = torch.bincount(a[a == b], minlength=n).double()
    in_a, in_b = torch.bincount(a, minlength=n).double(), torch.bincount(b, minlength=n).double()
    present = in_b > 0
    present[0] = False
    return float((2 * both / (in_a + in_b))[present].mean())
