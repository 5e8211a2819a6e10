"""Run one of the papers' studies: ``python -m experiments NAME --size toy``.

Needs the repository (this folder is not in the installed package). Without a name: the studies there are.
Exit codes: 0 done, 1 something failed (a scan, too) or training was stopped (--resume goes on), 2 wrong command line or
study, 130 interrupted between trainings (--resume goes on).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from synthseg.allocator import keep_freed_memory
from synthseg.errors import SynthsegError


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    given = _parser().parse_args(arguments)
    keep_freed_memory()
    from experiments.places import Places
    from experiments.runner import RECORD, Sitting, run_study
    from experiments.study import load_study, study_names

    try:
        if given.study is None:
            for name in study_names():
                study = load_study(name)
                print(f"{name:20s} {len(study.arms):2d} arms  {study.title}")
            return 0
        study = load_study(given.study)
        out = (given.out or Path("scores/studies")) / study.name / given.size
        arms = study.chosen([name for name in (given.arms or "").split(",") if name])
        places = Places(out=out, bank=given.bank, scans=given.scans, images=given.images, priors=given.priors)
        sitting = Sitting(
            size=given.size,
            resume=given.resume,
            device=given.device,
            threads=given.threads,
            max_minutes=given.max_minutes,
        )
        folder = run_study(study, arms, places, sitting)
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    print((folder / "summary.md").read_text(encoding="utf-8"))
    failures = json.loads((folder / RECORD).read_text(encoding="utf-8"))["failures"]
    for one in failures:
        print(f"failed: {one['arm']}, {one['case']}: {one['reason']}", file=sys.stderr)
    return int(bool(failures) and given.size != "toy")  # after two steps a network may well find nothing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", help="name of a study, or a .toml of one's own; none: list them")
    parser.add_argument("--size", choices=("toy", "laptop", "small", "full"), default="small", help="default: small")
    parser.add_argument("-o", "--out", type=Path, help="results go to OUT/STUDY/SIZE (default: scores/studies)")
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run")
    parser.add_argument("--arms", help="only these, by commas, and those they need")
    parser.add_argument("--bank", type=Path, default=Path("banks/adults.safetensors"), help="label maps to train on")
    parser.add_argument("--scans", type=Path, default=Path("../shared/data/validation"), help="scans to evaluate on")
    parser.add_argument("--images", type=Path, help="real images with label maps to train on")
    parser.add_argument("--priors", type=Path, help="folder of NAME/priors.tsv (synthseg priors estimate -o)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--max-minutes", type=float, help="stop each arm's training after so many minutes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
