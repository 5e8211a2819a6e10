"""Which backend carries networks out on this machine, and why.

Looking for packages and compilers loads none of them: that is left to :func:`make_backend`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch

from synthseg.engine.backend import Backend
from synthseg.engine.ranges import Range
from synthseg.errors import SynthsegError, UsageError

BACKENDS = ("plain", "torch", "compile", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
CPU, CUDA, MPS = "cpu", "cuda", "mps"

# What "auto" takes for a kind of device and a precision: the first that works here. Reasons are part of the answer.
# Measured on two cores with AVX-512: the lean program with memory that the allocator keeps is as fast as OpenVINO in
# float32; 8-bit arithmetic is what only OpenVINO has.
PREFERENCES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    (CPU, "float32"): (("torch", "as fast as any other on CPUs in float32, and always there"),),
    (CPU, "bfloat16"): (("torch", "always there; half the memory, and faster where the CPU has bfloat16 products"),),
    (CPU, "int8"): (("openvino", "the one backend with 8-bit arithmetic"),),
    (CUDA, "float32"): (("torch", "the lean program on a GPU"),),
    (CUDA, "bfloat16"): (("torch", "the lean program on a GPU, in its half-precision units"),),
    (MPS, "float32"): (("torch", "the lean program on an Apple GPU"),),
}
# Precisions of each backend, by the kind of device. On Apple GPUs torch has transposed convolutions in float32 only.
FLOATS = ("float32", "bfloat16")
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {CPU: FLOATS, CUDA: FLOATS, MPS: ("float32",)},
    "torch": {CPU: FLOATS, CUDA: FLOATS, MPS: ("float32",)},
    "compile": {CPU: FLOATS, CUDA: FLOATS},
    "openvino": {CPU: PRECISIONS},
}
MPS_SINCE = (2, 9)  # the first torch with transposed convolution, pooling and upsampling of volumes on Apple GPUs


class Availability(NamedTuple):
    """Whether a backend can be used on a device, and why (not), as a clause."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs the networks, where, how precisely; ``why`` is a sentence. ``threads`` None leaves torch's number."""

    backend: str
    device: torch.device
    precision: str = "float32"
    threads: int | None = None
    why: str = ""


def choose(backend: str = "auto", *, precision: str, device: torch.device, threads: int | None = None) -> Choice:
    """The backend to use: the one asked for if it works here, or with "auto" the best one.

    Args:
        backend: "auto" or one of :data:`BACKENDS`. "plain" (the module as it is) and "compile" are never chosen by
            "auto".
        precision: "float32", "bfloat16" or "int8".
    Raises: UsageError for a name that is unknown, a device that is not there or a combination that does not exist;
        SynthsegError where something has to be installed first. Whether weights have ranges for int8 is not known here.
    """
    if precision not in PRECISIONS:
        fix = f"use one of {', '.join(PRECISIONS)}"
        raise UsageError(f"precision {precision!r}", found="an unknown name", fix=fix)
    _require_device(device)
    if backend != "auto":
        return _asked_for(backend, precision, device, threads)
    preferred = PREFERENCES.get((device.type, precision))
    if preferred is None:
        raise _impossible(f"precision {precision}", device)
    refusals: list[str] = []
    for name, merit in preferred:
        there = availability(name, device)
        if there.usable:
            instead = "".join(f"; {refusal}" for refusal in refusals)
            why = f"{name} in {precision} on {device}: {merit}{instead}"
            return Choice(backend=name, device=device, precision=precision, threads=threads, why=why)
        refusals.append(f"no {name}: {there.reason}")
    found = f"no backend that works here ({'; '.join(refusals)})"
    install = _install(preferred[0][0])
    other = "--device cpu" if device.type == MPS else "--precision float32"
    fix = f"{install}, or use {other}" if install else f"use {other}"
    raise SynthsegError(f"precision {precision} on {device.type}", found=found, fix=fix)


def available_backends(device: torch.device) -> list[Availability]:
    """Every backend, whether it can be used on a device, and why (not)."""
    return [availability(name, device) for name in BACKENDS]


