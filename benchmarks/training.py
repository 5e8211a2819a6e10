"""A training step, in parts and as a whole: samples a second, and the share of what the machine can do.

    python benchmarks/training.py --threads 1 --steps 3
    python benchmarks/training.py --device cuda --steps 20 --only 24x160

``parts`` are timed one after the other, each with a synchronisation at its end on a GPU. ``whole`` is what a run does:
nothing waits, and on a GPU the next batch is made meanwhile. Operations are counted from the network's own layers
(forward, gradients of weights and of inputs; convolutions only) and compared with the ceiling, the best matrix product
or convolution of the same precision, measured first. The label maps are random blocks with the published label table,
since the time does not depend on what they show. The first steps of each case are not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceilings import DTYPES, compute_tflops, machine
from torch import nn

from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.training import Recipe, SegmentationTask, recipe_from_dict
from synthseg.training.optimizers import make_optimizer
from synthseg.training.prefetch import Prefetch

WARM_UP = 2  # steps before the clock starts: memory is asked for, kernels are chosen or compiled


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained."""

    features: int
    side: int  # voxels
    spacing_mm: float = 1.0
    batch: int = 1
    precision: str = "float32"
    compile: bool = False
    norm: str = "batch"
    optimizer: str = "adam"
    backend: str = "inductor"  # of torch.compile; another one traces the same but needs no compiler

    @property
    def name(self) -> str:
        compiled = " compiled" if self.compile else ""
        kind = "" if (self.norm, self.optimizer) == ("batch", "adam") else f" {self.norm} {self.optimizer}"
        return f"{self.features}x{self.side} b{self.batch} {self.precision}{kind}{compiled}"

    @property
    def voxels(self) -> int:
        """Of a batch."""
        return self.batch * self.side**3


CASES = {"16x64": Case(16, 64, 2.0), "24x96": Case(24, 96), "24x160": Case(24, 160)}


def make_bank(folder: Path) -> Path:
    """Two maps of 192^3 at 1 mm, blocks of 8^3 with random labels."""
    protocol = load_protocol("synthseg-generation")
    rng = np.random.default_rng(0)
    coarse = [rng.choice(protocol.values, (24, 24, 24)) for _ in range(2)]
    maps = [np.kron(each, np.ones((8, 8, 8), dtype=np.int64)) for each in coarse]
    return LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)] * 2, ["a", "b"], protocol).save(folder / "bank.safetensors")


def make_recipe(bank: Path, case: Case) -> Recipe:
    """The loss of the shipped recipes, the case's network and optimiser; no optional stage."""
    values: dict[str, Any] = {
        "data": {"bank": bank.name},
        "generation": {"grid": {"shape": [case.side] * 3, "spacing_mm": case.spacing_mm, "focus": "brain"}},
        "network": {"features": case.features, "out_channels": 33, "norm": case.norm},
        "optimizer": {
            "loss": "dice_ce",
            "absent": "skip",
            "precision": case.precision,
            "batch": case.batch,
            "optimizer": case.optimizer,
        },
    }
    return recipe_from_dict(values, where="benchmark", folder=str(bank.parent))


