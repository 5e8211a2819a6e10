"""What this machine has that matters for running networks: processor, memory, GPUs."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from synthseg.engine.memory import available_bytes

# Instruction sets that decide about speed, by the names that Linux gives them.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI (int8)",
    "avx512_vnni": "AVX-512 VNNI (int8)",
    "avx512_bf16": "AVX-512 BF16 (bfloat16)",
    "amx_int8": "AMX (int8)",
    "amx_bf16": "AMX (bfloat16)",
    "asimd": "Neon",
    "asimddp": "Neon dot product (int8)",
    "i8mm": "Neon matrices (int8)",
    "bf16": "Neon (bfloat16)",
}
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use; sizes in bytes, None where the system does not tell them."""

    device: str
    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``cores`` may be used by this process, ``threads`` is what torch takes of them; sizes in bytes.

    ``capability`` is torch's word for the instructions that its own kernels use, ``instructions`` are those that the
    processor has, as far as the system tells them (Linux).
    """

    system: str
    processor: str
    cores: int
    threads: int
    capability: str
    instructions: tuple[str, ...]
    memory_bytes: int | None
    available_bytes: int | None
    gpus: tuple[Gpu, ...]


def describe_machine() -> Machine:
    """The machine as it is now."""
    facts = read_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace")) if CPUINFO.exists() else {}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(facts),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        instructions=tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags),
        memory_bytes=_memory_bytes(),
        available_bytes=available_bytes(),
        gpus=_gpus(),
    )


def usable_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpuinfo(text: str) -> dict[str, str]:
    """Key and value of the first processor that Linux's /proc/cpuinfo tells of."""
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, colon, value in lines if colon}


def _processor(facts: dict[str, str]) -> str:
    if facts.get("model name"):
        return facts["model name"]
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    """Physical memory; None where the system does not tell it this way (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> tuple[Gpu, ...]:
    found = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free = total = None
        with contextlib.suppress(RuntimeError):  # in use by one who shares it with nobody
            free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(f"cuda:{index}", name, total, free))
    if torch.backends.mps.is_available():
        found.append(Gpu("mps", "Apple GPU"))
    return tuple(found)
