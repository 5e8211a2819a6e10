"""Checkpoints: a folder a checkpoint, safetensors shards and a JSON index, complete or absent.

Shards keep every file small enough to be carried one by one from a rented machine. The index holds the hash of each and
of itself, which are compared before anything is loaded: a file system that has turned a bit would go unnoticed in
weights, and in an optimiser's state for good. Checkpoints of before there were hashes are read without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn, optim

from synthseg.errors import TrainingError
from synthseg.files import sync_file, sync_folder
from synthseg.reading import exists, require_file
from synthseg.training.optimizers import Muon

_FORMAT = "synthseg-checkpoint-1"
_FACTS = ("progress", "recipe", "targets", "param_groups")  # what a run needs to go on
_KERNELS = ("fused", "foreach", "capturable")  # of an optimiser's groups: how, not what, it computes
SHARD_BYTES = 15 * 2**20
_INDEX = "index.json"
_MOST_SHARDS = 100_000  # 1.5 TB: a damaged number must not be counted to
_NAME = re.compile(r"^step-\d+(\.old)?$")


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    step: int = 0  # finished steps
    seconds: float = 0.0  # of training, over all its sessions
    samples: int = 0
    skipped: int = 0  # steps left out for a loss or gradient that was not finite, or out of proportion
    returns: int = 0  # times the run went back to its last good state
    best: float | None = None  # highest validation Dice
    scores: dict[str, float] = field(default_factory=dict)  # last validation
    scores_step: int | None = None  # step they were measured at
    started_from: dict[str, Any] | None = None  # name, sha256 and steps of the weights it began with; None: random


def write_shards(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, format_name: str) -> Path:
    """Write tensors as shards with an index into ``folder``, which appears complete or not at all.

    A folder of that name is replaced: until the new one is complete it is there, or beside it under ``NAME.old``, where
    :func:`list_checkpoints` finds it.

    Raises: TrainingError naming the folder when it cannot be written.
    """
    part, aside = folder.with_name(f".{folder.name}.{os.getpid()}.part"), folder.with_name(f"{folder.name}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        hashes = [_write(part / f"{n:04d}.safetensors", save(shard)) for n, shard in enumerate(_shards(tensors))]
        index = json.loads(json.dumps({"format": format_name, "shards": len(hashes), "sha256": hashes, **facts}))
        text = json.dumps({**index, "index_sha256": _hash_index(index)}, indent=1)
        _write(part / _INDEX, text.encode())
        sync_folder(part)  # on disk before the name says so
        if folder.exists():
            _remove(aside)
            folder.replace(aside)
        part.replace(folder)
        sync_folder(folder.parent)
        _remove(aside)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            folder, found=f"no way to write it ({error})", fix="free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write(file: Path, content: bytes) -> str:
    """Write a file, down to the disk. Returns: its SHA-256."""
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        sync_file(handle)
    return hashlib.sha256(content).hexdigest()


def _hash_index(index: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in index.items() if key != "index_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(folder: Path) -> None:
    """Take a folder away as a whole, if it can be: killed amid the removal, no half of it keeps its name."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.replace(folder.with_name(f".{folder.name}.{os.getpid()}.gone.part")), ignore_errors=True)


