"""Several processes as one: DDP over NCCL or gloo, started by torchrun (which sets RANK, WORLD_SIZE, ...)."""

from __future__ import annotations

import gc
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synthseg.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True if it is true in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return bool(shared.item())

    def any_on_device(self, flag: Tensor) -> Tensor:
        """The same for a scalar bool on the device, which nobody waits for."""
        if self.size == 1:
            return flag
        shared = flag.float()
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return shared > 0

    def mean(self, value: Tensor) -> Tensor:
        """Average of a tensor over the processes."""
        if self.size == 1:
            return value
        shared = value.detach().clone()
        distributed.all_reduce(shared)
        return shared / self.size


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes torchrun started, or be alone. Within a world already joined (a chain's), that one stays.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
    Raises: UsageError for a device that is not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = _find_device(device, local)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # NCCL and allocations without a named device would all meet on GPU 0
    if size == 1:
        yield World(device=place)
        return
    if distributed.is_initialized():
        yield World(rank, size, place)
        return
    try:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            "WORLD_SIZE", found=f"{size}, but no way to join the other processes ({error})", fix="start with torchrun"
        ) from error
    try:
        yield World(rank, size, place)
    finally:
        # DDP keeps the group and gloo's threads alive. One that outlives the interpreter aborts the process at its
        # exit ("terminate called without an active exception"): 2 of 34 runs with torch 2.13, none of 70 since.
        gc.collect()
        distributed.destroy_process_group()


def _find_device(name: str, local: int) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name == "cuda":
        name = f"cuda:{local}"
    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise UsageError("device", found=repr(name), fix="give auto, cpu, cuda or cuda:N")
    place = torch.device(name)
    if place.type == "cuda" and (place.index or 0) >= available:
        raise UsageError("device", found=f"{name}, with {available} GPU(s) that torch can use", fix="give cpu or auto")
    return place


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        shared = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(shared)
        return shared

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        shared = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(shared)
        return shared


class CrossProcessBatchNorm(nn.BatchNorm3d):
    """Batch norm over the elements of all processes, on any device (torch's SyncBatchNorm needs a GPU).

    With it, N processes of batch b compute what one process of batch N b does.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = (0, 2, 3, 4)
        values = x.float()
        count = values.numel() / values.shape[1]
        sums = torch.stack([values.sum(axes), values.square().sum(axes), values.new_full((values.shape[1],), count)])
        total, squares, counts = _SumOverProcesses.apply(sums).unbind(0)
        mean = total / counts
        variance = (squares / counts - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * counts / (counts - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None, None] + shift[:, None, None, None]).to(x.dtype)


def spread(network: nn.Module, device_ids: list[int] | None) -> DistributedDataParallel:
    """DDP around a network whose buffers are already the same everywhere, by :func:`share_batch_norm`."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its name before 2.13
    options: dict[str, Any] = {"device_ids": device_ids, name: False}
    return DistributedDataParallel(network, **options)


def share_batch_norm(network: nn.Module) -> None:
    """Make every batch norm of a network work across processes, in place; state names stay."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = CrossProcessBatchNorm
