"""Grey matter, white matter and CSF probabilities, as pipelines for functional and diffusion MRI expect them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from synthseg.errors import UsageError
from synthseg.inference.sparse import Piece, SparsePosteriors
from synthseg.inference.structures import Structure

# Which of FreeSurfer's label values make up each tissue. The convention is that of fMRIPrep (smriprep, workflows/
# anatomical.py, "map FreeSurfer's segmentation onto a 3-tissue segmentation"): deep nuclei, hippocampus, amygdala and
# cerebellar cortex are grey matter; brain-stem and ventral DC, which hold both, are white matter; CSF is the ventricles
# and what surrounds the brain (24). FreeSurfer's own tissue types differ in that brain-stem and ventral DC are grey.
TISSUES: dict[str, tuple[int, ...]] = {
    "gm": (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58),
    "wm": (2, 41, 7, 46, 16, 28, 60),
    "csf": (4, 43, 5, 44, 14, 15, 24),
}


def require_tissues(structures: Sequence[Structure]) -> None:
    """Raise UsageError unless every structure is one of those that :data:`TISSUES` knows: before anything is done.

    Cortical parcels, which are parts of a structure that has its tissue, are no obstacle.
    """
    known = {0, *(value for values in TISSUES.values() for value in values)}
    strange = [s.name for s in structures if s.value not in known and s.whole is None]
    if strange:
        found = f"weights with structures that FreeSurfer's tissues do not cover: {', '.join(strange)}"
        raise UsageError("tissue maps", found=found, fix="leave --tissue-maps out, or use --weights default")


def tissue_posteriors(posteriors: SparsePosteriors, values: np.ndarray) -> SparsePosteriors:
    """The posteriors of background, GM, WM and CSF, in this order: sums of the structures' ones.

    Args:
        posteriors: normalised, one channel a structure.
        values: [C] label value of each channel; those of no tissue count as background.
    """
    group = {value: index for index, tissue in enumerate(TISSUES, start=1) for value in TISSUES[tissue]}
    foreground = posteriors.pieces[0].index
    place = np.zeros(math.prod(posteriors.shape), dtype=np.int32)  # of every voxel of the box in the foreground's list
    place[foreground] = np.arange(len(foreground), dtype=np.int32)
    sums = np.zeros((1 + len(TISSUES), len(foreground)), dtype=np.float32)
    for piece in posteriors.pieces:
        where = place.take(piece.index)
        for channel, found in zip(piece.channels, piece.values, strict=True):
            sums[group.get(int(values[channel]), 0)][where] += found
    tissues = Piece(tuple(range(len(sums))), foreground, sums)
    return SparsePosteriors(len(sums), (tissues,), posteriors.start, posteriors.shape, posteriors.grid)
