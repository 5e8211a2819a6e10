"""The network's posteriors for a prepared image: softmax, mirror averaging, smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.errors import InvariantError, SynthsegError, UsageError
from synthseg.inference.config import InferenceConfig

LEFT_RIGHT_AXIS = 2  # of [B, C, X, Y, Z] in RAS order


def pick_device(device: str) -> torch.device:
    """``auto`` is CUDA when there is one, else the CPU; any other name is torch's.

    Raises: UsageError for a name torch does not know or a CUDA device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device '{device}'", found="an unknown name", fix="use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA device(s) on this machine"
        raise UsageError(f"device '{device}'", found=found, fix="use --device cpu, or auto")
    return chosen


def predict_posteriors(network: nn.Module, inputs: Tensor, partners: np.ndarray, config: InferenceConfig) -> Tensor:
    """Posterior probabilities of every channel.

    Args:
        network: ``[1, C_in, X, Y, Z] -> logits [1, C, X, Y, Z]``, in eval mode, on the device of ``inputs``.
        inputs: [1, C_in, X, Y, Z], X grows to the right: the image in [0, 1], then what else the network reads. Mirror
            averaging mirrors all of it, so nothing in it may be of one side.
        partners: [C] channel of the same structure on the other side.
    Returns: [C, X, Y, Z] float32 on the same device; sums to 1 over C, but for the border voxels that smoothing lets
        fade.
    Source: Billot et al. 2023, section 3.3 (mirror averaging); reference 6.4 (smoothing).
    """
    with torch.inference_mode():
        posteriors = _softmax(network, inputs, config)
        if config.flip:
            mirrored = _softmax(network, inputs.flip(LEFT_RIGHT_AXIS), config).flip(LEFT_RIGHT_AXIS - 1)
            posteriors = average_with_mirrored(posteriors, mirrored, partners)
            del mirrored
        # Smoothing after the average, not before: both are linear and the kernel is symmetric, so one pass is enough.
        return smooth_posteriors(posteriors, config.smoothing_sigma_vox)


def run_network(network: nn.Module, inputs: Tensor, config: InferenceConfig) -> Tensor:
    """What the network says in the precision asked for, float32."""
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


@contextmanager
def enough_memory(subject: str, device: torch.device, shape: Sequence[int]) -> Iterator[None]:
    """Turn torch's ways of running out of memory into a SynthsegError that names the scan and its shape in voxels."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on the CPU there is only the text
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        sides = " x ".join(str(side) for side in shape)
        found = f"not enough memory on {device} for {sides} voxels"
        raise SynthsegError(subject, found=found, fix="crop the scan to the head, or use --device cpu") from error


def _softmax(network: nn.Module, inputs: Tensor, config: InferenceConfig) -> Tensor:
    return torch.softmax(run_network(network, inputs, config)[0], dim=0).contiguous()


def average_with_mirrored(posteriors: Tensor, mirrored: Tensor, partners: np.ndarray) -> Tensor:
    """Mean of the posteriors and of those of the mirrored image, mirrored back, with left and right exchanged.

    ``posteriors`` and ``mirrored`` are [C, X, Y, Z]; the first is overwritten with the result.
    """
    for channel, partner in enumerate(partners.tolist()):  # channel by channel: no third copy of all posteriors
        posteriors[channel].add_(mirrored[partner]).mul_(0.5)
    return posteriors


def smoothing_weights(sigma_vox: float) -> tuple[float, float]:
    """Outer and centre weight of the normalised 3-tap Gaussian (0.5 voxel: 0.10650698 and 0.78698604)."""
    if sigma_vox == 0:
        return 0.0, 1.0
    outer = math.exp(-0.5 / sigma_vox**2)
    return outer / (1 + 2 * outer), 1 / (1 + 2 * outer)


@torch.inference_mode()
def smooth_posteriors(posteriors: Tensor, sigma_vox: float) -> Tensor:
    """Separable 3-tap Gaussian along the last three axes of [C, X, Y, Z], zeros outside; overwrites its argument.

    Source: reference 6.4 and 11.2.
    """
    if sigma_vox == 0:
        return posteriors
    outer, centre = smoothing_weights(sigma_vox)
    for channel in posteriors:
        for axis in range(3):
            moved = channel.movedim(axis, 0)
            result = moved * centre
            result[1:].add_(moved[:-1], alpha=outer)
            result[:-1].add_(moved[1:], alpha=outer)
            moved.copy_(result)
    return posteriors
