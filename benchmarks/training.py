"""Seconds a training step: generation, forward, loss, backward and Adam, on this machine's CPU or GPU.

    python benchmarks/training.py --threads 1 --steps 3
    python benchmarks/training.py --device cuda --steps 20 --only 24x96

The label maps are random blocks with the published label table, since the time does not depend on what they show.
The first steps of each case are not counted. On a GPU each part ends with a synchronisation.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import load_protocol
from synthseg.training import Recipe, SegmentationTask, recipe_from_dict

CASES = {"16x64": (16, 64, 2.0), "24x96": (24, 96, 1.0)}  # features, side in voxels, spacing in mm
PRECISIONS = ("float32", "bfloat16")
WARM_UP = 1  # steps before the clock starts: memory is asked for, kernels are chosen


def make_bank(folder: Path) -> Path:
    """Two maps of 192^3 at 1 mm, blocks of 8^3 with random labels."""
    protocol = load_protocol("synthseg-generation")
    rng = np.random.default_rng(0)
    coarse = [rng.choice(protocol.values, (24, 24, 24)) for _ in range(2)]
    maps = [np.kron(each, np.ones((8, 8, 8), dtype=np.int64)) for each in coarse]
    return LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)] * 2, ["a", "b"], protocol).save(folder / "bank.safetensors")


def make_recipe(bank: Path, features: int, side: int, spacing_mm: float, precision: str) -> Recipe:
    """The loss and optimiser of the compact recipes."""
    values: dict[str, Any] = {
        "data": {"bank": bank.name},
        "generation": {"grid": {"shape": [side] * 3, "spacing_mm": spacing_mm, "focus": "brain"}},
        "network": {"features": features, "out_channels": 33},
        "optimizer": {"loss": "dice_ce", "absent": "skip", "precision": precision},
    }
    return recipe_from_dict(values, where="benchmark", folder=str(bank.parent))


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the parts of one step."""

    generation: float
    forward: float  # with the loss
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.generation + self.forward + self.backward + self.update


def measure(recipe: Recipe, device: torch.device, steps: int) -> list[Times]:
    """Times of each step after the warm-up."""
    task = SegmentationTask(recipe, device)
    torch.manual_seed(0)
    network: Any = task.build_network().to(device)
    network = network.to(memory_format=torch.channels_last_3d).train()  # as the training loop has it
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, eps=1e-7)

    def timed(part: Callable[[], Any]) -> tuple[Any, float]:
        begin = time.perf_counter()
        result = part()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result, time.perf_counter() - begin

    times = []
    for step in range(WARM_UP + steps):
        optimizer.zero_grad(set_to_none=True)
        batch, generation = timed(partial(task.batch, step, [0]))
        loss, forward = timed(partial(task.loss, network, batch, step))
        _, backward = timed(loss.backward)
        _, update = timed(optimizer.step)
        times.append(Times(generation, forward, backward, update))
    return times[WARM_UP:]


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{models[0]}, {len(models)} logical cores" if models else cpu
    gpu = f"; {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{cpu}{gpu}; {torch.get_num_threads()} thread(s); {versions}"


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured, after the warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=CASES, help="one network and grid")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print(machine(device))
    print(f"median of {given.steps} steps of one pair, after {WARM_UP} to warm up; seconds")
    heads = ("step", "gener.", "forward", "backw.", "Adam")
    print(f"{'case':>7} {'precision':>9} {' '.join(f'{head:>7}' for head in heads)}  share of generation")
    with tempfile.TemporaryDirectory() as folder:
        bank = make_bank(Path(folder))
        for name, (features, side, spacing_mm) in CASES.items():
            for precision in PRECISIONS if given.only in (None, name) else ():
                times = measure(make_recipe(bank, features, side, spacing_mm, precision), device, given.steps)
                middle = [statistics.median(getattr(t, f.name) for t in times) for f in dataclasses.fields(Times)]
                total = statistics.median(t.total for t in times)
                parts = " ".join(f"{value:7.3f}" for value in (total, *middle))
                print(f"{name:>7} {precision:>9} {parts}  {middle[0] / total:.1%}", flush=True)


if __name__ == "__main__":
    main()
