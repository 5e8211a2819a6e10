"""The first minutes on a GPU: what it can do, where time goes, and which crop, batch and width to train with.

    PYTHONPATH=src python benchmarks/gpu_session.py --device cuda --out results --minutes 12
    python benchmarks/gpu_session.py --device cpu --tiny --out results          (the rehearsal)

In this order, each part bounded in time, each failure (no memory, a compiler's error) written down and passed over:

1. ceilings: matrix products, convolutions, copies;
2. agreement: the same draw made on the device and on the CPU;
3. syncs: which lines of the generator and the step make Python wait for the GPU;
4. generator: milliseconds a pair for crops and batches;
5. training: samples a second, share of the ceiling and peak memory for crops, batches, widths, compiled or not;
6. kernels: the most expensive ones of a generator call and of a step.

``OUT/session.json`` is written anew after every case, so that a session cut short has lost one case. Needs torch,
numpy and safetensors only; without ``--bank`` the maps are random blocks, which take as long.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ceilings
import torch
import training
from torch.profiler import ProfilerActivity, profile

from synthseg.generation import GenerativeModel, LabelBank, paper

CASE_SECONDS = 75.0  # one training case, compilation included
GENERATOR = ((160, 1), (160, 4), (128, 1), (96, 1), (96, 8))  # crop side, batch
TRAINING = (  # what cannot fail first, then the likely winners: the clock cuts off what matters least
    training.Case(24, 160),
    training.Case(24, 96, batch=4),
    training.Case(16, 128, batch=2),
    training.Case(24, 160, norm="instance", optimizer="muon"),  # recipes/synthseg-1mm-gpu.toml, but for its longer side
    training.Case(24, 160, norm="instance", optimizer="muon", compile=True),
    training.Case(24, 160, compile=True),
    training.Case(24, 128, batch=2, compile=True),
    training.Case(24, 96, batch=4, compile=True),
    training.Case(32, 160, compile=True),
    training.Case(16, 160, compile=True),
    training.Case(24, 160, batch=2, compile=True),
    training.Case(16, 128, batch=2, compile=True),
    training.Case(24, 96, batch=8, compile=True),
    training.Case(16, 96, batch=8, compile=True),
    training.Case(32, 128, batch=2, compile=True),
)


class OutOfTimeError(Exception):
    """A part took longer than it may."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError after some seconds, as soon as Python is back from whatever it called."""

    def ring(*_: Any) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Session:
    """What was found so far, on disk after every case."""

    def __init__(self, device: torch.device, out: Path, minutes: float, *, tiny: bool) -> None:
        self.device, self.tiny, self.out = device, tiny, out
        self.end = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"machine": ceilings.machine(device), "failures": {}}
        out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, part: Callable[[], Any], *, seconds: float = 90.0) -> Any:
        """Do one part if there is time for it; keep its result or its failure; None without a result."""
        left = self.end - time.monotonic()
        if left < 5:
            self._failed(name, "no time left")
            return None
        begin = time.monotonic()
        try:
            with at_most(min(seconds, left)):
                result = part()
        except Exception as error:
            self._failed(name, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
            if not isinstance(error, (OutOfTimeError, torch.OutOfMemoryError)):
                (self.out / "failures.txt").open("a").write(f"== {name}\n{traceback.format_exc()}\n")
            result = None
        else:
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        self._clean()
        return result

    def keep(self, key: str, value: Any) -> None:
        """Put a result into the file."""
        self.found[key] = value
        (self.out / "session.json").write_text(json.dumps(self.found, indent=1))

    def _failed(self, name: str, why: str) -> None:
        print(f"{name}: FAILED: {why}", flush=True)
        self.keep("failures", {**self.found["failures"], name: why})

    def _clean(self) -> None:
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def generator(bank: LabelBank, side: int, *, half_size: bool = False) -> GenerativeModel:
    """The paper's model on a crop of some side."""
    config = paper()
    if half_size:
        config = replace(config, deformation=replace(config.deformation, svf_step_mm=2.0))
    return GenerativeModel(replace(config, grid=replace(config.grid, shape=(side,) * 3)), bank)


def agreement(bank: LabelBank, side: int) -> dict[str, float]:
    """How far the same draw on the device and on the CPU lie apart; a tenth of a per cent would be a bug."""
    draw = generator(bank.to("cpu"), side).draw(2, rng=torch.Generator().manual_seed(1))
    here, there = generator(bank.to("cpu"), side).apply(draw), generator(bank, side).apply(draw.to(bank.device))
    moved = (here.target != there.target.cpu()).float().mean()
    return {
        "targets that differ": float(moved),
        "image, mean difference": float((here.image - there.image.cpu()).abs().mean()),
    }


def time_generator(bank: LabelBank, side: int, batch: int, runs: int, *, half_size: bool = False) -> dict[str, float]:
    """Milliseconds a pair, without waiting in between, and the GPU's peak memory."""
    model, device = generator(bank, side, half_size=half_size), bank.device
    rng = torch.Generator(device).manual_seed(0)
    for _ in range(2):
        model.sample(batch, rng=rng)
    training.wait_for(device)
    begin = time.perf_counter()
    for _ in range(runs):
        model.sample(batch, rng=rng)
    launched = time.perf_counter() - begin
    training.wait_for(device)
    pairs = runs * batch
    took = time.perf_counter() - begin
    return {
        "ms_per_pair": 1e3 * took / pairs,
        "ms_to_launch": 1e3 * launched / pairs,
        "peak_gb": training.peak_gb(device),
    }


def find_syncs(bench: training.Bench) -> dict[str, int]:
    """Lines that make Python wait for the GPU during one step, generation included, and how often."""
    if bench.device.type != "cuda":
        return {}
    elements = range(bench.case.batch)
    bench.task.loss(bench.called, bench.task.batch(0, elements), 0).backward()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench.task.loss(bench.called, bench.task.batch(1, elements), 1).backward()
            bench.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught]
    return {place: places.count(place) for place in dict.fromkeys(places)}


