"""Checkpoints: a folder a checkpoint, safetensors shards and a JSON index, complete or absent.

Shards keep every file small enough to be carried one by one from a rented machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn, optim

from synthseg.errors import TrainingError
from synthseg.training.optimizers import Muon

_FORMAT = "synthseg-checkpoint-1"
_FACTS = ("progress", "recipe", "targets", "param_groups")  # what a run needs to go on
_KERNELS = ("fused", "foreach", "capturable")  # of an optimiser's groups: how, not what, it computes
SHARD_BYTES = 15 * 2**20


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    step: int = 0  # finished steps
    seconds: float = 0.0  # of training, over all its sessions
    samples: int = 0
    skipped: int = 0  # steps left out for a loss or gradient that was not finite
    best: float | None = None  # highest validation Dice
    scores: dict[str, float] = field(default_factory=dict)  # last validation
    scores_step: int | None = None  # step they were measured at
    started_from: dict[str, Any] | None = None  # name, sha256 and steps of the weights it began with; None: random


def write_shards(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, format_name: str) -> Path:
    """Write tensors as shards with an index into ``folder``, which appears complete or not at all.

    Raises: TrainingError naming the folder when it cannot be written.
    """
    part, aside = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old.part"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        shards: list[dict[str, Tensor]] = [{}]
        size = 0
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
        for n, shard in enumerate(shards):
            (part / f"{n:04d}.safetensors").write_bytes(save(shard))
        index = {"format": format_name, "shards": len(shards), **facts}
        (part / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        for file in part.iterdir():  # on disk before the name says so
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():  # aside first, removed last: a kill in between never finds both gone
            folder.replace(aside)
        part.replace(folder)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            folder, found=f"no way to write it ({error})", fix="free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def read_shards(folder: Path, *, format_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_shards` wrote. Raises TrainingError naming the file that is missing or damaged."""
    index = read_index(folder, format_name=format_name)
    file = folder / "index.json"
    try:
        tensors: dict[str, Tensor] = {}
        for n in range(index["shards"]):
            file = folder / f"{n:04d}.safetensors"
            tensors.update(load_file(file))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(file, error) from error
    return tensors, index


def read_index(folder: Path, *, format_name: str = _FORMAT) -> dict[str, Any]:
    """The facts alone, without the tensors. Raises TrainingError if they are missing, damaged or of another format."""
    file = folder / "index.json"
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = index.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(file, error) from error
    if found != format_name:
        raise TrainingError(folder, found=f"format {found!r}", fix=f"give a folder of {format_name}")
    missing = [key for key in _FACTS if key not in index] if format_name == _FORMAT else []
    if missing:
        raise _damaged(file, KeyError(*missing))
    return index


def _damaged(file: Path, error: Exception) -> TrainingError:
    fix = f"remove {file.parent}: the checkpoint before it is used then"
    return TrainingError(file, found=f"a damaged checkpoint ({error})", fix=fix)


def save_checkpoint(
    run: Path,
    network: nn.Module,
    optimizer: optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    facts: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write ``run/checkpoints/step-NNNNNNNN`` and remove all but the newest ``keep``.

    Args:
        average: the averaged weights, if any.
        facts: plain values (progress, recipe) kept in the index.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    state = optimizer.state_dict()
    for number, values in state["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in values.items()}
    groups = [{k: v for k, v in group.items() if not isinstance(v, Tensor)} for group in state["param_groups"]]
    folder = run / "checkpoints" / f"step-{facts['progress']['step']:08d}"
    write_shards(folder, tensors, {**facts, "param_groups": groups}, format_name=_FORMAT)
    left_by_the_killed = folder.parent.glob(".step-*.part")
    for old in [*list_checkpoints(run)[: -max(keep, 1)], *left_by_the_killed]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*/index.json"))


def load_checkpoint(
    folder: Path, network: nn.Module, optimizer: optim.Optimizer, average: dict[str, Tensor] | None
) -> dict[str, Any]:
    """Restore network, optimiser and average in place; returns the facts.

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
        for name, tensor in average.items():
            tensor.copy_(saved[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer.").items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": _groups(index["param_groups"], optimizer)})
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
