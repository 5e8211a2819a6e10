"""``python -m experiments.fetal``: folds by age, four arms, one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.fetal.config import ARMS, FetalConfig, arms_of
from experiments.fetal.run import Sitting, run_study

from synthseg.allocator import keep_freed_memory
from synthseg.errors import SynthsegError

RECIPE = Path(__file__).with_name("recipe.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; 0 when done, 1 if scans failed, else the error's exit code, 130 after Ctrl-C."""
    asked = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        page, failed = run_study(arms_of(asked.arms), _config(asked), _sitting(asked))
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(page.read_text(encoding="utf-8"))
    if failed:
        print(f"{failed} scan(s) could not be scored; the page names them", file=sys.stderr)
    return int(failed > 0)


def _config(asked: argparse.Namespace) -> FetalConfig:
    return FetalConfig(
        variants=asked.variants,
        edited=asked.edited,
        scheme=asked.scheme,
        siblings=asked.siblings,
        seed=asked.seed,
    )


def _sitting(asked: argparse.Namespace) -> Sitting:
    return Sitting(
        maps=asked.maps,
        out=asked.out,
        recipe=asked.recipe,
        folds=asked.folds,
        scans=asked.scans,
        steps=asked.steps,
        mode=asked.mode,
        device=asked.device,
        threads=asked.threads,
        max_minutes=asked.max_minutes,
        only=tuple(asked.only),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.fetal", description=__doc__)
    add = parser.add_argument
    add("--maps", type=Path, required=True, help="label maps with FeTA's values, an age in each name (ga24)")
    add("--out", type=Path, required=True, help="everything is written here; run again to go on")
    add("--folds", default="ages", help="'ages': each age held out once; K: ages dealt to K folds in turn")
    add("--only", nargs="*", default=[], metavar="FOLD", help="these folds in this sitting")
    add("--arms", default=",".join(ARMS), help=f"some of {', '.join(ARMS)}; the first is compared with")
    add("--scans", type=Path, help="folder of NAME_t2.nii.gz with NAME_feta.nii.gz: scored, never trained on")
    add("--recipe", type=Path, default=RECIPE, help="training recipe; its bank and map weights are replaced")
    add("--steps", type=int, help="of each training, instead of the recipe's")
    add("--variants", type=int, default=FetalConfig.variants, help="entries a map in each arm's bank")
    add("--edited", type=int, default=FetalConfig.edited, help="of them, in arms with shapes")
    add("--scheme", default=FetalConfig.scheme, choices=("general", "reference"), help="of the sampler")
    add("--siblings", action="store_true", help="edited variants share their map's weight")
    add("--mode", default="fast", help="of inference")
    add("--max-minutes", type=float, help="stop each training cleanly after so long")
    add("--threads", type=int)
    add("--device", default="auto")
    add("--seed", type=int, default=FetalConfig.seed)
    return parser


if __name__ == "__main__":
    sys.exit(main())