def step_flops(config: UNetConfig, side: int, batch: int) -> tuple[float, float]:
    """Operations of a forward pass and of a whole step (two a multiplication), counted layer by layer.

    The backward pass computes each convolution's gradient for its weights and for its input, as many operations each
    as forward; the input of the first convolution needs none.
    """
    counts: list[float] = []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        counts.append(2.0 * layer.weight.numel() * output[:, 0].numel())

    with torch.device("meta"):
        network = UNet(config)
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d):
                layer.register_forward_hook(count)
        network(torch.empty(batch, config.in_channels, side, side, side))
    return sum(counts), 3 * sum(counts) - counts[0]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the parts of one step, each to its end."""

    generation: float
    forward: float  # with the loss
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.generation + self.forward + self.backward + self.update


@dataclasses.dataclass(frozen=True)
class Result:
    """What one case gave."""

    case: Case
    parts: Times  # medians
    whole: float  # seconds a step without waiting
    peak_gb: float  # of the GPU, or of the process
    step_tflop: float

    @property
    def samples_per_s(self) -> float:
        return self.case.batch / self.whole

    @property
    def compute_tflops(self) -> float:
        """10^12 operations a second of forward and backward, without generation and update."""
        return self.step_tflop / (self.parts.forward + self.parts.backward)


class Bench:
    """A network in training as the loop has it: channels innermost, the recipe's optimiser; without its guard."""

    def __init__(self, bank: Path, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        recipe = make_recipe(bank, case)
        self.task = SegmentationTask(recipe, device)
        torch.manual_seed(0)
        network: Any = self.task.build_network().to(device)
        self.network = network.to(memory_format=torch.channels_last_3d).train()
        self.optimizer = make_optimizer(recipe.optimizer, self.network)
        self.step_tflop = step_flops(recipe.network, case.side, case.batch)[1] / 1e12
        self.called = torch.compile(self.network, backend=case.backend) if case.compile else self.network

    def measure(self, steps: int) -> Result:
        """Times of ``steps`` steps in parts and as many as a whole."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        parts = [self._parts(step) for step in range(WARM_UP + steps)][WARM_UP:]
        names = [f.name for f in dataclasses.fields(Times)]
        middle = Times(**{name: statistics.median(getattr(each, name) for each in parts) for name in names})
        return Result(self.case, middle, self._whole(steps), peak_gb(self.device), self.step_tflop)

    def _parts(self, step: int) -> Times:
        self.optimizer.zero_grad(set_to_none=True)
        batch, generation = self._timed(partial(self.task.batch, step, range(self.case.batch)))
        loss, forward = self._timed(partial(self.task.loss, self.called, batch, step))
        _, backward = self._timed(loss.backward)
        _, update = self._timed(self.optimizer.step)
        return Times(generation, forward, backward, update)

    def _timed(self, part: Callable[[], Any]) -> tuple[Any, float]:
        begin = time.perf_counter()
        result = part()
        wait_for(self.device)
        return result, time.perf_counter() - begin

    def _whole(self, steps: int) -> float:
        prefetch = Prefetch(self.task.batch, self.device)
        elements = range(self.case.batch)
        begin = 0.0
        for step in range(1 + steps):  # the first makes its own batch, and is not counted
            if step == 1:
                wait_for(self.device)
                begin = time.perf_counter()
            batch = prefetch.take(step, elements)
            self.optimizer.zero_grad(set_to_none=True)
            self.task.loss(self.called, batch, step).backward()
            self.optimizer.step()
            prefetch.begin(step + 1, elements)
        wait_for(self.device)
        seconds = (time.perf_counter() - begin) / steps
        prefetch.close()
        return seconds


def wait_for(device: torch.device) -> None:
    """Until a GPU has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> float:
    """Most memory so far: the GPU's allocated by torch, or this process's resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def row(result: Result, ceiling_tflops: float) -> str:
    """One line of the table."""
    parts, case = result.parts, result.case
    seconds = " ".join(f"{value:8.4f}" for value in (result.whole, *dataclasses.astuple(parts)))
    share = result.compute_tflops / ceiling_tflops
    return (
        f"{case.name:<27} {seconds} {result.samples_per_s:9.2f} {result.compute_tflops:8.3f} {share:8.1%} "
        f"{parts.generation / parts.total:7.1%} {result.peak_gb:7.2f}"
    )


HEADINGS = (
    f"{'case':<27} {'whole':>8} {'gener.':>8} {'forward':>8} {'backw.':>8} {'update':>8} "
    f"{'samples/s':>9} {'TFLOP/s':>8} {'ceiling':>8} {'gener.':>7} {'peakGB':>7}"
)


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured, after the warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--only", choices=CASES, nargs="+", default=["16x64", "24x96"], help="features x side")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = True
    print(machine(device))
    ceilings = {name: compute_tflops(name, device) for name in given.precision}
    print("ceilings: " + ", ".join(f"{name} {value:.3f} TFLOP/s" for name, value in ceilings.items()))
    print(f"medians of {given.steps} steps after {WARM_UP} to warm up; seconds\n{HEADINGS}")
    with tempfile.TemporaryDirectory() as folder:
        bank = make_bank(Path(folder))
        for name in given.only:
            for precision in given.precision:
                case = dataclasses.replace(CASES[name], precision=precision, batch=given.batch, compile=given.compile)
                print(row(Bench(bank, case, device).measure(given.steps), ceilings[precision]), flush=True)


if __name__ == "__main__":
    main()