def kernels(work: Callable[[], Any], device: torch.device, rows: int = 25) -> str:
    """A table of the most expensive operations of one call, after one to warm up."""
    work()
    training.wait_for(device)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        work()
        training.wait_for(device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table: str = seen.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=70)
    return table


def shrunk(case: training.Case) -> training.Case:
    """A case for the rehearsal: the same path through the code in seconds (a CPU's compiler takes minutes)."""
    side = 32 if case.side > 96 else 16
    return replace(case, features=case.features // 4, side=side, batch=min(case.batch, 2), backend="aot_eager")


def train_cases(session: Session, bank: Path, steps: int, ceiling: float | None) -> None:
    """Part 5: every case, the best by voxels a second last."""
    results: list[dict[str, Any]] = []
    print(training.HEADINGS)
    for case in TRAINING:
        chosen = replace(shrunk(case) if session.tiny else case, precision="bfloat16")

        def measure(chosen: training.Case = chosen) -> training.Result:
            return training.Bench(bank, chosen, session.device).measure(steps)

        result = session.run(f"training {chosen.name}", measure, seconds=CASE_SECONDS)
        if result is None:
            continue
        print(training.row(result, ceiling or float("nan")), flush=True)
        facts = {**asdict(result), "name": chosen.name, "samples_per_s": result.samples_per_s}
        facts |= {"mvoxels_per_s": chosen.voxels / result.whole / 1e6, "tflops": result.compute_tflops}
        facts["ceiling_share"] = result.compute_tflops / ceiling if ceiling else None
        results.append(facts)
        session.keep("training", results)
    for features in sorted({r["case"]["features"] for r in results}):
        best = max((r for r in results if r["case"]["features"] == features), key=lambda r: r["mvoxels_per_s"])
        print(
            f"best of {features} features: {best['name']}, {best['mvoxels_per_s']:.1f} Mvoxel/s, "
            f"{best['samples_per_s']:.2f} samples/s, {best['peak_gb']:.1f} GB"
        )


def profile_parts(session: Session, bank: LabelBank, path: Path) -> None:
    """Parts 3 and 6: what waits, and the kernels of a generator call and of a step."""
    case = replace(shrunk(TRAINING[0]) if session.tiny else TRAINING[0], precision="bfloat16")

    def syncs() -> dict[str, int]:
        return find_syncs(training.Bench(path, case, session.device))

    def step_table() -> str:
        bench = training.Bench(path, case, session.device)
        batch = bench.task.batch(0, range(case.batch))
        return kernels(lambda: bench.task.loss(bench.called, batch, 0).backward(), session.device)

    def generator_table() -> str:
        model, rng = generator(bank, case.side), torch.Generator(bank.device).manual_seed(0)
        return kernels(lambda: model.sample(1, rng=rng), bank.device)

    session.keep("syncs", session.run("syncs", syncs, seconds=60))
    for name, table in (("generator", generator_table), ("step", step_table)):
        text = session.run(f"kernels of the {name}", table, seconds=60)
        (session.out / f"kernels-{name}.txt").write_text(text or "")


def main() -> None:
    """Parse; every part in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: rehearse every line on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for session.json and the tables")
    parser.add_argument("--minutes", type=float, default=12.0, help="no part starts after these")
    parser.add_argument("--bank", type=Path, help="packed label bank instead of random blocks")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = True
    session = Session(device, given.out, given.minutes, tiny=given.tiny)
    print(session.found["machine"], flush=True)
    budget = 0.1 if given.tiny else 0.5
    limits = session.run("ceilings", lambda: ceilings.measure(device, tiny=given.tiny, budget=budget), seconds=60)
    session.keep("ceilings", limits)
    best = session.run("ceiling of a step", partial(ceilings.compute_tflops, "bfloat16", device, tiny=given.tiny))
    print("\n".join(f"  {name}: {value:.3f}" for name, value in (limits or {}).items()))
    runs = 2 if given.tiny else 20
    with tempfile.TemporaryDirectory() as folder:
        path = given.bank.resolve() if given.bank else training.make_bank(Path(folder))
        bank = LabelBank.load(path, device)
        session.keep("agreement", session.run("agreement", lambda: agreement(bank, 32 if given.tiny else 160)))
        print(f"  {session.found['agreement']}")
        pairs: dict[str, Any] = {}
        for half_size in (False, True):
            for side, batch in GENERATOR:
                side = side // 4 if given.tiny else side
                name = f"{side}^3 b{batch}{' SVF at half size' if half_size else ''}"

                work = partial(time_generator, bank, side, batch, runs, half_size=half_size)
                pairs[name] = session.run(f"generator {name}", work, seconds=30)
                print(f"  {pairs[name]}")
                session.keep("generator", pairs)
        profile_parts(session, bank, path)
        train_cases(session, path, 2 if given.tiny else 15, best)
    print(f"{len(session.found['failures'])} failures: {session.found['failures']}")


if __name__ == "__main__":
    main()
