"""The proof of the robust hierarchy and what goes with it: the second half of docs/scores.md.

    python -m benchmarks.plus --threads 2                                          # what `make scores-plus` does
    python -m benchmarks.plus --parts robust denoiser --weights tissues=runs/S1.safetensors denoiser=runs/D.safetensors

Every result is kept under --out by the networks' hashes: an interrupted run goes on where it was, networks that are
missing are said to be, and what was measured without them stays. Segmentations of the parts robust and quality are
shared: with the network of role quality there, the robust mode runs once for both.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from benchmarks.plus import cases
from benchmarks.plus.denoiser import repairs
from benchmarks.plus.intracranial import intracranial
from benchmarks.plus.networks import ADD_ONS, Networks
from benchmarks.plus.page import Proof, write_plus
from benchmarks.plus.parcels import TABLE, parcel_rows, scan_parcels
from benchmarks.plus.plot import write_plot
from benchmarks.scores.__main__ import processor, progress
from benchmarks.scores.halves import with_second

from synthseg.errors import SynthsegError, UsageError
from synthseg.evaluation import CaseFailure, CaseResult, run_cases
from synthseg.evaluation.parcels import read_parcel_groups
from synthseg.files import atomic_file
from synthseg.inference import Segmenter
from synthseg.inference.modes import find_mode
from synthseg.inference.quality import FAIL_BELOW

CSF = 24
REPORT, PICTURE = Path("docs/scores.md"), Path("docs/pictures/quality.png")
PARTS = ("robust", "denoiser", "quality", "parcels", "icv")
MODES = ("default", "robust")


class Run:
    """One run of the proof: measures part by part, remembers what failed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.data: Path = given.shared / "data" / "validation"
        self.few = given.subset == "quick"
        self.networks = Networks(dict(given.weights), threads=given.threads, device=given.device)
        self.failures: list[str] = []
        self.used: dict[str, str] = {}  # role -> name and hash

    def proof(self) -> Proof:
        """Everything that was asked for and can be measured."""
        parts, kept = set(self.given.parts), self.given.out / "kept"
        results = self._segmented(parts, kept)
        mended, scans, groups = [], [], []
        if "denoiser" in parts and (denoiser := self.networks.model("robust", "denoiser")):
            tissues = self.networks.model("robust", "tissues")
            self.used["denoiser"] = _name(denoiser.name, denoiser.sha256)
            for repair in repairs(self.data, denoiser, tissues, kept, few=self.few):
                mended.append(repair)
                print(f"denoiser: {repair.kind} {repair.scan} {repair.change}", flush=True)
        if "parcels" in parts and (segmenter := self._segmenter("default", parcels=True)):
            groups = read_parcel_groups(self.data / TABLE)
            for scan in scan_parcels(self.data, segmenter, kept, few=self.few):
                scans.append(scan)
                print(f"parcels: {scan.scan}, cortex {scan.cortex:.3f}", flush=True)
        volumes = {}
        if "icv" in parts:
            for mode in MODES:
                if chosen := self._segmenter(mode):
                    volumes[mode] = list(intracranial(self.data.parent, chosen, mode, kept))
        checked = {mode: of for mode, of in results.items() if any(result.predicted for result in of)}
        return Proof(
            facts=self._facts(),
            default=_compared(results.get("default", ())),
            robust=_compared(results.get("robust", ())),
            checked=checked,
            repairs=mended,
            parcels=parcel_rows(groups, scans) if scans else (),
            parcel_scans=scans,
            intracranial=volumes,
            missing=self.networks.missing,
            failures=self.failures,
            picture=self._picture(checked),
        )

    def _segmented(self, parts: set[str], kept: Path) -> dict[str, list[CaseResult]]:
        """Results by mode. Without the network for quality, the robust mode runs without it."""
        results: dict[str, list[CaseResult]] = {}
        for mode in MODES if parts & {"robust", "quality"} else ():
            check = "quality" in parts and mode in self.given.quality_modes
            segmenter = (self._segmenter(mode, quality=True) if check else None) or self._segmenter(mode)
            if segmenter is None:
                continue
            chosen = cases.compared(self.data, few=self.few)
            if "quality" in segmenter.models:
                chosen += cases.graded(self.data, few=self.few)
            told = progress(len(chosen), f"{mode} ")
            outcomes = run_cases(chosen, segmenter, kept, unscored=(CSF,), on_done=told)
            results[mode] = [outcome for outcome in outcomes if isinstance(outcome, CaseResult)]
            failed = [outcome for outcome in outcomes if isinstance(outcome, CaseFailure)]
            self.failures += [f"mode {mode}, {failure.case.name}: {failure.reason}" for failure in failed]
        return results

    def _segmenter(self, mode: str, *, parcels: bool = False, quality: bool = False) -> Segmenter | None:
        segmenter = self.networks.segmenter(mode, parcels=parcels, quality=quality)
        if segmenter is not None:
            self.used |= {role: _name(model.name, model.sha256) for role, model in segmenter.models.items()}
        return segmenter

    def _picture(self, checked: dict[str, list[CaseResult]]) -> str | None:
        path = PICTURE if self._report == REPORT else self._report.with_name(PICTURE.name)
        drawn = write_plot(checked, path, FAIL_BELOW)
        return os.path.relpath(path, self._report.parent).replace(os.sep, "/") if drawn else None

    @property
    def _report(self) -> Path:
        given: Path | None = self.given.report
        return given or (REPORT if not self.few else self.given.out / "scores-plus-quick.md")

    def write(self, proof: Proof) -> Path:
        """Put the second half into the page."""
        old = self._report.read_text(encoding="utf-8") if self._report.is_file() else ""
        with atomic_file(self._report) as file:
            file.write(with_second(old, write_plus(proof)).encode())
        return self._report

    def _facts(self) -> list[tuple[str, str]]:
        on_gpu = self.networks.device != "cpu" and torch.cuda.is_available()
        machine = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {os.cpu_count()} logical cores"
        return [
            *((f"network, {role}", name) for role, name in self.used.items()),
            ("machine", f"{machine}, {self.given.threads} threads, torch {torch.__version__}"),
            ("date", date.today().isoformat()),
            ("subset", self.given.subset),
        ]


