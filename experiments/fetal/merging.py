"""``python -m experiments.fetal.merging``: the networks of a study's arms, each alone and merged by every rule.

The arms of a fold are four networks of about equal strength that saw the same maps: what several trainings of one kind
are, for which rules of merging are meant. They are merged on the fold's held-out maps as they are, and on atlas images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.fetal.cases import atlas_cases, held_out_cases
from experiments.fetal.config import ARMS, ORDINARY, Edit, FetalConfig
from experiments.fetal.report import case_table, paired_lines
from experiments.fetal.run import RECORD, say
from experiments.fetal.score import Results, by_subject, measurements_of, score_cases
from experiments.fetal.subjects import Fold, Subject

from synthseg.errors import SynthsegError, UsageError
from synthseg.evaluation import Case, CaseResult, write_long
from synthseg.evaluation.paired import PairedConfig, compare_methods, write_paired
from synthseg.files import atomic_file
from synthseg.inference import Segmenter
from synthseg.inference.config import check_merge
from synthseg.inference.modes import mode_config
from synthseg.training.temperature import calibrate_temperature

CALIBRATED = "mean, calibrated"
RULES = (CALIBRATED, "mean", "max", "vote")
IMAGES = 8  # synthetic ones, for each network's temperature


def compare_rules(study: Path, scans: Path, folds: Sequence[str], *, device: str, threads: int | None) -> Path:
    """Score every network and every rule; returns the page ``merging.md`` in the study's folder. Goes on where it was.

    Raises: UsageError for a folder without a finished fold; as inference and calibration do.
    """
    record = _record(study)
    config = _config(record["config"])
    atlas = atlas_cases(scans)
    results: Results = {}
    for name in folds or record["folds"]:
        networks = _networks(study, name, record)
        fold = Fold(name, (), tuple(Subject(one, study / "maps" / one, 0) for one in record["folds"][name]))
        cases = [case for case in held_out_cases(fold, study / "test", config) if case.group == ORDINARY]
        cases += atlas
        bank = study / name / "banks" / "plain.safetensors"
        calibrated = [_calibrated(path, bank, study / name / "merged", config.seed) for path in networks]
        for path in networks:
            arm = path.stem
            say(f"{name}, {arm} alone")
            segmenter = Segmenter(str(path), record["mode"], device=device, threads=threads)
            _keep(results, arm, name, cases, segmenter, study / name / "kept", config)
        for rule in RULES:
            say(f"{name}, {rule}")
            # A temperature is no part of what results are kept by, so that each kind has a folder of its own.
            merged, kept = (calibrated, "calibrated") if rule == CALIBRATED else (networks, "plain")
            settings = replace(mode_config(record["mode"]), merge=check_merge(rule.partition(",")[0]))
            segmenter = Segmenter([str(path) for path in merged], config=settings, device=device, threads=threads)
            _keep(results, rule, name, cases, segmenter, study / name / "merged" / kept, config)
    return _write(results, study)


def _record(study: Path) -> dict[str, Any]:
    path = study / RECORD
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "give the --out of python -m experiments.fetal"
        raise UsageError(path, found="no study", fix=fix) from error
    return found


def _networks(study: Path, fold: str, record: dict[str, Any]) -> list[Path]:
    if fold not in record["folds"]:
        raise UsageError("--folds", found=repr(fold), fix=f"give some of {', '.join(record['folds'])}")
    paths = [study / fold / "arms" / arm / f"{arm}.safetensors" for arm in ARMS]
    found = [path for path in paths if path.is_file()]
    if len(found) < 2:
        raise UsageError(study / fold, found=f"{len(found)} trained arms", fix="finish the fold first, or give --folds")
    return found


def _config(told: dict[str, Any]) -> FetalConfig:
    lists = {key: tuple(told[key]) for key in ("contrasts", "edited_contrasts")}
    return FetalConfig(**{**told, **lists, "edits": tuple(Edit(**edit) for edit in told["edits"])})


def _calibrated(path: Path, bank: Path, folder: Path, seed: int) -> Path:
    out = folder / path.name
    if not out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        card = calibrate_temperature(path, bank, out, images=IMAGES, seed=seed)
        say(f"{path.stem}: temperature {card['temperature']:.3f}")
    return out


def _keep(
    results: Results,
    method: str,
    fold: str,
    cases: Sequence[Case],
    segmenter: Segmenter,
    folder: Path,
    config: FetalConfig,
) -> None:
    outcomes = score_cases(cases, segmenter, folder, config.protocol)
    results.setdefault(method, {})[fold] = [one for one in outcomes if isinstance(one, CaseResult)]


def _write(results: Results, study: Path) -> Path:
    rows = measurements_of(results)
    write_long(rows, study / "merging.tsv")
    subjects = [row for row in by_subject(rows) if row.metric in ("dice", "sd95")]
    folds = ", ".join(next(iter(results.values())))
    lines = ["# Several networks, one result", "", f"Networks of {folds}. Means over subjects: Dice (SD95 in mm).", ""]
    lines += [*case_table(subjects, "stratum"), ""]
    dice = [row for row in subjects if row.metric == "dice"]
    reference = CALIBRATED
    found = compare_methods(dice, PairedConfig(by="stratum", reference=reference, correction="holm")).rows
    tests = study / "merging-paired.tsv"
    write_paired(found, tests)
    page = study / "merging.md"
    with atomic_file(page) as file:
        file.write(("\n".join([*lines, *paired_lines(found, reference, tests.name)]) + "\n").encode())
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; 0 when done, else the error's exit code, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fetal.merging", description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the --out of python -m experiments.fetal")
    parser.add_argument("--scans", type=Path, required=True, help="atlas images with labels, as there")
    parser.add_argument("--folds", nargs="*", default=[], help="these alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args(arguments)
    try:
        page = compare_rules(asked.study, asked.scans, asked.folds, device=asked.device, threads=asked.threads)
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(page.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
