"""What the machine can do: the ceilings that times of training and generation are compared with.

    python benchmarks/ceilings.py --threads 1
    python benchmarks/ceilings.py --device cuda

Matrix products (float32, bfloat16), the convolutions that make up most of the UNet, and copies. Each figure is the best
of several repetitions after one to warm up: a ceiling, not an average. bfloat16 on a processor without instructions for
it is emulated, and slow. On a GPU float32 is measured as it is computed by default, TF32 for convolutions only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# channels in, channels out, side at full size: the published network's widest places (24 features, 160^3)
CONVOLUTIONS = ((24, 24, 160), (72, 24, 160), (144, 48, 80), (96, 96, 40))


def best_seconds(work: Callable[[], Any], device: torch.device, *, budget: float = 2.0, most: int = 20) -> float:
    """Seconds of the fastest call of as many as fit into ``budget`` (2 at least), after one to warm up."""
    work()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or (spent < budget and calls < most):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        took = time.perf_counter() - begin
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(side: int, dtype: torch.dtype, device: torch.device, *, budget: float = 2.0) -> float:
    """10^12 operations a second of a product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b, device, budget=budget) / 1e12


def convolution_tflops(
    n_in: int, n_out: int, side: int, dtype: torch.dtype, device: torch.device, *, budget: float = 2.0
) -> float:
    """The same of a 3^3 convolution, forward, channels innermost."""
    last = torch.channels_last_3d
    x: Tensor = torch.randn(1, n_in, side, side, side, device=device).to(dtype).contiguous(memory_format=last)
    weight = torch.randn(n_out, n_in, 3, 3, 3, device=device).to(dtype).contiguous(memory_format=last)
    seconds = best_seconds(lambda: functional.conv3d(x, weight, padding=1), device, budget=budget)
    return 2 * 27 * n_in * n_out * side**3 / seconds / 1e12


def compute_tflops(precision: str, device: torch.device, *, tiny: bool = False, budget: float = 2.0) -> float:
    """The ceiling for a step: the best of a matrix product and the UNet's fastest convolution.

    Both, since either library may be the slower one: on some processors float32 products reach half of convolutions.
    """
    dtype, cuda = DTYPES[precision], device.type == "cuda"
    side = 256 if tiny else 8192 if cuda else 2048
    product = matmul_tflops(side, dtype, device, budget=budget)
    with torch.no_grad():
        return max(product, convolution_tflops(96, 96, 40 if cuda else 20, dtype, device, budget=budget))


def copy_gb_per_s(megabytes: int, device: torch.device, *, budget: float = 2.0) -> float:
    """Gigabytes a second of a copy from and to memory, bytes read and bytes written both counted."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * megabytes * 2**20 / best_seconds(lambda: target.copy_(source), device, budget=budget) / 1e9


def measure(device: torch.device, *, tiny: bool = False, budget: float = 2.0) -> dict[str, float]:
    """Every ceiling by name: TFLOP/s, and GB/s for the copy."""
    side = 256 if tiny else 8192 if device.type == "cuda" else 2048
    megabytes = 16 if tiny else 4096 if device.type == "cuda" else 512
    found = {"copy GB/s": copy_gb_per_s(megabytes, device, budget=budget)}
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            found[f"matmul {name}"] = matmul_tflops(side, dtype, device, budget=budget)
            for n_in, n_out, full in CONVOLUTIONS:
                shrunk = full // 8 if tiny else full if device.type == "cuda" else full // 2
                speed = convolution_tflops(n_in, n_out, shrunk, dtype, device, budget=budget)
                found[f"conv {n_in}->{n_out} at {shrunk}^3 {name}"] = speed
    return found


def machine(device: torch.device) -> str:
    """What the numbers were measured on, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    load = f"load before the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{gpu}{cpu}, {os.cpu_count()} logical cores, {load}; {torch.get_num_threads()} thread(s); {versions}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to rehearse")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print(machine(device))
    found = measure(device, tiny=given.tiny)
    for name, value in found.items():
        unit = "GB/s" if "GB/s" in name else "TFLOP/s"
        print(f"{name.removesuffix(' GB/s'):<34}{value:>10.3f} {unit}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(device), "ceilings": found}, indent=1))


if __name__ == "__main__":
    main()
