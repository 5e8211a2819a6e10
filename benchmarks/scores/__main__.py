"""The yardstick: segment the labelled validation scans under many conditions and write docs/scores.md.

    python -m benchmarks.scores --weights default --threads 2                   # what `make scores` does
    python -m benchmarks.scores --subset quick --weights runs/NAME/NAME.safetensors --out scores/

Results are kept under --out by the weights' hash, the mode, condition and scan: an interrupted run goes on where it
was, and other weights start afresh.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

import torch
from benchmarks.scores.cases import SUBSETS, cases_of
from benchmarks.scores.halves import with_first
from benchmarks.scores.page import RunFacts, write_page

from synthseg.errors import SynthsegError, UsageError
from synthseg.evaluation import Case, CaseFailure, CaseResult, rows_of, run_cases, write_scores
from synthseg.evaluation.yardstick import Outcome
from synthseg.files import atomic_file
from synthseg.inference import MODES, Segmenter

CSF = 24
REPORT = Path("docs/scores.md")


def main() -> int:
    """Segment, score, write. Returns: 0, or 1 when a scan failed."""
    given = _arguments()
    data = given.shared / "data" / "validation"
    if not (data / "oasis").is_dir():
        raise UsageError(data, found="no folder of validation scans", fix="give --shared, the folder that holds data/")
    segmenter = Segmenter(given.weights, given.mode, threads=given.threads, device=given.device)
    chosen = cases_of(data, given.subset)
    started = time.perf_counter()
    outcomes = run_cases(chosen, segmenter, given.out / "kept", unscored=(CSF,), on_done=progress(len(chosen)))
    results = [outcome for outcome in outcomes if isinstance(outcome, CaseResult)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, CaseFailure)]
    if not results:
        print("no case could be scored", file=sys.stderr)
        return 1
    facts = _facts(given, segmenter)
    report = given.report or (REPORT if given.subset == "full" else given.out / f"scores-{given.subset}.md")
    raw = write_scores(rows_of(results), given.out / f"{facts.weights}-{facts.sha256[:12]}-{given.subset}.csv")
    old = report.read_text(encoding="utf-8") if report.is_file() else ""
    with atomic_file(report) as file:
        file.write(with_first(old, write_page(facts, results, failures)).encode())
    minutes = (time.perf_counter() - started) / 60
    print(f"{report} ({raw} holds every number), {len(failures)} failed, {minutes:.1f} minutes")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder that holds data/validation")
    parser.add_argument("--weights", default="default", help="name or file")
    parser.add_argument("--mode", default="default", choices=tuple(MODES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--subset", default="full", choices=SUBSETS)
    parser.add_argument("--out", type=Path, default=Path("scores"), help="where results are kept")
    parser.add_argument(
        "--report", type=Path, help=f"page to write; default {REPORT}, for a smaller subset OUT/scores-SUBSET.md"
    )
    return parser.parse_args()


def progress(total: int, before: str = ""):
    """Print a line a case, ``before`` it the mode, after it the time that is left."""
    started = time.perf_counter()
    made = 0

    def tell(position: int, case: Case, outcome: Outcome) -> None:
        nonlocal made
        if isinstance(outcome, CaseFailure):
            text = f"FAILED {outcome.reason}"
        else:
            made += not outcome.kept
            text = f"Dice {outcome.dice:.3f}" + (" (kept)" if outcome.kept else f", {outcome.seconds:.1f} s")
        each = (time.perf_counter() - started) / max(made, 1)
        left = f", at most {each * (total - position - 1) / 60:.0f} min left" if made else ""
        print(f"{before}[{position + 1}/{total}] {case.name}: {text}{left}", flush=True)

    return tell


def _facts(given: argparse.Namespace, segmenter: Segmenter) -> RunFacts:
    weights = given.weights if given.weights == "default" or "/" not in given.weights else Path(given.weights).name
    command = f"python -m benchmarks.scores --subset {given.subset} --weights {weights} --mode {given.mode}"
    return RunFacts(
        weights=segmenter.model.name,
        sha256=segmenter.model.sha256,
        mode=given.mode,
        machine=f"{processor()}, {os.cpu_count()} logical cores" if segmenter.device.type == "cpu" else _gpu(segmenter),
        threads=given.threads,
        torch=torch.__version__,
        date=date.today().isoformat(),
        subset=given.subset,
        command=f"{command} --threads {given.threads}",
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(segmenter: Segmenter) -> str:
    return torch.cuda.get_device_name(segmenter.device)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SynthsegError as error:
        print(f"scores: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("scores: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
