"""A network's posteriors for a prepared image, slab by slab: mirror averaging and smoothing.

All 33 posteriors of a scan at 1 mm are a gigabyte: they are made slab by slab along X, and each slab is averaged with
its mirrored partner, smoothed and handed on. A slab is [n, Y, Z, C] float32, channels last, as networks give it.
"""

from __future__ import annotations

import errno
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.engine.memory import Plan
from synthseg.engine.runner import Runner
from synthseg.errors import InvariantError, SynthsegError, UsageError
from synthseg.inference.config import InferenceConfig

LEFT_RIGHT_AXIS = 2  # of [B, C, X, Y, Z] in RAS order


def pick_device(device: str) -> torch.device:
    """``auto`` is CUDA when there is one, else the CPU; any other name is torch's.

    Apple's GPUs ("mps") must be asked for: none was at hand to try them.

    Raises: UsageError for a name torch does not know or a device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        found, fix = "an unknown name", "use auto, cpu, cuda, cuda:N or mps"
        raise UsageError(f"device '{device}'", found=found, fix=fix) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA device(s) on this machine"
        raise UsageError(f"device '{device}'", found=found, fix="use --device cpu, or auto")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device '{device}'", found="no Apple GPU here", fix="use --device cpu, or auto")
    return chosen


@torch.inference_mode()  # as a decorator, which leaves the mode while the caller has a slab
def stream_posteriors(
    runner: Runner,
    inputs: Tensor,
    partners: np.ndarray,
    *,
    flip: bool,
    plan: Plan | None = None,
    temperature: float = 1.0,
) -> Iterator[tuple[int, Tensor]]:
    """Posteriors of every channel, slab by slab in ascending order along X: (first plane, [n, Y, Z, C] float32).

    Args:
        inputs: [1, C_in, X, Y, Z], X grows to the right: the image in [0, 1], then what else the network reads. Mirror
            averaging mirrors all of it, so nothing in it may be of one side.
        partners: [C] channel of the same structure on the other side.
        flip: average with the posteriors of the mirrored image, left and right exchanged.
        plan: how thick slabs are and what is kept; None takes everything at once.
        temperature: what logits are divided by, of every pass on its own (:func:`tempered`).
    Yields: slabs that the caller may overwrite; each sums to 1 over C.
    Source: Billot et al. 2023, section 3.3 (mirror averaging).
    """
    slab, recompute = (plan.slab, plan.recompute) if plan is not None else (None, False)
    straight = runner.begin(inputs, slab=slab, recompute=recompute)
    mirrored = None
    if flip:
        mirrored = runner.begin(inputs.flip(LEFT_RIGHT_AXIS), slab=slab, recompute=recompute)
    width = inputs.shape[LEFT_RIGHT_AXIS]
    exchange = torch.from_numpy(np.asarray(partners, dtype=np.int64)).to(inputs.device)
    for start in range(0, width, slab or width):
        stop = min(start + (slab or width), width)
        part = tempered(straight.posteriors(start, stop), temperature)
        if mirrored is not None:
            other = tempered(mirrored.posteriors(width - stop, width - start), temperature)
            average_with_mirrored(part, other.flip(0), exchange)
            del other
        yield start, part


def run_network(network: nn.Module, inputs: Tensor, config: InferenceConfig) -> Tensor:
    """What a network that is not run in slabs says, float32: in bfloat16 if that is asked for, else in float32."""
    reduced = config.precision == "bfloat16"
    with torch.autocast(inputs.device.type, torch.bfloat16) if reduced else nullcontext():
        said: Tensor = network(inputs.contiguous(memory_format=torch.channels_last_3d))
    return said.float()


def require_finite(values: Tensor, model_name: str, subject: str) -> Tensor:
    """The values themselves. Raises: InvariantError if any is NaN or infinite."""
    if not torch.isfinite(values.sum()):
        found = f"an output of {model_name} that is not a number (NaN or infinity)"
        raise InvariantError(subject, found=found, fix="check the weights: synthseg weights verify NAME")
    return values


class OutOfMemory(SynthsegError):
    """A device has not enough memory for a scan."""


@contextmanager
def enough_memory(subject: str, device: torch.device, shape: Sequence[int]) -> Iterator[None]:
    """Turn the ways of running out of memory into an OutOfMemory that names the scan and its shape in voxels."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out(error):
            raise
        sides = " x ".join(str(side) for side in shape)
        found = f"not enough memory on {device} for {sides} voxels"
        fix = "close other programs, crop the scan to the head, or use a machine with more memory"
        raise OutOfMemory(subject, found=found, fix=fix) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: torch's, numpy's and Python's, the system's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError is a RuntimeError; on the CPU there is only the text.
    torchs = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return torchs or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def forget_frames(error: BaseException) -> None:
    """Drop what the frames of an error, and of what led to it, hold: the tensors of the attempt that failed."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def tempered(posteriors: Tensor, temperature: float) -> Tensor:
    """Posteriors as they were had the logits been divided by ``temperature``, in place: [..., C], each summing to 1.

    A softmax to the power 1/T, normalised, is the softmax of the logits over T. Source: Guo et al. 2017, section 4.2.
    """
    if temperature == 1:
        return posteriors
    posteriors.pow_(1 / temperature)
    return posteriors.div_(posteriors.sum(-1, keepdim=True))


def average_with_mirrored(posteriors: Tensor, mirrored: Tensor, partners: Tensor) -> Tensor:
    """Mean of posteriors and those of the mirrored image, mirrored back, with left and right exchanged.

    ``posteriors`` and ``mirrored`` are [..., C]; the first is overwritten with the result.
    """
    for part, other in zip(posteriors, mirrored, strict=True):  # plane by plane: the exchange is a copy
        part.add_(other.index_select(-1, partners)).mul_(0.5)
    return posteriors


def smoothing_weights(sigma_vox: float) -> tuple[float, float]:
    """Outer and centre weight of the normalised 3-tap Gaussian (0.5 voxel: 0.10650698 and 0.78698604)."""
    if sigma_vox == 0:
        return 0.0, 1.0
    outer = math.exp(-0.5 / sigma_vox**2)
    return outer / (1 + 2 * outer), 1 / (1 + 2 * outer)


class Smoother:
    """Separable 3-tap Gaussian along X, Y and Z of slabs [n, Y, Z, C] that come in ascending order, zeros outside.

    The last plane of a slab can only be smoothed when the next slab is there: :meth:`add` returns what is ready,
    :meth:`finish` the rest. After the mirror average, not before: both are linear and the kernel is symmetric, so that
    once is enough. Source: reference 6.4 and 11.2.
    """

    def __init__(self, sigma_vox: float) -> None:
        self.outer, self.centre = smoothing_weights(sigma_vox)
        self.carried: Tensor | None = None  # the last planes (at most 2), smoothed along Y and Z
        self.next = 0

    @torch.inference_mode()
    def add(self, start: int, slab: Tensor) -> tuple[int, Tensor]:
        """Take a slab (overwritten). Returns: the first plane that is ready, and the planes, perhaps none."""
        if self.outer == 0:
            self.carried = slab[:0]
            self.next = start + len(slab)
            return start, slab
        for plane in slab:
            self._along(plane, 0)
            self._along(plane, 1)
        held = slab if self.carried is None else torch.cat([self.carried, slab])
        known = (
            1 if self.next > 0 else 0
        )  # the plane before the first ready one is held, beyond the border there is none
        ready = self._mixed(held)[known : len(held) - 1]
        first, self.next = self.next, start + len(slab) - 1
        self.carried = held[-2:].clone()
        return first, ready

    @torch.inference_mode()
    def finish(self) -> tuple[int, Tensor]:
        """The last plane, when all slabs have been added."""
        assert self.carried is not None, "no slab was added"
        return self.next, self._mixed(self.carried)[-1:] if self.outer else self.carried

    def _mixed(self, held: Tensor) -> Tensor:
        result = held * self.centre
        result[1:].add_(held[:-1], alpha=self.outer)
        result[:-1].add_(held[1:], alpha=self.outer)
        return result

    def _along(self, plane: Tensor, axis: int) -> None:
        moved = plane.movedim(axis, 0)
        result = moved * self.centre
        result[1:].add_(moved[:-1], alpha=self.outer)
        result[:-1].add_(moved[1:], alpha=self.outer)
        moved.copy_(result)