def read_shards(folder: Path, *, format_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_shards` wrote. Raises TrainingError naming the file that is missing or damaged."""
    index = read_index(folder, format_name=format_name)
    file = folder / _INDEX
    try:
        if not isinstance(index["shards"], int) or not 0 <= index["shards"] <= _MOST_SHARDS:
            raise ValueError(f"{index['shards']!r} shards")
        hashes = index.get("sha256", [None] * index["shards"])
        tensors: dict[str, Tensor] = {}
        for n, wanted in zip(range(index["shards"]), hashes, strict=True):
            file = folder / f"{n:04d}.safetensors"
            if exists(file):
                require_file(file, error=TrainingError, fix=_go_back(folder))
            content = file.read_bytes()
            if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
                raise ValueError("its content is not what the index has the hash of")
            tensors.update(load(content))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(file, error) from error
    return tensors, index


def read_index(folder: Path, *, format_name: str = _FORMAT) -> dict[str, Any]:
    """The facts alone, without the tensors. Raises TrainingError if they are missing, damaged or of another format."""
    file = folder / _INDEX
    try:
        if exists(file):
            require_file(file, error=TrainingError, fix=_go_back(folder))
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = index.get("format")
        if ("sha256" in index or "index_sha256" in index) and index.get("index_sha256") != _hash_index(index):
            raise ValueError("its content is not what it has the hash of")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from error
    if found != format_name:
        raise TrainingError(folder, found=f"format {found!r}", fix=f"give a folder of {format_name}")
    missing = [key for key in _FACTS if key not in index] if format_name == _FORMAT else []
    if missing:
        raise _damaged(file, KeyError(*missing))
    return index


def _damaged(file: Path, error: Exception) -> TrainingError:
    return TrainingError(file, found=f"a damaged checkpoint ({error})", fix=_go_back(file.parent))


def _go_back(folder: Path) -> str:
    """What to do without a checkpoint."""
    run = folder.parent.parent
    if any(other.name.removesuffix(".old") < folder.name.removesuffix(".old") for other in list_checkpoints(run)):
        return f"remove {folder}: the checkpoint before it is used then"
    return "it is the only one: copy it back from where there is another, or train in another folder"


def save_checkpoint(
    run: Path,
    network: nn.Module,
    optimizer: optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    facts: Mapping[str, Any],
    *,
    keep: int,
    earlier: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``run/checkpoints/step-NNNNNNNN`` and remove all but the newest ``keep``.

    Args:
        average: the averaged weights, if any.
        facts: plain values (progress, recipe) kept in the index.
        earlier: states that the run may go back to, if any (``spikes.py``).
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    tensors |= {f"earlier.{name}": tensor for name, tensor in (earlier or {}).items()}
    state = optimizer.state_dict()
    for number, values in state["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in values.items()}
    groups = [{k: v for k, v in group.items() if not isinstance(v, Tensor)} for group in state["param_groups"]]
    folder = run / "checkpoints" / f"step-{facts['progress']['step']:08d}"
    write_shards(folder, tensors, {**facts, "param_groups": groups}, format_name=_FORMAT)
    left_by_the_killed = folder.parent.glob(".step-*.part")
    kept = list_checkpoints(run)[-max(keep, 1) :]
    for old in folder.parent.glob("step-*"):
        if old not in kept and _NAME.match(old.name):
            _remove(old)
    for left in left_by_the_killed:
        shutil.rmtree(left, ignore_errors=True)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first. One that was being replaced counts where the new one is missing."""
    found = sorted(path.parent for path in (run / "checkpoints").glob("step-*/index.json"))
    return [path for path in found if _NAME.match(path.name) and path.with_suffix("") not in (set(found) - {path})]


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    optimizer: optim.Optimizer,
    average: dict[str, Tensor] | None,
    earlier: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Restore network, optimiser and average in place; returns the facts.

    Args:
        earlier: is filled with the states that the run may go back to.
    Raises: TrainingError if the checkpoint is of another network.
    """
    tensors, index = read_shards(folder, format_name=_FORMAT)
    try:
        network.load_state_dict(_under(tensors, "network."))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(folder, found=f"another network ({reason})", fix="keep the recipe's [network]") from error
    if average is not None:
        saved = _under(tensors, "average.") or _under(tensors, "network.")
        try:
            for name, tensor in average.items():
                tensor.copy_(saved[name])
        except (KeyError, RuntimeError) as error:
            raise _damaged(folder / _INDEX, error) from error
    if earlier is not None:
        earlier.update(_under(tensors, "earlier."))
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in _under(tensors, "optimizer.").items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": _groups(index["param_groups"], optimizer)})
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _damaged(folder / _INDEX, error) from error
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(optimizer, Muon):  # torch leaves step counts on the CPU, where each would be waited for
                values[key] = value = value.to(parameter.device)
            if value.shape == parameter.shape:  # laid out as the parameter is: Adam takes half the time then
                values[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return index


def _groups(saved: list[dict[str, Any]], optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    """Saved hyperparameters, but this machine's way to compute a step: a CPU has other kernels than a GPU."""
    own = [{key: group[key] for key in _KERNELS if key in group} for group in optimizer.param_groups]
    return [{**group, **kernels} for group, kernels in zip(saved, own, strict=True)]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
