"""Is it better to ask several atlases than one? Each atlas's parcels from the others, against its own.

    python recipes/parcels/leave_one_out.py TEMPLATE ATLAS [ATLAS ...] --work WORK

For every atlas but the template: Dice a parcel, at 10,000 points of its cortex a side, by the template alone, by the
template without asking which way the cortex faces, and by all the others. A line an atlas and a table of parcels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from atlases import Atlas, read_atlases
from fuse import CortexPoints, Vote
from merge import CORTEX, exit_code_of, parcels_of_side

from synthseg.labels import load_protocol

ASKED = 10_000  # points a side


def parcel_dice(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[68] Dice of each parcel, left then right; NaN for one that the truth lacks."""
    values = np.concatenate([*parcels_of_side().values()])
    counts = [
        np.bincount(a.ravel(), minlength=2036)[values] for a in (found, truth, np.where(found == truth, truth, 0))
    ]
    return np.where(counts[1] > 0, 2 * counts[2] / np.maximum(counts[0] + counts[1], 1), np.nan)


def score(atlas: Atlas, teachers: Sequence[Atlas], *, directions: bool = True) -> np.ndarray:
    """[68] Dice of an atlas's parcels by the votes of others."""
    found, truth = [], []
    kept = np.array([1, 1, 1, *3 * [int(directions)]])
    for side in CORTEX:
        points = [
            CortexPoints(one.places * kept, one.parcels) for one in (teacher.points[side] for teacher in teachers)
        ]
        found.append(Vote(side, points)(atlas.points[side].places[:ASKED] * kept))
        truth.append(atlas.points[side].parcels[:ASKED])
    return parcel_dice(np.concatenate(found), np.concatenate(truth))


def main() -> int:
    """Print Dice by the template alone and by all atlases but the one asked about; 0 = done, 1 or 2 = an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path)
    parser.add_argument("atlases", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    return exit_code_of(lambda: compare(given))


def compare(given: argparse.Namespace) -> None:
    """Print a line an atlas, then one a parcel. Raises: as :func:`atlases.read_atlases`."""
    _, (template, *others) = read_atlases(given.template, given.atlases, given.work)
    scores = []
    for atlas in others:
        rest = [template, *(other for other in others if other is not atlas)]
        plain = score(atlas, [template], directions=False)
        scores.append([plain, score(atlas, [template]), score(atlas, rest)])
        told = ", ".join(f"{np.nanmean(one):.3f}" for one in scores[-1])
        print(f"{atlas.name}: template by place, with direction, all {len(rest)}: {told}", flush=True)
    means = np.nanmean(np.array(scores), axis=0)
    protocol = load_protocol("desikan-killiany")
    for value, column in zip(np.concatenate([*parcels_of_side().values()]), means.T, strict=True):
        print(f"{value}\t{protocol.by_value(int(value)).name}\t" + "\t".join(f"{one:.3f}" for one in column))
    print("mean\t\t" + "\t".join(f"{one:.4f}" for one in means.mean(1)))


if __name__ == "__main__":
    sys.exit(main())
