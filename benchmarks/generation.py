"""How long the generative model takes: seconds of each stage, for one pair at a time.

    python benchmarks/generation.py --bank banks/adults.safetensors --threads 1

Each case draws and applies ``--runs`` different pairs after one to warm up, and reports medians. ``wall`` is what a
training step waits; ``cpu`` is processor time of all threads, which other work on the machine hardly changes. On a GPU
(``--device cuda``) the clock is read after synchronising, and processor time means little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch

from synthseg.errors import SynthsegError
from synthseg.generation import GenerationConfig, GenerativeModel, LabelBank, Pair, paper
from synthseg.generation.acquisition import apply_acquisition
from synthseg.generation.config import GridPrior
from synthseg.generation.intensity import apply_bias, apply_gamma


class StageClock:
    """Wall and processor seconds of named stages."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wait()
        self.wall[name].append(time.perf_counter() - wall)
        self.cpu[name].append(time.process_time() - cpu)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def make_pair(model: GenerativeModel, clock: StageClock, rng: torch.Generator) -> Pair:
    """``model.sample(1)``, stage by stage as ``GenerativeModel.apply`` does it with options off."""
    config = model.config
    with clock.stage("draw"):
        draw = model.draw(1, rng=rng)
    with clock.stage("labels and mixture"):  # deformation, sampling, lesions, strip, flip, Gaussians
        labels, image = model.mixture(draw)
    with clock.stage("bias"):
        image = apply_bias(image, draw.bias)
    with clock.stage("gamma"):
        image = apply_gamma(image, draw.gamma, clip_max=config.intensity.clip_max)
    with clock.stage("acquisition"):
        image = apply_acquisition(image, draw.acquisition, config.acquisition, config.grid)
    with clock.stage("target"):
        target = model.tables.target_channel[labels]
    return Pair(image, target)


def report(name: str, config: GenerationConfig, bank: LabelBank, runs: int) -> None:
    """Time one config and print its table."""
    model = GenerativeModel(config, bank)
    clock = StageClock(bank.device)
    rng = torch.Generator(bank.device).manual_seed(0)
    # Warm up, and make sure that what is timed is what training calls.
    ours = make_pair(model, StageClock(bank.device), rng)
    theirs = model.sample(1, rng=torch.Generator(bank.device).manual_seed(0))
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise RuntimeError("the stages timed here are no longer those of GenerativeModel: mend make_pair")
    for _ in range(runs):
        with clock.stage("all"):
            make_pair(model, clock, rng)
    print(f"\n{name}: median of {runs} pairs, seconds (smallest to largest)\n{'stage':<19}{'wall':>8}{'cpu':>8}")
    for stage, wall in clock.wall.items():
        spread = f"  ({min(wall):.3f} to {max(wall):.3f})"
        print(f"{stage:<19}{statistics.median(wall):>8.3f}{statistics.median(clock.cpu[stage]):>8.3f}{spread}")


def machine(device: torch.device) -> str:
    """Processor or GPU, load and versions, in one line each."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, synthseg {metadata.version('synthseg')}"
    return (
        f"machine: {model}, {os.cpu_count()} cores, load before the start {load}\n"
        f"threads: {torch.get_num_threads()}\nversions: {versions}, {platform.system()}"
    )


def main() -> int:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True, help="packed label bank")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--runs", type=int, default=7, help="pairs per case (default: 7)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(max(arguments.threads, 1))
    device = torch.device(arguments.device)
    try:
        bank = LabelBank.load(arguments.bank, device)
    except SynthsegError as error:
        parser.error(str(error))
    print(machine(device))
    print(f"bank: {arguments.bank.name}, {len(bank)} maps")
    report("160 x 160 x 160 at 1 mm, paper", paper(), bank, max(arguments.runs, 1))
    coarse = replace(paper(), grid=GridPrior(shape=(96, 96, 96), spacing_mm=2.0, focus="brain"))
    report("96 x 96 x 96 at 2 mm, paper", coarse, bank, max(arguments.runs, 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