def main() -> int:
    """Measure, write. Returns: 0, or 1 when a scan failed."""
    given = _arguments()
    run = Run(given)
    if not (run.data / "oasis").is_dir():
        raise UsageError(run.data, found="no folder of validation scans", fix="give --shared, the folder with data/")
    started = time.perf_counter()
    report = run.write(run.proof())
    for sentence in dict.fromkeys(run.networks.missing):
        print(f"not measured: {sentence}", file=sys.stderr)
    print(f"{report}, {len(run.failures)} failed, {(time.perf_counter() - started) / 60:.1f} minutes")
    return 1 if run.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder that holds data/")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure; default: all")
    parser.add_argument(
        "--weights", nargs="+", default=(), type=_role, metavar="ROLE=NAME", help="other networks than the shipped"
    )
    parser.add_argument("--quality-modes", nargs="+", default=MODES, choices=MODES, help="modes whose quality to check")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--subset", default="full", choices=("full", "quick"), help="quick: two brains")
    parser.add_argument("--out", type=Path, default=Path("scores/plus"), help="where results are kept")
    parser.add_argument("--report", type=Path, help=f"page whose second half to write; default {REPORT}")
    return parser.parse_args()


def _role(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    known = {*(role for mode in MODES for role in find_mode(mode).weights.by_role()), *ADD_ONS}
    if not equals or role not in known:
        raise argparse.ArgumentTypeError(f"{text!r}: write ROLE=NAME, ROLE one of {', '.join(sorted(known))}")
    return role, name


def _compared(results: Sequence[CaseResult]) -> list[CaseResult]:
    return [result for result in results if result.group == cases.BRAINS]


def _name(name: str, sha256: str) -> str:
    return f"`{name}`, sha256 {sha256[:12]}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SynthsegError as error:
        print(f"scores-plus: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("scores-plus: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
