"""Every bar of inference in one run: forward passes, whole scans, peers, precision, many scans.

    python -m benchmarks.inference --out scores/inference                       # what `make bench-inference` does
    python -m benchmarks.inference --side 96 --only forward --rounds 1          # a quick look
    python -m benchmarks.inference --peers peers --paper stand-in.safetensors   # with peers and a trained network

Every measurement is a process of its own, contenders in turn, kept under --out by the state of the code: an interrupted
run goes on where it was, changed code starts afresh. Peers need environments: ``python -m benchmarks.inference.peers
FOLDER --make``. Written: --out/results.json with every number, --out/inference.md, and with --report docs/benchmarks.md
the part of that page between its marks.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.inference.measure import code_state, machine, measure, versions
from benchmarks.inference.page import into, write_page
from benchmarks.inference.results import compare_command, run_all, write_json
from benchmarks.inference.tasks import GROUPS, PLAIN, Setup, Task, tasks_of

from synthseg.errors import SynthsegError, UsageError
from synthseg.files import atomic_file
from synthseg.weights.card import read_card

ROUNDS = {"forward": 3, "scan": 2, "peers": 1, "many": 1, "accuracy": 1, "start": 5}


def main() -> int:
    """Measure, write. Returns: 0, or 1 when something could not be measured that was asked for."""
    given = _arguments()
    data = given.shared / "data" / "validation"
    if not (data / "oasis").is_dir():
        raise UsageError(data, found="no folder of validation scans", fix="give --shared, the folder that holds data/")
    setup = _setup(given, data)
    _make_inputs(setup, given)
    groups = tuple(given.only or GROUPS)
    tasks = tasks_of(setup, groups)
    rounds = {group: given.rounds or ROUNDS[group] for group in groups}
    state, before, began = code_state(), os.getloadavg()[0], time.perf_counter()
    kept = given.out / "kept" / f"{given.state or state}-{_settings_key(given, setup)}"
    if given.state and given.state != state:
        print(f"results of {given.state} are used; the code is now {state}", file=sys.stderr)
    options: dict[str, Any] = {"threads": setup.threads, "timeout_s": given.timeout, "after": _as_plain(tasks)}
    results = run_all(tasks, rounds, kept, **options)
    if code_state() != state:
        print("the code has changed since the run began: its results are of both states", file=sys.stderr)
        state += ", changed during the run"
    facts = _facts(given, setup, rounds, given.state or state, f"{before:.1f} and {os.getloadavg()[0]:.1f}")
    write_json(results, facts, given.out / "results.json")
    page = write_page(results, facts)
    with atomic_file(given.out / "inference.md") as file:
        file.write(page.encode())
    if given.report:
        document = into(given.report.read_text(encoding="utf-8"), page, given.report)
        with atomic_file(given.report) as file:
            file.write(document.encode())
    minutes = (time.perf_counter() - began) / 60
    print(f"{page}\n{given.out / 'inference.md'} and results.json, {minutes:.1f} minutes")
    return 1 if results.failed else 0


def _setup(given: argparse.Namespace, data: Path) -> Setup:
    return Setup(
        work=given.out / "work" / _inputs_key(given.paper),
        data=data,
        peers=given.peers,
        threads=given.threads,
        side=given.side,
        small=0 if given.small == given.side else given.small,
        memory=given.memory,
        scan_memory=given.scan_memory,
        heavy=not given.light,
        compiled=given.compile,
        subset=given.subset,
    )


def _inputs_key(paper: Path | None) -> str:
    """Folder name of what :mod:`benchmarks.inference.networks` makes: by the weights given and how it makes them."""
    recipe = hashlib.sha256(Path(__file__).with_name("networks.py").read_bytes()).hexdigest()[:8]
    return f"{str(read_card(paper)['sha256'])[:12] if paper else 'random'}-{recipe}"


def _settings_key(given: argparse.Namespace, setup: Setup) -> str:
    """Folder name of what results depend on besides the code and their own names."""
    settings = (setup.work.name, setup.threads, setup.memory, setup.scan_memory, setup.subset, str(given.shared))
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _make_inputs(setup: Setup, given: argparse.Namespace) -> None:
    """Networks and the conformed head, in a process of their own: this one stays small."""
    words = ["-m", "benchmarks.inference.networks", str(setup.work), "--head", str(setup.scans["head"])]
    words += ["--paper", str(given.paper)] if given.paper else []
    made = measure((sys.executable, *words), threads=setup.threads)
    if made.failed:
        raise SynthsegError("what to measure with", found=made.failed, fix=f"see {shlex.join(words)}")


def _as_plain(tasks: list[Task]) -> Any:
    """Compare a scan's labels with plain's, when both are there."""
    plain = {task.name.rpartition("/")[0]: task.out for task in tasks if task.name.endswith(f"/{PLAIN}")}

    def after(task: Task) -> dict[str, Any]:
        reference = plain.get(task.name.rpartition("/")[0])
        if task.group != "scan" or task.out is None or reference is None or not reference.is_file():
            return {}
        compared = compare_command(reference, task.out)
        return {"as_plain": compared.said} if not compared.failed else {"not_compared": compared.failed}

    return after


def _facts(given: argparse.Namespace, setup: Setup, rounds: dict[str, int], state: str, load: str) -> dict[str, Any]:
    card = read_card(setup.paper)
    return {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.inference --side {setup.side} --threads {setup.threads}",
        "machine": machine(),
        "threads": setup.threads,
        "side": setup.side,
        "small": setup.small,
        "subset": setup.subset,
        "memory": given.memory,
        "scan_memory": given.scan_memory,
        "load": load,
        "rounds": rounds,
        "versions": versions(),
        "code": state,
        "paper": f"{card['name']} ({card.get('data')}, {card.get('steps') or 'no'} steps)",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder that holds data/validation")
    parser.add_argument("--out", type=Path, default=Path("scores/inference"), help="where results are kept")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="these groups")
    parser.add_argument("--rounds", type=int, help=f"of every group; default {ROUNDS}")
    parser.add_argument("--side", type=int, default=192, help="voxels of the forward pass")
    parser.add_argument("--small", type=int, default=96, help="voxels of one that is run warm too; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paper", type=Path, help="weights of the paper's size; default: random ones")
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--memory", help="budget of our forward passes, e.g. 2G; default: the package's own choice")
    parser.add_argument("--scan-memory", help="the same of `synthseg segment`")
    parser.add_argument("--light", action="store_true", help="leave out what needs 14 GB: plain at 256^3")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--subset", default="full", choices=("full", "quick"), help="labelled brains: 11 or 3")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a process is stopped")
    parser.add_argument("--report", type=Path, help="also put the page into this document, between its marks")
    parser.add_argument("--state", help="take kept results of this state of the code, whatever it is now")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SynthsegError as error:
        print(f"inference: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("inference: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