def availability(name: str, device: torch.device) -> Availability:
    """Whether one backend of :data:`BACKENDS` can be used on a device."""
    if device.type not in SUPPORTED[name]:
        return Availability(name, False, f"it does not run on {device.type}")
    if name == "openvino":
        there = find_spec("openvino") is not None
        return Availability(name, there, "openvino is installed" if there else "openvino is not installed")
    if name == "compile":
        return _compiler(device)
    if device.type == MPS and _torch_version() < MPS_SINCE:
        needed = ".".join(map(str, MPS_SINCE))
        return Availability(name, False, f"torch {torch.__version__} lacks operations that {needed} has on Apple GPUs")
    return Availability(name, True, "part of torch, always there")


def make_backend(choice: Choice, *, ranges: Mapping[str, Range] | None = None) -> Backend:
    """The backend of a choice, its packages loaded.

    Args:
        ranges: of a network's activations, for int8 (its weights' card); other precisions do without.
    Raises: SynthsegError if a package cannot be loaded, and for int8 without ranges.
    """
    if choice.backend == "openvino":
        from synthseg.engine.openvino_backend import OpenVinoBackend

        needed = ranges if choice.precision == "int8" else None
        return OpenVinoBackend(choice.precision, needed, choice.threads)
    from synthseg.engine.torch_backend import CompileBackend, PlainBackend, TorchBackend

    kinds = {"plain": PlainBackend, "torch": TorchBackend, "compile": CompileBackend}
    return kinds[choice.backend](choice.device, choice.precision)


def _asked_for(name: str, precision: str, device: torch.device, threads: int | None) -> Choice:
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r}", found="an unknown name", fix=f"use auto, {', '.join(BACKENDS)}")
    there = availability(name, device)
    if device.type in SUPPORTED[name] and precision not in SUPPORTED[name][device.type]:
        raise _impossible(f"precision {precision} with backend {name}", device)
    if not there.usable:
        supported = device.type in SUPPORTED[name]
        ways = [_install(name), "use --backend auto"] if supported else ["use --device cpu", "--backend auto"]
        kind = SynthsegError if supported else UsageError
        raise kind(f"backend {name}", found=there.reason, fix=", or ".join(filter(None, ways)))
    why = f"{name} in {precision} on {device}: asked for"
    return Choice(backend=name, device=device, precision=precision, threads=threads, why=why)


def _require_device(device: torch.device) -> None:
    """Raises: UsageError for a kind of device that networks are not run on here, or that this machine lacks."""
    if device.type not in (CPU, CUDA, MPS):
        fix = "use auto, cpu, cuda, cuda:N or mps"
        raise UsageError(f"device '{device}'", found="a kind of device that networks are not run on", fix=fix)
    if device.type == MPS and not torch.backends.mps.is_available():
        found = "no Apple GPU that torch can use on this machine"
        raise UsageError(f"device '{device}'", found=found, fix="use --device cpu, or auto")


def _impossible(subject: str, device: torch.device) -> UsageError:
    found = f"a combination that does not exist on {device.type}"
    where = {CPU: "--backend openvino", CUDA: "--device cpu", MPS: "--device cpu"}[device.type]
    return UsageError(subject, found=found, fix=f"use --precision float32, or {where}")


def _install(name: str) -> str:
    """What makes a backend work that does not, if anything does."""
    commands = {"openvino": "pip install 'synthseg[cpu]'", "compile": "install the compiler"}
    return commands.get(name, "")


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _compiler(device: torch.device) -> Availability:
    """What torch.compile needs: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == CUDA:
        there = find_spec("triton") is not None
        return Availability("compile", there, "Triton is installed" if there else "Triton is not installed")
    found = next((path for path in map(shutil.which, (os.environ.get("CXX") or "g++", "clang++")) if path), None)
    reason = f"a C++ compiler is there ({found})" if found else "there is no C++ compiler (g++ or clang++)"
    return Availability("compile", found is not None, reason)
