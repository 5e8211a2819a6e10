"""What a scan gives when it is segmented as the original would: its output files and table rows, before writing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthseg.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """The original's outputs for one scan (reference 6.7 to 6.9).

    Attributes:
        labels: int32 on the output grid: 1 mm, or the scan's own where that is within 5 % of 1 mm, in the order and
            direction of the scan's own axes.
        posteriors: [X, Y, Z, C] float32 on the grid of ``labels``, channels in ascending order of label value,
            background first; None unless asked for. Parcels have none.
        resampled: the scan on the grid of ``labels``, its intensities as they were; None where nothing was resampled,
            or it was not asked for.
        volumes_mm3: by column of the volume table, in its order: "total intracranial" (not for 1.0), the structures,
            the parcels. Rounded to 3 decimals; numpy.float32 where the original computes in single precision. The
            original prints the fewest digits that tell a number of that precision from its neighbours; so does
            ``numpy.format_float_positional(volume, trim="0")``, while ``str`` turns to exponents at 1e6 in numpy 2.
        quality: predicted Dice by column of the quality table, in [0, 1], not rounded; None without quality control.
        notes: what was noticed on the way, in sentences.
    """

    labels: Volume
    posteriors: np.ndarray | None
    resampled: Volume | None
    volumes_mm3: dict[str, float | np.float32]
    quality: dict[str, float] | None
    notes: tuple[str, ...] = ()
