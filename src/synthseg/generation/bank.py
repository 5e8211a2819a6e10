"""A label bank: every training map packed into one file, and into one tensor on the device that trains.

The file holds each map as zlib-compressed label indices inside safetensors (about 0.7 MB for a whole head), so that it
travels to a bare GPU machine; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from synthseg.errors import LabelError, ShapeError, TrainingError
from synthseg.files import atomic_file
from synthseg.labels.protocol import LabelProtocol
from synthseg.reading import require_file
from synthseg.scarce import MORE_MEMORY, lacks_memory

_FORMAT = "synthseg-bank-1"
_HEADER = {"format", "names", "protocol", "description", "rows", "sha256"}  # without the last: before 0.2
_MOST_VOXELS = 2**30  # of one map: a small file could otherwise ask for any amount of memory


@dataclass(frozen=True)
class LabelBank:
    """Label maps of any sizes, back to back in one tensor.

    Attributes:
        protocol: what the indices mean.
        names: one per map.
        voxels: [total] uint8 label *indices*, RAS; map n is ``offsets[n] : offsets[n] + prod(shapes[n])`` in C order.
        shapes, offsets: [N, 3] and [N] int64.
        spacing_mm: [N, 3] float32.
        center_vox: [N, 3] float32, the brain's (target labels') bounding-box centre, in voxels.
    """

    protocol: LabelProtocol
    names: tuple[str, ...]
    voxels: Tensor
    shapes: Tensor
    offsets: Tensor
    spacing_mm: Tensor
    center_vox: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        return self.voxels.device

    def to(self, device: torch.device | str) -> LabelBank:
        """The same bank on another device."""
        tensors = ("voxels", "shapes", "offsets", "spacing_mm", "center_vox")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def label_map(self, index: int) -> Tensor:
        """One whole map: [X, Y, Z] uint8 label indices."""
        shape = self.shapes[index].tolist()
        start = int(self.offsets[index])
        return self.voxels[start : start + int(np.prod(shape))].view(*shape)

    @classmethod
    def from_maps(
        cls,
        maps: Sequence[np.ndarray],
        spacings_mm: Sequence[Sequence[float]],
        names: Sequence[str],
        protocol: LabelProtocol,
    ) -> LabelBank:
        """Pack label maps.

        Args:
            maps: [X, Y, Z] integer label *values* each, RAS order.
            spacings_mm: three voxel sizes a map.
            names: one a map, used in errors and logs.
            protocol: must know every value; at most 256 labels.
        Raises: LabelError naming the map and the values its protocol does not know; ShapeError naming a map that is not
            three-dimensional or has no positive spacing; TrainingError for no maps.
        """
        if not maps:
            raise TrainingError("label bank", found="no label maps", fix="give at least one")
        for values, spacing, name in zip(maps, spacings_mm, names, strict=True):
            if values.ndim != 3 or values.size == 0:
                raise ShapeError(name, found=f"a map of shape {values.shape}", fix="give [X, Y, Z] label values")
            if len(spacing) != 3 or not all(0 < s < math.inf for s in spacing):
                raise ShapeError(name, found=f"voxel sizes {list(spacing)}", fix="give three positive sizes in mm")
        if len(protocol.labels) > 256:
            raise LabelError(protocol.name, found=f"{len(protocol.labels)} labels", fix="a bank holds at most 256")
        indices = [
            np.ascontiguousarray(protocol.index_of(values, subject=name), dtype=np.uint8)
            for values, name in zip(maps, names, strict=True)
        ]
        sizes = [index.size for index in indices]
        return cls(
            protocol=protocol,
            names=tuple(names),
            voxels=torch.from_numpy(np.concatenate([index.ravel() for index in indices])),
            shapes=torch.tensor([index.shape for index in indices]),
            offsets=torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]),
            spacing_mm=torch.tensor([[float(s) for s in spacing] for spacing in spacings_mm], dtype=torch.float32),
            center_vox=torch.tensor([_brain_center(index, protocol) for index in indices], dtype=torch.float32),
        )

    @cached_property
    def sha256(self) -> str:
        """Digest of the maps, their grids and what their values mean: the same on every device."""
        digest = hashlib.sha256(json.dumps(self.protocol.to_rows(), sort_keys=True).encode())
        for tensor in (self.shapes, self.spacing_mm, self.center_vox, self.voxels):
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the bank atomically; returns the path."""
        path = Path(path)
        tensors = {}
        for n in range(len(self)):
            packed = zlib.compress(self.label_map(n).cpu().numpy().tobytes(), level=9)
            tensors[f"map.{n:05d}"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        for name in ("shapes", "spacing_mm", "center_vox"):
            tensors[name] = getattr(self, name).cpu().contiguous()
        header: dict[str, Any] = {"format": _FORMAT, "names": list(self.names), "protocol": self.protocol.name}
        header["description"] = self.protocol.description
        header["rows"] = self.protocol.to_rows()
        header["sha256"] = hash_content(header, tensors)
        with atomic_file(path) as file:
            file.write(save(tensors, metadata={"bank": json.dumps(header)}))
        return path

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> LabelBank:
        """Read a bank. Raises TrainingError naming the file when it is missing, damaged or no bank."""
        path = Path(path)
        remake = "make it with: synthseg bank LABELS -o bank.safetensors"
        require_file(path, error=TrainingError, fix=remake, as_text=True, empty=True)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("bank", "{}"))
                if not isinstance(header, dict) or header.get("format") != _FORMAT:
                    raise TrainingError(path, found=f"another format than {_FORMAT}", fix=remake)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if not header.keys() <= _HEADER or header.get("sha256", "") not in ("", hash_content(header, tensors)):
                raise ValueError("its content is not what it has the hash of")
            return cls._of_file(header, tensors).to(device)
        except TrainingError:
            raise
        except Exception as error:  # a damaged header makes parsers and torch raise anything
            if lacks_memory(error):
                raise TrainingError(path, found=f"no memory to read it ({error})", fix=MORE_MEMORY) from error
            raise TrainingError(path, found=f"a damaged file ({error})", fix=remake) from error

    @classmethod
    def _of_file(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> LabelBank:
        """Unpack and check: what is wrong here would become wrong labels, or a crash of the GPU amid training."""
        protocol = LabelProtocol.from_rows(header["protocol"], header["description"], header["rows"])
        names = tuple(map(str, header["names"]))
        shapes, spacing, center = tensors["shapes"].long(), tensors["spacing_mm"], tensors["center_vox"]
        if not names or not shapes.shape == spacing.shape == center.shape == (len(names), 3):
            raise ValueError(f"{len(names)} names, shapes {tuple(shapes.shape)}, voxel sizes {tuple(spacing.shape)}")
        if not bool((spacing > 0).all() & spacing.isfinite().all() & center.isfinite().all()):
            raise ValueError("a voxel size or centre that is no number")
        parts = [_unpack(tensors[f"map.{n:05d}"], shapes[n].tolist()) for n in range(len(names))]
        for name, part in zip(names, parts, strict=True):
            if int(part.max()) >= len(protocol.labels):
                raise ValueError(f"{name}: label index {int(part.max())} of {len(protocol.labels)}")
        sizes = shapes.prod(1)
        return cls(
            protocol=protocol,
            names=names,
            voxels=torch.cat(parts),
            shapes=shapes,
            offsets=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]]),
            spacing_mm=spacing.float(),
            center_vox=center.float(),
        )


def hash_content(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a file holds, itself left out."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    size = math.prod(shape)
    if min(shape) < 1 or size > _MOST_VOXELS:
        raise ValueError(f"a map of shape {tuple(shape)}")
    engine = zlib.decompressobj()
    raw = engine.decompress(packed.numpy().tobytes(), size + 1)  # never more than the header promises
    if len(raw) != size or not engine.eof:
        raise ValueError(f"a map of {'more' if len(raw) > size else len(raw)} voxels where {size} were promised")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def _brain_center(index: np.ndarray, protocol: LabelProtocol) -> list[float]:
    """Centre of the box around labels with a target other than background (the map's centre if there are none)."""
    wanted = protocol.target_channel != 0
    mask = wanted[index]
    if not mask.any():
        return [(n - 1) / 2 for n in index.shape]
    center = []
    for axis in range(3):
        present = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        center.append((float(present[0]) + float(present[-1])) / 2)
    return center
