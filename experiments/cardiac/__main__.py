"""``python -m experiments.cardiac``: prepare, train, make test scans, segment, score."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.cardiac.evaluate import EvaluateConfig, evaluate, segment_real, write_report
from experiments.cardiac.phantom import CONTRASTS
from experiments.cardiac.prepare import PrepareConfig, prepare

from synthseg.errors import SynthsegError, TrainingError, UsageError
from synthseg.generation import LabelBank
from synthseg.labels import load_protocol
from synthseg.training import RunOptions, load_recipe, train
from synthseg.volumes import is_volume_path, strip_extension

RECIPE = Path(__file__).parents[2] / "recipes" / "cardiac-cpu.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; 0 when done, else the error's exit code."""
    try:
        run(_parser().parse_args(arguments))
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(asked: argparse.Namespace) -> Path:
    """Everything from maps to scores; returns the weights. What is there already is not made again."""
    training, test = split_maps(asked.maps, asked.held_out, asked.test)
    recipe = load_recipe(asked.recipe)
    bank = asked.out / "bank.safetensors"
    if not bank.exists():
        config = PrepareConfig(
            protocol=asked.protocol,
            spacing_mm=recipe.generation.grid.spacing_mm,
            versions=asked.versions,
            seed=asked.seed,
        )
        prepare(training, asked.out, config, images=images_of(training, asked.images))
        print(f"{bank}: {len(training)} maps in {asked.versions} versions each", flush=True)
    require_same_maps(bank, training, asked.protocol, asked.versions, recipe.generation.grid.spacing_mm)
    recipe = replace(recipe, data=replace(recipe.data, bank=str(bank.resolve())))
    options = RunOptions(
        out=asked.out / "train", resume=True, max_minutes=asked.max_minutes, threads=asked.threads, device=asked.device
    )
    result = train(recipe, options)
    assert result.weights is not None  # one process: it leads
    if not result.finished and asked.max_minutes is None:
        found = f"training stopped at step {result.step}"
        raise TrainingError(options.out, found=found, fix="run the same command again: it goes on")
    rows = evaluate(
        result.weights,
        test,
        asked.out / "test",
        EvaluateConfig(protocol=asked.protocol, spacing_mm=asked.test_spacing, contrasts=tuple(asked.contrasts)),
        threads=asked.threads,
    )
    print(write_report(rows, load_protocol(asked.protocol), asked.out / "test" / "scores.md"))
    if asked.scans:
        for name, volume in segment_real(
            result.weights, asked.scans, asked.out / "real", threads=asked.threads
        ).items():
            print(f"{name}: {volume:.0f} ml of heart")
    return result.weights


def images_of(maps: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """The scans of maps by the maps' names; says which maps have none. Raises: UsageError where no map has one."""
    if folder is None:
        return {}
    names = [strip_extension(path) for path in maps]
    found = {strip_extension(path): path for path in volumes_in(folder) if strip_extension(path) in names}
    if not found:
        raise UsageError(folder, found="no scan with the name of a map", fix=f"name them {names[0]} and so on")
    for name in names:
        if name not in found:
            print(f"{name}: no scan, sub-labels by geometry", flush=True)
    return found


def require_same_maps(path: Path, training: Sequence[Path], protocol: str, versions: int, spacing_mm: float) -> None:
    """A bank of an earlier run must hold exactly the maps to train on, or held-out ones would be trained on.

    Raises: UsageError where it holds others, in other numbers or voxels, or maps of another protocol.
    """
    bank = LabelBank.load(path)
    held, wanted = {name.rsplit("-v", 1)[0] for name in bank.names}, {strip_extension(p) for p in training}
    targets = [int(value) for value in load_protocol(protocol).target_values]
    same_voxels = bool((bank.spacing_mm - spacing_mm).abs().max() < 1e-3)
    same_number = len(bank) == versions * len(training)
    if held != wanted or bank.protocol.target_values.tolist() != targets or not same_voxels or not same_number:
        size = f"{len(bank)} at {float(bank.spacing_mm.max()):g} mm"
        found = f"maps {', '.join(sorted(held))} of {bank.protocol.name}, {size}, from an earlier run"
        fix = "give another --out, or the same --maps, --held-out, --protocol, --versions and recipe"
        raise UsageError(path, found=found, fix=fix)


def split_maps(folder: Path, held_out: Sequence[str], test: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Maps to train on, and maps to test on: those held out of the folder, and others.

    Raises: UsageError for a held-out name that is not in the folder, or when either is empty.
    """
    maps = volumes_in(folder)
    known = {strip_extension(path): path for path in maps}
    for name in held_out:
        if name not in known:
            raise UsageError("--held-out", found=repr(name), fix=f"give some of {', '.join(known)}")
    training = [path for name, path in known.items() if name not in held_out]
    chosen = [*(known[name] for name in held_out), *test]
    if not training or not chosen:
        found = f"{len(training)} maps to train on and {len(chosen)} to test on"
        raise UsageError(folder, found=found, fix="hold some maps out with --held-out, or give others with --test")
    return training, chosen


def volumes_in(folder: Path) -> list[Path]:
    """The volumes of a folder, by name. Raises UsageError if there is no such folder."""
    if not folder.is_dir():
        raise UsageError(folder, found="no such folder", fix="give a folder of volumes")
    return sorted(path for path in folder.iterdir() if is_volume_path(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.cardiac", description=__doc__)
    add = parser.add_argument
    add("--maps", type=Path, required=True, help="folder of label maps")
    add("--images", type=Path, help="folder of their scans, named like the maps: sub-labels by intensity")
    add("--out", type=Path, required=True, help="everything is written here; run again to go on")
    add("--held-out", nargs="*", default=[], help="names of maps to test on instead of training")
    add("--test", type=Path, nargs="*", default=[], help="further label maps to test on")
    add("--scans", type=Path, nargs="*", default=[], help="real scans to segment and look at")
    add("--protocol", default="hvsmr", help="hvsmr, whole-heart, or a table")
    add("--recipe", type=Path, default=RECIPE)
    add("--versions", type=int, default=10, help="of sub-labels a map")
    add("--contrasts", nargs="+", default=list(CONTRASTS), choices=list(CONTRASTS), help="of the test scans")
    add("--test-spacing", type=float, default=1.5, help="voxel size of the test scans in mm")
    add("--max-minutes", type=float, help="stop training cleanly after so long")
    add("--threads", type=int)
    add("--device", default="auto")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
