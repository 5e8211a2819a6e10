"""Brain maps whose cortex is cut into parcels: cortex of one folder's maps, parcels of another's.

    python recipes/parcels/merge.py BRAIN_MAPS PARCEL_MAPS -o OUT

Every map of the first folder is written to OUT with its cortex (3 left, 42 right) replaced by the Desikan-Killiany
parcels (1001 to 1035, 2001 to 2035) of the second folder's map of the same name (anything after it: ``a_dk.nii.gz``
goes with ``a.nii.gz``) on the same grid. Cortex without a parcel, or with one of the other hemisphere, takes the
nearest parcel of its own. Then: ``synthseg bank OUT -o BANK.safetensors --protocol synthseg-generation-dk``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from synthseg.errors import LabelError, ShapeError, SynthsegError, UsageError
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, is_volume_path, read_volume, strip_extension, write_volume

CORTEX = {"left": 3, "right": 42}
MOST_WRONG = 0.2  # of a hemisphere's voxels: more than stray voxels at the midline, so the sides are mixed up


@dataclass(frozen=True)
class Merged:
    """A merged map, and how many cortex voxels it mended."""

    labels: np.ndarray  # [X, Y, Z] int32
    filled: int  # cortex voxels that had no parcel
    wrong_side: int  # cortex voxels that had a parcel of the other hemisphere


def parcels_of_side() -> dict[str, np.ndarray]:
    """The 34 parcel values of each hemisphere, ascending."""
    protocol = load_protocol("desikan-killiany")
    return {side: np.sort([label.value for label in protocol.labels if label.side == side]) for side in CORTEX}


def merge(brain: np.ndarray, parcels: np.ndarray, spacing_mm: np.ndarray, *, subject: str | Path) -> Merged:
    """Replace cortex by parcels.

    Args:
        brain: [X, Y, Z] label map with cortex as 3 and 42.
        parcels: [X, Y, Z] on the same grid; every value but the 68 parcels counts as "no parcel".
        spacing_mm: [3], for the nearest parcel.
        subject: the parcels' file name for the messages.
    Raises: ShapeError if the grids differ in shape; LabelError if a map has no cortex, a hemisphere has no parcel, or
        more than a fifth of its labelled cortex voxels hold parcels of the other one.
    """
    if brain.shape != parcels.shape:
        found = f"a map of shape {parcels.shape} for a brain map of shape {brain.shape}"
        raise ShapeError(subject, found=found, fix="resample the parcels to the brain map's grid, nearest neighbour")
    sides = parcels_of_side()
    labels = brain.astype(np.int32, copy=True)
    filled = wrong = 0
    for side, other in (("left", "right"), ("right", "left")):
        cortex = brain == CORTEX[side]
        known = np.isin(parcels, sides[side])
        own, across = cortex & known, cortex & np.isin(parcels, sides[other])
        _require_side(int(cortex.sum()), int(own.sum()), int(across.sum()), side, subject)
        box = ndimage.find_objects(cortex.astype(np.uint8))[0]
        # Only parcels in this side's cortex may spread: ids outside it belong to sulci that merely lie near.
        nearest = ndimage.distance_transform_edt(
            ~own[box], sampling=spacing_mm, return_distances=False, return_indices=True
        )
        labels[box][cortex[box]] = parcels[box][tuple(nearest)][cortex[box]]
        filled += int((cortex & ~own & ~across).sum())
        wrong += int(across.sum())
    return Merged(labels, filled, wrong)


def _require_side(cortex: int, own: int, across: int, side: str, subject: str | Path) -> None:
    if cortex == 0:
        fix = f"give brain maps whose {side} cortex is {CORTEX[side]}"
        raise LabelError(subject, found=f"no {side} cortex in its brain map", fix=fix)
    if across > MOST_WRONG * (own + across):
        found = f"{across} of {own + across} {side} cortex voxels with parcels of the other hemisphere"
        raise LabelError(subject, found=found, fix="left parcels are 1001 to 1035, right 2001 to 2035: check the sides")
    if own == 0:
        fix = "give a map with Desikan-Killiany parcels in FreeSurfer's numbers"
        raise LabelError(subject, found=f"no parcel on the {side} cortex", fix=fix)


def pair_up(brain_folder: Path, parcel_folder: Path) -> list[tuple[Path, Path]]:
    """Brain maps with the parcel maps that carry their name.

    Raises: UsageError if a folder holds no volumes, or a brain map does not have exactly one partner.
    """
    brains, parcels = (_volumes(folder) for folder in (brain_folder, parcel_folder))
    pairs = []
    for brain in brains:
        stem = strip_extension(brain)
        exact = [path for path in parcels if strip_extension(path) == stem]
        found = exact or [path for path in parcels if strip_extension(path).startswith((f"{stem}_", f"{stem}-"))]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            fix = f"put exactly one map named {stem}_*.nii.gz into {parcel_folder}"
            raise UsageError(brain, found=f"these maps of its parcels: {names}", fix=fix)
        pairs.append((brain, found[0]))
    return pairs


def _volumes(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if is_volume_path(path)) if folder.is_dir() else []
    if not paths:
        raise UsageError(folder, found="no label maps", fix="give a folder of .nii.gz, .nii or .mgz label maps")
    return paths


def merge_files(brain_path: Path, parcel_path: Path, out: Path) -> Merged:
    """Merge two files into ``out``. Raises: as :func:`merge`; ShapeError also if the affines differ."""
    brain, parcels = read_volume(brain_path, labels=True), read_volume(parcel_path, labels=True)
    if brain.shape == parcels.shape and not np.allclose(brain.affine, parcels.affine, atol=1e-3):
        fix = "resample the parcels to the brain map's grid, nearest neighbour"
        raise ShapeError(parcel_path, found="another affine than its brain map's", fix=fix)
    merged = merge(brain.data, parcels.data, brain.spacing_mm, subject=parcel_path)
    write_volume(Volume(merged.labels, brain.affine), out, dtype=np.int16, header_like=brain_path)
    return merged


def exit_code_of(work: Callable[[], None]) -> int:
    """Run a command: 0 = done, 1 or 2 = an error of one sentence that was printed."""
    try:
        work()
    except (SynthsegError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, SynthsegError) else 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Merge every pair of maps; 0 = done, 1 or 2 = an error that was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brain_maps", type=Path)
    parser.add_argument("parcel_maps", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    return exit_code_of(lambda: merge_folders(given.brain_maps, given.parcel_maps, given.out))


def merge_folders(brain_maps: Path, parcel_maps: Path, out_folder: Path) -> None:
    """Merge every pair of maps of two folders, and say what was mended. Raises: as :func:`merge_files`."""
    for brain, parcels in pair_up(brain_maps, parcel_maps):
        out = out_folder / f"{strip_extension(brain)}.nii.gz"
        merged = merge_files(brain, parcels, out)
        told = f"{merged.filled} cortex voxels without a parcel filled, {merged.wrong_side} on the wrong side mended"
        print(f"{out}: {told}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
