"""Settings of the inference pipeline: a mode (``modes.toml``) is an instance, a variant ``dataclasses.replace``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from synthseg.errors import ConfigError
from synthseg.volumes.standard import PERCENTILES, SPACING_TOLERANCE

Space = Literal["native", "1mm", "both"]
Precision = Literal["float32", "bfloat16", "int8"]
ParcelScaling = Literal["hemisphere", "joint"]
Merge = Literal["mean", "max", "vote"]


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a scan is prepared, predicted and cleaned up. The defaults are the mode ``default``.

    Raises: ConfigError naming the setting that is out of range.
    Source: Billot et al. 2023, section 3.3; thresholds and smoothing from reference 6.4 and 6.5.
    """

    # Paper: 1st and 99th. The original code uses (0.5, 99.5): pass that to compare with it.
    percentiles: tuple[float, float] = PERCENTILES  # of all voxels of the resampled scan
    ct: bool | None = None  # clip to ct_window; None: recognise Hounsfield units by themselves
    ct_window: tuple[float, float] = (0.0, 80.0)  # Hounsfield units
    spacing_tolerance: float = (
        SPACING_TOLERANCE  # relative: a scan this close to a grid's voxel size is not resampled to it
    )
    crop: bool = True  # show networks a window around the brain; False: all of the scan at once
    flip: bool = True  # average with the prediction of the left-right mirrored scan
    smoothing_sigma_vox: float = 0.5  # of the posteriors, in voxels of the working grid, 3 taps; 0 turns it off
    foreground_threshold: float = 0.25  # on the sum of all posteriors but background
    topology: bool = True  # keep the largest component of every topology group
    class_threshold: float = 0.25  # per channel, used when topology is on
    channel_threshold: float = 0.2  # per channel, used when topology is off
    precision: Precision = "float32"
    # Of the parcels' posteriors: smoothed in every mode, the robust one too, in the original (reference 6.4).
    parcel_smoothing_sigma_vox: float = 0.5
    # Parcels add up to the cortex of their own hemisphere, or all of them to that of both (reference C.9).
    parcel_scaling: ParcelScaling = "hemisphere"
    merge: Merge = "mean"  # how several networks for the structures become one result (``ensemble.py``)

    def __post_init__(self) -> None:
        low, high = self.percentiles
        _check(0 <= low < high <= 100, "percentiles", self.percentiles, "two numbers with 0 <= low < high <= 100")
        _check(self.ct_window[0] < self.ct_window[1], "ct_window", self.ct_window, "two numbers, the lower one first")
        _check(0 <= self.spacing_tolerance < 0.5, "spacing_tolerance", self.spacing_tolerance, "a number in [0, 0.5)")
        for name in ("smoothing_sigma_vox", "parcel_smoothing_sigma_vox"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1 voxel")
        for name in ("foreground_threshold", "class_threshold", "channel_threshold"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "a probability in [0, 1)")
        check_precision(self.precision)
        check_merge(self.merge)
        _check(
            self.parcel_scaling in get_args(ParcelScaling), "parcel_scaling", self.parcel_scaling, "hemisphere or joint"
        )

    def to_dict(self) -> dict[str, object]:
        """The settings as they would come back from JSON (tuples as lists): for the run record."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _check(holds: bool, name: str, value: object, fix: str) -> None:
    if not holds:
        raise ConfigError(f"inference setting {name}", found=repr(value), fix=f"use {fix}")


def check_precision(precision: str) -> Precision:
    """Raise ConfigError unless ``precision`` is float32, bfloat16 or int8."""
    _check(precision in get_args(Precision), "precision", precision, "float32, bfloat16 or int8")
    return precision  # type: ignore[return-value]


def check_merge(merge: str) -> Merge:
    """Raise ConfigError unless ``merge`` is mean, max or vote."""
    _check(merge in get_args(Merge), "merge", merge, "mean, max or vote")
    return merge  # type: ignore[return-value]


def check_space(space: str) -> Space:
    """Raise ConfigError unless ``space`` is native, 1mm or both."""
    if space not in get_args(Space):
        raise ConfigError("space", found=repr(space), fix=f"use one of {', '.join(get_args(Space))}")
    return space  # type: ignore[return-value]
