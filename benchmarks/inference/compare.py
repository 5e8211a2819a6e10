"""Whether two label maps of one scan say the same, told as JSON.

python -m benchmarks.inference.compare REFERENCE LABELS
"""

from __future__ import annotations

import sys

import numpy as np
from benchmarks.inference.measure import tell

from synthseg.volumes import read_volume


def compared(reference: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of equal voxels where either has a structure, and of the reference's voxels that are one."""
    either = (reference > 0) | (labels > 0)
    same = float((reference[either] == labels[either]).mean()) if either.any() else 1.0
    return {"same": same, "differing_voxels": int((reference != labels).sum()), "brain": float((reference > 0).mean())}


def main() -> None:
    reference, labels = (read_volume(path, labels=True).data for path in sys.argv[1:3])
    tell(**compared(reference, labels))


if __name__ == "__main__":
    main()
