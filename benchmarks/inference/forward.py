"""One forward pass of a network over a random picture, in this process: what it costs, and how far it is from plain.

    python -m benchmarks.inference.forward FILE --side 192 --backend openvino --precision int8 --threads 2

Every contender ends with the posteriors of all voxels: ``eager`` (torch as anybody would call it) holds them at once,
the package's runner hands them out slab by slab, and each slab is dropped, as in the product, unless ``--hold``. Times
are those of a fresh process: the first pass with all that comes before it, a second one only when it is asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.inference.measure import tell, used_so_far

SLAB = 16  # voxels: how many planes are compared, or held, at a time


def main() -> None:
    """Run it, tell what it cost."""
    given = _arguments()
    kept = False
    if given.keep_memory or given.backend not in ("eager", "eager-channels-last"):
        from synthseg.allocator import keep_freed_memory  # what the package's commands do first of all

        kept = keep_freed_memory()
    import torch

    torch.set_num_threads(given.threads)
    from benchmarks.inference.networks import picture

    from synthseg.weights import load_weights

    weights = load_weights(given.weights)
    image = picture(given.side, 100, radius=2)  # foreground in small ones too
    imported = used_so_far()[0]
    passes = eager(weights, given) if given.backend.startswith("eager") else run(weights, given)
    prepared = used_so_far()[0]
    with torch.inference_mode():
        first = timed(passes, image, given, look=looker(given))
        cpu, peak = used_so_far()
        facts: dict[str, Any] = {"imports_cpu_s": imported, "prepare_cpu_s": prepared - imported, **first}
        facts |= {"process_cpu_s": cpu, "peak_gb": peak, "memory_kept": kept}
        if given.again:
            facts["again"] = timed(passes, image, given)
    tell(**facts)


Take = Callable[[int, int], Any]  # posteriors [n, Y, Z, C] of planes start..stop - 1
Passes = Callable[[Any], Take]
Look = Callable[[int, Any], tuple[float, int, int]]


def eager(weights: Any, given: argparse.Namespace) -> Passes:
    """The module, called; softmax over everything."""
    import torch

    from synthseg.weights import build_network

    network = build_network(weights)
    layout = torch.channels_last_3d if given.backend == "eager-channels-last" else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]

    def begin(image: Any) -> Take:
        reduced = given.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if reduced else nullcontext():
            logits = network(image.contiguous(memory_format=layout))
        posteriors = torch.softmax(logits.float(), dim=1)[0]
        return lambda start, stop: posteriors[:, start:stop].permute(1, 2, 3, 0)

    return begin


def run(weights: Any, given: argparse.Namespace) -> Passes:
    """The package's runner, with the backend that is asked for."""
    import torch

    from synthseg.engine.choose import choose, make_backend
    from synthseg.engine.memory import parse_size, plan
    from synthseg.engine.ranges import ranges_of_card
    from synthseg.engine.runner import Runner
    from synthseg.weights import build_network

    choice = choose(given.backend, precision=given.precision, device=torch.device("cpu"), threads=given.threads)
    network: Any = build_network(weights)
    runner = Runner(network, make_backend(choice, ranges=ranges_of_card(weights.card)))
    budget = parse_size(given.memory) if given.memory else None
    planned = plan(network.config, (given.side,) * 3, passes=1, budget_bytes=budget)

    def begin(image: Any) -> Take:
        return runner.begin(image, slab=planned.slab, recompute=planned.recompute).posteriors

    return begin


def timed(passes: Passes, image: Any, given: argparse.Namespace, look: Look | None = None) -> dict[str, Any]:
    """Seconds of one pass to the posteriors of every voxel; what ``look`` does with each slab is not counted."""
    spent = Spent()
    take = spent.of(passes, image)
    held, seen = [], [(0.0, 0, 0)]
    for start in range(0, given.side, SLAB):
        part = spent.of(take, start, min(start + SLAB, given.side))
        if given.hold:
            held.append(part)
        if look is not None:
            seen.append(look(start, part.float().numpy()))
    facts: dict[str, Any] = {"forward_cpu_s": spent.cpu, "forward_wall_s": spent.wall}
    if look is not None:
        differences, agreed, foreground = zip(*seen, strict=True)
        shares = {"argmax_agreement": sum(agreed) / given.side**3, "foreground": sum(foreground) / given.side**3}
        facts |= {"largest_difference": max(differences), **shares}
    return facts


def looker(given: argparse.Namespace) -> Look | None:
    """Write each slab [n, Y, Z, C], or compare it.

    Returns: a function that tells a slab's largest difference to what was written, voxels of the same label as there,
        and voxels that are not background.
    """
    import numpy as np

    def path(start: int) -> Path:
        folder: Path = given.write or given.against
        return folder / f"{given.side}-{start:03d}.npy"

    def write(start: int, values: Any) -> tuple[float, int, int]:
        path(start).parent.mkdir(parents=True, exist_ok=True)
        np.save(path(start), values)
        return 0.0, int(values[..., 0].size), int((values.argmax(-1) > 0).sum())

    def compare(start: int, values: Any) -> tuple[float, int, int]:
        written, labels = np.load(path(start)), values.argmax(-1)
        same = int((labels == written.argmax(-1)).sum())
        return float(np.abs(values - written).max()), same, int((labels > 0).sum())

    if given.write:
        return write
    return compare if given.against else None


class Spent:
    """Processor and wall seconds inside the calls made through it."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def of(self, function: Callable[..., Any], *values: Any) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = function(*values)
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a weights file, with int8 ranges for int8")
    parser.add_argument("--side", type=int, default=192, help="voxels")
    parser.add_argument(
        "--backend", default="eager", help="eager, eager-channels-last, or one of the package's: torch, openvino, ..."
    )
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", help="budget of the runner, e.g. 2G")
    parser.add_argument("--keep-memory", action="store_true", help="of eager: freed memory kept, as in our commands")
    parser.add_argument("--hold", action="store_true", help="keep all posteriors to the end")
    parser.add_argument("--again", action="store_true", help="a second, warm pass")
    parser.add_argument("--write", type=Path, help="folder for the posteriors, to be compared with")
    parser.add_argument("--against", type=Path, help="folder of written posteriors: compare with them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
