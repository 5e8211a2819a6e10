"""What a recipe's ``[task]`` may say: which network is trained, from which others, and how its inputs are damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from synthseg.errors import ConfigError

Kind = Literal["structures", "tissues", "denoiser", "guided", "parcels", "quality"]


@dataclass(frozen=True, kw_only=True)
class FrozenNetworks:
    """Finished networks that make a task's inputs, by role: a weights' name, or a path from the recipe's folder."""

    structures: str | None = None
    tissues: str | None = None
    denoiser: str | None = None
    guided: str | None = None


@dataclass(frozen=True, kw_only=True)
class DamagePrior:
    """How label maps that stand in for another network's output are damaged.

    The guide of S2 (reference 5.5) is moved and each of its groups grown or shrunk; the input of D (reference 5.6) is
    eroded as a whole, and here also loses and gains blobs, as the output of S1 on poor scans does.
    """

    move_probability: float = 0.9  # a second, small deformation of the guide
    scaling: float = 0.05
    rotation_deg: float = 3.0
    shearing: float = 0.007
    translation_mm: float = 2.0
    svf_max_std_mm: float = 1.5
    morphology_probability: float = 0.9  # of each group's channel: grown or shrunk by one voxel, equally likely
    erosion_probability: float = 0.15  # of the whole foreground (the code's effective share)
    erosion_mm: float = 4.0
    blob_probability: float = 0.5  # smooth regions that take another group, or background
    blob_node_mm: float = 20.0  # distance of the nodes of the random field whose peaks are the blobs
    blob_share: float = 0.15  # U(0, share) of the voxels lies in blobs

    def __post_init__(self) -> None:
        for key in ("move", "morphology", "erosion", "blob"):
            _probability(f"{key}_probability", getattr(self, f"{key}_probability"))
        _probability("blob_share", self.blob_share)
        for key in ("scaling", "rotation_deg", "shearing", "translation_mm", "svf_max_std_mm", "erosion_mm"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"task.damage.{key}", found=repr(getattr(self, key)), fix="give at least 0")
        if not self.blob_node_mm > 0:
            raise ConfigError("task.damage.blob_node_mm", found=repr(self.blob_node_mm), fix="give a positive distance")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which network is trained. ``structures`` is the plain segmentation network; the others are SynthSeg+'s."""

    kind: Kind = "structures"
    weights: FrozenNetworks = field(default_factory=FrozenNetworks)
    # Share of the inputs made by the frozen networks from the synthetic image; the others are damaged truths.
    predicted_probability: float = 0.5
    damage: DamagePrior = field(default_factory=DamagePrior)
    cut_probability: float = 0.3  # quality: the image (not the truth) ends at a random box
    cut_least_mm: float = 70.0  # quality: least side of that box (reference 5.8: 70 voxels of 1 mm)

    def __post_init__(self) -> None:
        _probability("predicted_probability", self.predicted_probability)
        _probability("cut_probability", self.cut_probability)
        if not self.cut_least_mm > 0:
            raise ConfigError("task.cut_least_mm", found=repr(self.cut_least_mm), fix="give a positive length in mm")


def _probability(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"task.{key}", found=repr(value), fix="give a probability in [0, 1]")
