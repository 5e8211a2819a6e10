"""Reading and writing weights files: tensors and card, checked byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthseg.errors import WeightsError
from synthseg.files import atomic_file
from synthseg.weights.card import (
    complete_card,
    decode_card,
    encode_card,
    refuse_foreign,
    require_role,
    role_of,
    unreadable,
)
from synthseg.weights.hdf5 import is_keras
from synthseg.weights.original import offer_of, read_offer
from synthseg.weights.store import SUFFIX, locate

_KEPT_WHOLE = ("running_mean", "running_var")  # batch-norm statistics span many decades: never stored as halves


@dataclass(frozen=True)
class Weights:
    """Tensors and the card that says what they are. Floating tensors are float32."""

    name: str
    tensors: dict[str, Tensor]
    card: dict[str, Any]
    path: Path | None = None

    @property
    def parameters(self) -> int:
        """Number of values, running statistics included."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def save_weights(
    path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, half: bool = False
) -> Path:
    """Write weights and their card; the file appears whole or not at all.

    Args:
        path: ends in ``.safetensors``; its folder is made when missing.
        tensors: a state dictionary, on any device.
        card: see ``synthseg.weights.card``; ``format``, ``sha256`` and (when absent) ``created`` are filled in.
        half: store floating tensors as float16, half the size at 11 bits of precision, except running statistics.

    Returns: the path written.
    Raises: WeightsError for a bad suffix, an unusable card, non-finite values, or values beyond float16;
        OutputError when the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise WeightsError(path, found=f"the suffix {path.suffix!r}", fix=f"name weights files *{SUFFIX}")
    if not tensors:
        raise WeightsError(path, found="no tensors to save", fix="give the network's state_dict()")
    stored = _stored(tensors, half, path)
    whole = complete_card(card, sha256=hash_tensors(stored), subject=path)
    with atomic_file(path) as file:
        file.write(save(stored, encode_card(whole, path)))
    return path


def is_saved(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, half: bool = False) -> bool:
    """Whether a whole file of these very tensors, under a card that says the same, is there already."""
    try:
        found = load_weights(path).card
    except WeightsError:
        return False
    wanted = complete_card(card, sha256=hash_tensors(_stored(tensors, half, path)), subject=path)
    return {**found, "created": None} == {**json.loads(json.dumps(wanted)), "created": None}


def load_weights(name_or_path: str | Path, role: str | None = None) -> Weights:
    """Find, read and check weights (see ``locate`` for names); floating tensors come back as float32.

    Keras' .h5 files of the original's networks are read as they are (``synthseg.weights.original``).

    Args:
        role: what the network must be for, which picks one of a family's or a file's networks; None takes the only one
            ("structures" of a family).
    Raises: WeightsError for unknown names, missing or damaged files, other formats, files without a card, and
        another role.
    """
    located = locate(name_or_path, role)
    path = located.path
    if path.is_file() and is_keras(path):
        arrays, card = read_offer(offer_of(path, located.role))
        if role is not None:
            require_role(role_of(card), (role,), path)
        return Weights(str(card["name"]), {name: torch.from_numpy(a) for name, a in arrays.items()}, card, path)
    refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise unreadable(path, error) from error
    card = decode_card(metadata, path)
    if role is not None:
        require_role(role_of(card), (role,), path)
    found = hash_tensors(tensors)
    if found != card["sha256"]:
        raise WeightsError(
            path,
            found=f"tensors whose hash {found[:12]}... is not the card's {card['sha256'][:12]}... (altered or damaged)",
            fix="copy or download the file again",
        )
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return Weights(str(card["name"]), floats, card, path)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of each tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stored(tensors: Mapping[str, Tensor], half: bool, path: Path) -> dict[str, Tensor]:
    return {name: _to_stored(name, tensor, half, path) for name, tensor in tensors.items()}


def _to_stored(name: str, tensor: Tensor, half: bool, path: Path) -> Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.clone().contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(path, found=f"NaN or infinity in {name}", fix="save weights of before training diverged")
    if not half or name.endswith(_KEPT_WHOLE):
        return tensor.clone().contiguous()  # a copy: safetensors refuses tensors that share memory
    stored = tensor.half().contiguous()
    if not torch.isfinite(stored).all():
        largest = float(tensor.abs().max())
        raise WeightsError(path, found=f"{largest:.3g} in {name}, beyond float16", fix="save with half=False")
    return stored
