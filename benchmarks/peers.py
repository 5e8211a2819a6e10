"""One training pair at 160^3 voxels: this package, TorchIO and cornucopia, in turn, on one label map and machine.

    python benchmarks/peers.py --map training_seg_01.nii.gz --peers-python peers/bin/python --threads 1

The peers are not dependencies of this package. Give the interpreter of an environment that has torch (the same version
as here, for a fair race), nibabel, torchio and cornucopia; a peer that is not installed there is left out, and said so.

Every case lives in a process of its own, which stays alive; each round asks each of them for one pair, one after the
other, while the others sleep. Pairs differ. Reported: the median over the rounds after one to warm up, of wall seconds
and of processor seconds (all threads; what else the machine does hardly changes them), and the process's peak memory. A
case that gives no pair within ``--timeout`` seconds is stopped and reported as such.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

SIDE = 160  # voxels of 1 mm
CASES = {
    "ours: paper": "preset paper: SVF integrated at 4 mm",
    "ours: paper, SVF at half size": "the same with svf_step_mm = 2, the original's grid",
    "ours: original": "preset original: SVF at half size, the released code's values",
    "torchio": "a 160^3 crop; affine, elastic, labels to image, bias, gamma, blur, anisotropy",
    "cornucopia": "SynthFromLabelTransform(), all defaults, on a 160^3 crop",
    "cornucopia: linear": "the same with order=1 (linear fields) and gmm_fwhm=0 (no texture smoothing)",
}


# What a process of one case does


def crop(values: Any) -> Any:
    """The middle 160^3 voxels [160, 160, 160], labels numbered from 0: peers take each value up to the largest."""
    import numpy as np

    numbered = np.unique(values, return_inverse=True)[1].reshape(values.shape)
    first = [max((n - SIDE) // 2, 0) for n in values.shape]
    part = numbered[tuple(slice(start, start + SIDE) for start in first)]
    return np.pad(part, [(0, SIDE - n) for n in part.shape])


def read_map(path: Path) -> Any:
    """Label values [X, Y, Z]."""
    import nibabel
    import numpy as np

    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj).astype(np.int32)


def make_ours(case: str, path: Path) -> Callable[[], Any]:
    """One pair a call."""
    import torch

    from synthseg.generation import GenerativeModel, original, paper
    from synthseg.generation.pack import pack_files
    from synthseg.labels.protocol import load_protocol

    config = original() if case.endswith("original") else paper()
    if case.endswith("half size"):
        config = replace(config, deformation=replace(config.deformation, svf_step_mm=2.0))
    model = GenerativeModel(config, pack_files([path], load_protocol("synthseg-generation")))
    rng = torch.Generator().manual_seed(0)
    return lambda: model.sample(1, rng=rng).image


def make_torchio(_: str, path: Path) -> Callable[[], Any]:
    """The transforms nearest to the model's stages, with ranges as near as their parameters come."""
    import torch
    import torchio

    labels = torch.from_numpy(crop(read_map(path)))[None].short()
    transform = torchio.Compose(
        [
            torchio.RandomAffine(scales=0.2, degrees=15),
            torchio.RandomElasticDeformation(num_control_points=10, max_displacement=8),
            torchio.RandomLabelsToImage(label_key="labels", default_mean=(0, 255), default_std=(0, 35)),
            torchio.RandomBiasField(),
            torchio.RescaleIntensity((0, 1)),
            torchio.RandomGamma(log_gamma=(-0.5, 0.5)),
            torchio.RandomBlur(std=(0, 1)),
            torchio.RandomAnisotropy(downsampling=(1, 8)),
        ]
    )
    return lambda: transform(torchio.Subject(labels=torchio.LabelMap(tensor=labels))).image_from_labels.data


def make_cornucopia(case: str, path: Path) -> Callable[[], Any]:
    """Its own SynthSeg transform."""
    import cornucopia
    import torch

    labels = torch.from_numpy(crop(read_map(path)))[None].long()
    options: dict[str, Any] = {"order": 1, "gmm_fwhm": 0} if case.endswith("linear") else {}
    transform = cornucopia.SynthFromLabelTransform(**options)

    def pair() -> Any:
        made = transform(labels)
        return made["image"] if hasattr(made, "keys") else made[0]

    return pair


