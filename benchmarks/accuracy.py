"""Segment the labelled validation scans and print their Dice table in Markdown, as docs/weights.md shows it.

    python benchmarks/accuracy.py --shared ../shared --weights default --out accuracy/ --threads 2

Scans that are done are skipped on a second call. CSF (24) is not scored: no truth here labels it as SynthSeg does.
"""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from synthseg.evaluation import EvaluationConfig, PairScores, evaluate_pair, summarise, write_scores
from synthseg.inference import BatchOptions, Job, Outputs, Segmenter, plan_jobs, run_batch
from synthseg.report.overlay import write_overlay
from synthseg.volumes import read_volume, strip_extension, write_volume

CSF = 24
IGNORED = 255
# The weights of step 2,500 of 3,100 were chosen by these four (and the MNI T1 and T2 at 2 mm), at 2 mm.
WATCHED = ("oasis_1000", "oasis_1017", "oasis_1113", "oasis_1125")
CONTRASTS = {
    "mni/mni152lin_2mm_t1": "mni/mni152lin_2mm_aseg",
    "mni/mni152lin_2mm_t2": "mni/mni152lin_2mm_aseg",
    "mni/mni152lin_2mm_pd": "mni/mni152lin_2mm_aseg",
    "mni/mni152nlin6_1mm_t1_head": "mni/mni152nlin6_1mm_aseg",
    "mni/mni152nlin6_1mm_t2_brain": "mni/mni152nlin6_1mm_aseg",
    "t1/swm_t1_head": "t1/swm_aseg",
    "t1/fsdemo_t1_brain": "t1/fsdemo_aseg",
    "ct/t1_older_adults_mni_1mm": "ct/ct_older_adults_mni_aseg",
}
CT, CT_TRUTH, CT_SCALE = "ct/ct_older_adults_mni_1mm", "ct/ct_older_adults_mni_aseg", 13.63  # stored as HU x 13.63


def pairs_of(data: Path, out: Path) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Scan -> truth, for MR and for CT (brought back to Hounsfield units in ``out``)."""
    oasis = {
        f"oasis/{path.name.removesuffix('_t1.nii.gz')}_t1": f"oasis/{path.name.removesuffix('_t1.nii.gz')}_aseg"
        for path in sorted((data / "oasis").glob("*_t1.nii.gz"))
    }

    def files(pairs: dict[str, str]) -> dict[Path, Path]:
        return {data / f"{scan}.nii.gz": data / f"{truth}.nii.gz" for scan, truth in pairs.items()}

    stored = read_volume(data / f"{CT}.nii.gz")
    in_hu = write_volume(replace(stored, data=stored.data / CT_SCALE), out / "scans" / "ct_older_adults_mni_hu.nii.gz")
    return files({**oasis, **CONTRASTS}), {in_hu: data / f"{CT_TRUTH}.nii.gz"}


def score(job: Job, predicted: Path, truth: Path) -> PairScores:
    """Dice and SD95 of the structures the truth has."""
    present = np.unique(read_volume(truth, labels=True).data)
    values = tuple(int(v) for v in present if v not in (0, CSF, IGNORED))
    return evaluate_pair(predicted, truth, EvaluationConfig(values=values), scan=strip_extension(job.scan))


def main() -> None:
    """Segment, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--weights", default="default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    mr, ct = pairs_of(given.shared / "data" / "validation", given.out)
    outputs, scores = Outputs(overlay=True), []
    for pairs, is_ct in ((mr, None), (ct, True)):
        segmenter = Segmenter(given.weights, ct=is_ct, threads=given.threads)
        jobs = plan_jobs(list(pairs), given.out, outputs)
        options = BatchOptions(overlay=write_overlay, progress=lambda outcome: print(outcome.status, outcome.job.scan))
        run_batch(segmenter, jobs, outputs, options)
        for job in jobs:
            predicted = given.out / f"{strip_extension(job.scan)}_synthseg.nii.gz"
            scores.append(score(job, predicted, pairs[job.scan]))
    rows = [row for pair in scores for row in pair.rows]
    write_scores(rows, given.out / "scores.tsv")
    print(f"\n{platform.processor() or platform.machine()}, {given.threads} threads, torch {torch.__version__}\n")
    print_scans(scores)
    oasis = [row for row in rows if row.scan.startswith("oasis")]
    print_groups(oasis)
    print("\n| structure (ten OASIS brains) | Dice | SD95 (mm) |\n|---|---|---|")
    for structure in summarise(oasis).structures:
        print(f"| {structure.structure} | {structure.dice:.3f} | {structure.sd95_mm:.1f} |")


def print_scans(scores: list[PairScores]) -> None:
    """One line a scan."""
    print("| scan | structures | mean Dice | mean SD95 (mm) |\n|---|---|---|---|")
    for pair in scores:
        finite = [row.sd95_mm for row in pair.rows if np.isfinite(row.sd95_mm)]
        dice = np.nanmean([row.dice for row in pair.rows])
        print(f"| {pair.scan} | {len(pair.rows)} | {dice:.3f} | {np.mean(finite):.1f} |")


def print_groups(oasis: list) -> None:
    """OASIS means: all, those not used to choose the weights, those used."""
    groups = {
        "all": oasis,
        "not used to choose the weights": [row for row in oasis if not row.scan.startswith(WATCHED)],
        "used to choose the weights": [row for row in oasis if row.scan.startswith(WATCHED)],
    }
    print("\n| OASIS brains | scans | mean Dice |\n|---|---|---|")
    for name, rows in groups.items():
        summary = summarise(rows)
        print(f"| {name} | {len(summary.scans)} | {summary.dice:.3f} |")


if __name__ == "__main__":
    main()
