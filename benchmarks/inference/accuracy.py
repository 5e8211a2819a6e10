"""How far the labels of a lower precision are from those of float32, and from the truth, on the labelled brains.

    python -m benchmarks.inference.accuracy DATA OUT --precision int8 --mode default --threads 2

Ten OASIS brains and the MNI head. float32 goes first: it leaves its labels in OUT, which the others are compared with.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.inference.measure import tell

from synthseg.allocator import keep_freed_memory
from synthseg.evaluation import EvaluationConfig, score_volumes
from synthseg.inference import Segmenter
from synthseg.volumes import Volume, read_volume, write_volume

REFERENCE = "float32"
CSF, IGNORED = 24, 255  # the truths draw extra-cerebral CSF otherwise, or not at all
QUICK = 3  # brains


def main() -> None:
    """Segment, score, tell the means and every brain's numbers."""
    given = _arguments()
    segmenter = Segmenter(
        given.weights, given.mode, precision=given.precision, backend=given.backend, threads=given.threads
    )
    rows: dict[str, dict[str, float]] = {}
    for name, image, truth in brains(given.data, given.subset):
        labels = segmenter.segment(image).labels
        rows[name] = {"dice": dice_of(labels, read_volume(truth, labels=True), name)}
        path = given.out / given.mode / f"{name}.nii.gz"
        if given.precision == REFERENCE:
            write_volume(labels, path, dtype=np.int32, header_like=image)
        rows[name]["agreement"] = agreement(labels.data, read_volume(path, labels=True).data)
    facts: dict[str, Any] = {key: statistics.fmean(row[key] for row in rows.values()) for key in ("dice", "agreement")}
    facts["worst_agreement"] = min(row["agreement"] for row in rows.values())
    tell(**facts, brains=rows, weights=segmenter.model.name, backend=segmenter.backend)


def brains(data: Path, subset: str) -> list[tuple[str, Path, Path]]:
    """Name, scan and truth of each."""
    found = [path.name.removesuffix("_t1.nii.gz") for path in sorted((data / "oasis").glob("*_t1.nii.gz"))]
    cases = [(name, data / "oasis" / f"{name}_t1.nii.gz", data / "oasis" / f"{name}_aseg.nii.gz") for name in found]
    mni = data / "mni" / "mni152nlin6_1mm"
    cases.insert(0, ("mni", Path(f"{mni}_t1_head.nii.gz"), Path(f"{mni}_aseg.nii.gz")))
    return cases[:QUICK] if subset == "quick" else cases


def dice_of(labels: Volume, truth: Volume, name: str) -> float:
    """Mean over the structures that the truth has."""
    values = tuple(int(value) for value in np.unique(truth.data) if int(value) not in (0, CSF, IGNORED))
    config = EvaluationConfig(values=values, ignore_value=IGNORED, surface=False)
    scores = [row.dice for row in score_volumes(labels, truth, config, scan=name).rows]
    return statistics.fmean(dice for dice in scores if not math.isnan(dice))


def agreement(labels: np.ndarray, reference: np.ndarray) -> float:
    """Share of the reference's brain voxels that have the same label."""
    brain = reference > 0
    return float((labels[brain] == reference[brain]).mean()) if brain.any() else math.nan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the validation scans")
    parser.add_argument("out", type=Path, help="folder of float32's labels")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--mode", default="default")
    parser.add_argument("--precision", default=REFERENCE)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--subset", default="full", choices=("full", "quick"))
    return parser.parse_args()


if __name__ == "__main__":
    keep_freed_memory()
    main()
