"""What a segmentation should hold besides labels and volumes."""

from __future__ import annotations

from dataclasses import dataclass

from synthseg.inference.config import check_space


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a segmentation should hold besides labels and volumes.

    Raises: ConfigError for another space than native, 1mm and both.
    """

    space: str = "native"  # grid of the labels: "native" (the scan's own), "1mm" or "both"
    posteriors: bool = False  # on the grid of the labels; 4 bytes x 33 per voxel
    regrouped: bool = False  # structures will be chosen or sides merged: that copies the posteriors
    resampled: bool = False  # the scan itself on the 1 mm grid
    tissue_maps: bool = False  # probabilities of grey matter, white matter and CSF on the grid of the labels

    def __post_init__(self) -> None:
        check_space(self.space)