def worker(case: str, path: Path, threads: int) -> None:
    """Answer each line of standard input with one pair's times, as JSON on standard output."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    name = case.partition(":")[0]
    try:
        importlib.import_module("synthseg" if name == "ours" else name)
        import torch
    except ImportError as error:
        return answer(missing=str(error))
    torch.set_num_threads(threads)
    make = {"ours": make_ours, "torchio": make_torchio, "cornucopia": make_cornucopia}[name]
    pair = make(case, path)
    package = "synthseg" if name == "ours" else name
    answer(version=f"{package} {metadata.version(package)}, torch {torch.__version__}")
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        image = pair()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        sizes = [int(n) for n in image.shape[-3:]]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
        answer(wall=wall, cpu=cpu, peak_gb=peak, shape=sizes, usable=bool(image.float().isfinite().all()))
    return None


# What the process that was started does


@dataclass
class Contender:
    """One case's process and its times."""

    case: str
    process: subprocess.Popen[str]
    version: str = ""
    times: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""  # why it takes no part any more

    def ask(self, timeout: float, *, word: str = "pair\n") -> dict[str, Any] | None:
        """Send a word, wait for the answer; without one the contender ends."""
        if self.ended:
            return None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(word)
            self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if line:
            facts: dict[str, Any] = json.loads(line)
            self.ended = f"not installed: {facts['missing']}" if "missing" in facts else ""
            return facts
        self.ended = "failed (see above)" if ready else f"no pair within {timeout:.0f} s"
        self.process.kill()
        return None

    def median(self, key: str) -> float:
        """Over the rounds after the first."""
        return statistics.median(each[key] for each in self.times[1:])


def start(case: str, given: argparse.Namespace) -> Contender:
    """Start a case's process."""
    python = sys.executable if case.startswith("ours") else given.peers_python
    command = [str(python), str(Path(__file__).resolve()), "--worker", case]
    command += ["--map", str(given.map.resolve()), "--threads", str(given.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    environment["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(given.threads)
    pipe = subprocess.PIPE
    return Contender(case, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))


def race(contenders: list[Contender], rounds: int, timeout: float) -> None:
    """Ask each for a pair in turn, ``rounds`` times after one to warm up."""
    for number in range(rounds + 1):
        for contender in contenders:
            facts = contender.ask(timeout)
            if facts is not None and "wall" in facts:
                if facts["shape"] != [SIDE] * 3 or not facts["usable"]:
                    contender.ended = f"gave an image of shape {facts['shape']}, finite: {facts['usable']}"
                contender.times.append(facts)
                note = "warm-up" if number == 0 else f"round {number}"
                print(f"  {note}: {contender.case}: {facts['cpu']:.2f} CPU s", file=sys.stderr, flush=True)


def machine() -> str:
    """What the numbers were measured on, in words."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    load = f"load before the start {os.getloadavg()[0]:.1f}"
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores, {load}, {platform.system()}"


def print_table(contenders: list[Contender], rounds: int, original_s: float | None) -> None:
    """Medians, and how many times ours goes into each."""
    print(f"median of {rounds} pairs each, in turn; seconds (smallest to largest), GB")
    print(f"{'case':<31}{'CPU':>7}{'wall':>7}{'peak GB':>9}{'/ ours':>8}   spread of CPU")
    usable = [c for c in contenders if len(c.times) > 1]
    base = next((c.median("cpu") for c in usable if c.case == "ours: paper, SVF at half size"), float("nan"))
    for each in contenders:
        if each not in usable:
            print(f"{each.case:<31}  {each.ended}")
            continue
        cpu = [facts["cpu"] for facts in each.times[1:]]
        row = f"{each.median('cpu'):>7.2f}{each.median('wall'):>7.2f}{each.times[-1]['peak_gb']:>9.2f}"
        print(f"{each.case:<31}{row}{each.median('cpu') / base:>8.1f}   {min(cpu):.2f} to {max(cpu):.2f}  {each.ended}")
    if original_s:
        print(
            f"the original's {original_s:g} CPU s, measured elsewhere: "
            f"ours with SVF at half size is {base / original_s:.3f} of it"
        )
    for each in contenders:
        print(f"  {each.case}: {CASES[each.case]}; {each.version or each.ended}")


def main() -> None:
    """Parse; race or be raced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=Path, required=True, help="a whole-head label map of the generation protocol")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has torchio and cornucopia")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--timeout", type=float, default=100.0, help="seconds a pair may take before a case is stopped")
    parser.add_argument(
        "--original-seconds", type=float, help="CPU seconds of the original, measured elsewhere, to cite"
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these cases")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.map, given.threads)
    if not given.map.is_file():
        parser.error(f"--map {given.map}: no such file")
    print(f"machine: {machine()}; {given.threads} thread(s)", flush=True)
    contenders = [start(case, given) for case in given.only or CASES]
    for each in contenders:
        each.version = (each.ask(120, word="") or {}).get("version", "")
    race(contenders, given.runs, given.timeout)
    print_table(contenders, given.runs, given.original_seconds)
    for each in contenders:
        assert each.process.stdin is not None
        each.process.stdin.close()
        each.process.wait(30)
    if given.json:
        table = {c.case: {"version": c.version, "ended": c.ended, "pairs": c.times} for c in contenders}
        given.json.write_text(json.dumps({"machine": machine(), "threads": given.threads, "cases": table}, indent=1))
    return None


if __name__ == "__main__":
    main()
