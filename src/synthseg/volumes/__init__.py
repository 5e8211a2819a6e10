"""Scans and label maps on their grids: read, write, orient, resample, crop and pad.

Names load on first use: ``import synthseg.volumes.grid`` (what training needs) loads neither nibabel nor scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.volumes.orient import Orientation, from_ras, to_ras
    from synthseg.volumes.read import read_volume
    from synthseg.volumes.resample import resample_to_spacing, reslice
    from synthseg.volumes.volume import VOLUME_EXTENSIONS, Volume, is_volume_path, strip_extension
    from synthseg.volumes.window import Window, bounding_box, center_window, crop_pad, uncrop_pad
    from synthseg.volumes.write import write_array4d, write_volume

__all__ = [
    "VOLUME_EXTENSIONS",
    "Orientation",
    "Volume",
    "Window",
    "bounding_box",
    "center_window",
    "crop_pad",
    "from_ras",
    "is_volume_path",
    "read_volume",
    "resample_to_spacing",
    "reslice",
    "strip_extension",
    "to_ras",
    "uncrop_pad",
    "write_array4d",
    "write_volume",
]

__getattr__ = lazy_names(
    __name__,
    {
        "orient": ("Orientation", "from_ras", "to_ras"),
        "read": ("read_volume",),
        "resample": ("resample_to_spacing", "reslice"),
        "volume": ("VOLUME_EXTENSIONS", "Volume", "is_volume_path", "strip_extension"),
        "window": ("Window", "bounding_box", "center_window", "crop_pad", "uncrop_pad"),
        "write": ("write_array4d", "write_volume"),
    },
)
