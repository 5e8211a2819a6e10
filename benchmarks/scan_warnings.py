"""How often warnings are right and wrong: ordinary scans as they are, and the same scans damaged on purpose.

    python -m benchmarks.scan_warnings --validation FOLDER --out rates.jsonl [--mode fast]

``FOLDER`` holds a ``manifest.tsv`` with the columns ``file`` and ``kind``. One line of JSON a case: what it is, its
warnings, seconds. Cases that are in the file already are left out, so that it goes on where it stopped. At the end:
counts by case and code. docs/warnings.md says what came out.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from synthseg.errors import SynthsegError
from synthseg.inference import Segmenter
from synthseg.volumes import Volume, read_volume
from synthseg.volumes.degrade import degrade

HEADS = (
    "t1/swm_t1_head.nii.gz",
    "oasis/oasis_1000_t1.nii.gz",
    "mni/mni152nlin6_1mm_t1_head.nii.gz",
    "ct/ct_brain_template_1mm.nii.gz",
)
LABEL_MAPS = (
    "t1/swm_aseg.nii.gz",
    "oasis/oasis_1000_aseg.nii.gz",
    "mni/mni152nlin6_1mm_aseg.nii.gz",
    "fetal/mial_run1_brainmask.nii.gz",
    "contrasts/tumour1_mask.nii.gz",
    "oasis/oasis_1000_braincolor.nii.gz",
)
# World to world: what a header says of the axes to the right, front and top, and what is there.
HEADERS = {
    "upside-down": np.diag([1, 1, -1]),
    "back-to-front": np.diag([1, -1, 1]),
    "both": np.diag([1, -1, -1]),
    "front-is-top": np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]),
    "axes-cycled": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
}
SIZES = {"half-size": 0.5, "seven-tenths": 0.7, "larger": 1.4}
CUTS = ("superior-5", "superior-10", "superior-20", "inferior-20", "anterior-15", "left-15")
OTHERS = ("axial-12mm", "sagittal-10mm", "snr-2", "snr-1")


@dataclass(frozen=True)
class Case:
    """``kind`` is "ordinary", "fetal" or what was done to the scan; ``load`` gives it."""

    kind: str
    file: str
    load: Callable[[], Volume]


def cases(validation: Path) -> Iterator[Case]:
    """Every scan of the manifest but hearts, label maps given as scans, and heads damaged in every way."""
    with (validation / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        if row["kind"] == "image" and not row["file"].startswith("cardiac/"):
            kind = "fetal" if row["file"].startswith("fetal/") else "ordinary"
            yield Case(kind, row["file"], lambda name=row["file"]: read_volume(validation / name))  # type: ignore[misc]
    for name in LABEL_MAPS:
        yield Case("label map", name, lambda name=name: read_volume(validation / name))  # type: ignore[misc]
    for number, name in enumerate(HEADS):
        scan = read_volume(validation / name)
        for kind, made in damaged(scan, name, few=number >= 2, header_only=number == 3):
            yield Case(kind, name, made)


def damaged(scan: Volume, name: str, *, few: bool, header_only: bool) -> Iterator[tuple[str, Callable[[], Volume]]]:
    """A scan made wrong in one way after another: what was done, and how to get it."""
    for kind, axes in HEADERS.items():
        yield f"header {kind}", lambda axes=axes: turned(scan, axes)  # type: ignore[misc]
    if header_only:
        return
    for kind in CUTS:
        yield f"cut {kind} %", lambda kind=kind: degrade(scan, None, f"cut-{kind}", name=name)[0]  # type: ignore[misc]
    if few:
        return
    for kind, factor in SIZES.items():
        yield f"voxels {kind}", lambda factor=factor: scaled(scan, factor)  # type: ignore[misc]
    for kind in OTHERS:
        yield kind, lambda kind=kind: degrade(scan, None, kind, name=name)[0]  # type: ignore[misc]
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 10, scan.shape).astype(np.float32)
    yield "white noise", lambda: replace(scan, data=100 + noise)
    yield "noise of air", lambda: replace(scan, data=np.abs(noise))
    yield "smooth noise", lambda: replace(scan, data=gaussian_filter(100 + noise, 3))
    yield "inverted with its air", lambda: replace(scan, data=scan.data.max() - scan.data)


def turned(scan: Volume, axes: np.ndarray) -> Volume:
    """The scan with a header that says something else of its directions, about the same centre."""
    centre = (scan.affine @ [*((np.asarray(scan.shape) - 1) / 2), 1.0])[:3]
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = axes, centre - axes @ centre
    return replace(scan, affine=motion @ scan.affine)


def scaled(scan: Volume, factor: float) -> Volume:
    """The scan with voxels that its header says to be ``factor`` times as large."""
    affine = scan.affine.copy()
    affine[:3, :3] *= factor
    return replace(scan, affine=affine)


def run(segmenter: Segmenter, case: Case) -> dict[str, object]:
    """One line of the results; a scan that is refused or fails has an ``error`` instead of warnings."""
    start = time.perf_counter()
    told: dict[str, object] = {"kind": case.kind, "file": case.file}
    try:
        done = segmenter.segment(case.load())
        told["warnings"] = [warning.code for warning in done.warnings]
        told["timings_s"] = done.timings_s
        told["verdict"] = None if done.quality is None else done.quality.verdict
    except SynthsegError as error:
        told["error"] = str(error)
    return told | {"seconds": round(time.perf_counter() - start, 1)}


def summary(lines: list[dict[str, object]]) -> str:
    """Of every kind of case: how many, how many warned or refused, and the codes with their counts."""
    kinds: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        kinds[str(line["kind"])].append(line)
    rows = ["kind\tcases\twarned\trefused\tcodes"]
    for kind, of_kind in kinds.items():
        codes: dict[str, int] = defaultdict(int)
        for line in of_kind:
            for code in line.get("warnings", ()):  # type: ignore[attr-defined]
                codes[code] += 1
        warned = sum(bool(line.get("warnings")) for line in of_kind)
        refused = sum("error" in line for line in of_kind)
        told = ", ".join(f"{code} {count}" for code, count in sorted(codes.items(), key=lambda pair: -pair[1]))
        rows.append(f"{kind}\t{len(of_kind)}\t{warned}\t{refused}\t{told}")
    return "\n".join(rows)


def main() -> None:
    """Run all cases that have not been run, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--validation", type=Path, required=True, help="folder of scans, with its manifest.tsv")
    parser.add_argument("--out", type=Path, required=True, help="results, a line of JSON a case")
    parser.add_argument("--mode", default="fast")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(line["kind"], line["file"]) for line in lines}
    segmenter = Segmenter(mode=arguments.mode, quality=None)
    for case in cases(arguments.validation):
        if (case.kind, case.file) in done:
            continue
        lines.append(run(segmenter, case))
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
    print(summary(lines))


if __name__ == "__main__":
    main()
