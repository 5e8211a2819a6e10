"""What `mri_synthseg` costs, both ways, beside the original's network in Keras: one run on one head.

    python -m benchmarks.dropin HEAD.nii.gz [--model FILE] [--peers peers] [--threads 2] [--rounds 2]

FILE is the original's synthseg_2.0.h5; without it a random network of its size is used, which finds foreground in the
middle of heads (``benchmarks/inference/networks.py``). Keras is the original's network alone, once or twice
over the padded head: without reading, resampling, smoothing, clean-up and sums. Its environment comes from
``python -m benchmarks.inference.peers FOLDER --make``. Every measurement is a process of its own, contenders in turn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference.measure import Measured, machine, measure, versions
from benchmarks.inference.networks import ARRAYS, PAPER, make_paper, write_arrays

from synthseg.inference.original.prepare import prepare_as_original
from synthseg.inference.original.scan import read_scan
from synthseg.weights import load_weights

WAYS = {
    "default": [],
    "--fast": ["--fast"],
    "--strict-original": ["--strict-original"],
    "--strict-original --fast": ["--strict-original", "--fast"],
}
PASSES = {"default": 2, "--fast": 1}


def main() -> None:
    """Measure and print a table in Markdown."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = given.model or make_paper(Path(scratch) / PAPER)
        commands = {
            f"`mri_synthseg` {way}": _ours(given.head, model, Path(scratch), flags, given.threads)
            for way, flags in WAYS.items()
        }
        if given.peers:
            commands |= _keras(given, model, Path(scratch))
        best: dict[str, Measured] = {}
        for number in range(given.rounds):
            for name, command in commands.items():
                found = measure(command, threads=given.threads)
                print(f"round {number + 1}: {name}: {found.failed or f'{found.cpu_s:.1f} CPU s'}", file=sys.stderr)
                if name not in best or (not found.failed and found.cpu_s < best[name].cpu_s):
                    best[name] = found
    facts = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{machine()}; {facts}; {given.threads} threads, best of {given.rounds}\n")
    print("| | CPU s | wall s | peak GB |\n|:--|--:|--:|--:|")
    for name, found in best.items():
        cells = [found.failed, "", ""] if found.failed else [f"{found.cpu_s:.1f}", f"{found.wall_s:.1f}"]
        print(f"| {name} | {' | '.join([*cells, f'{found.peak_gb:.2f}'][:3])} |")


def _ours(head: Path, model: Path, scratch: Path, flags: Sequence[str], threads: int) -> list[str | Path]:
    start = "from synthseg.cli.mri_synthseg import main; main()"
    results = ["--o", scratch / "seg.nii.gz", "--vol", scratch / "volumes.csv"]
    command = [sys.executable, "-c", start, "--i", head, *results, "--model", model]
    return [*command, "--threads", str(threads), "--cpu", *flags]


def _keras(given: argparse.Namespace, model: Path, scratch: Path) -> dict[str, list[str | Path]]:
    shape = prepare_as_original(read_scan(given.head)).padded.shape
    arrays = write_arrays(load_weights(model), scratch / ARRAYS)
    program = [given.peers / "keras" / "bin" / "python", Path(__file__).parent / "inference" / "peer_keras.py", arrays]
    sides = ["--shape", *map(str, shape), "--threads", str(given.threads)]
    return {f"Keras, the network alone, {way}": [*program, *sides, "--passes", str(n)] for way, n in PASSES.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("--model", type=Path, help="the original's network; default: a random one")
    parser.add_argument("--peers", type=Path, help="folder with the environment keras/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
