"""Hyperparameters of the generative model's optional stages: what the paper's model does not have, off by default.

Each stage says in ``enabled`` whether its values let it do anything; a stage that is off draws nothing, so that pairs
of a seed stay what they were. What they look like and cost: docs/stages.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synthseg.generation.config_checks import not_negative as _not_negative
from synthseg.generation.config_checks import ordered as _ordered
from synthseg.generation.config_checks import positive as _positive
from synthseg.generation.config_checks import probability as _probability
from synthseg.generation.config_checks import require as _require


@dataclass(frozen=True, kw_only=True)
class PartialVolumePrior:
    """Partial volume: a voxel's mean and deviation are averages over positions spread over the voxel.

    The paper gives each voxel one label, so that tissue borders are steps; a voxel of a scan mixes what lies in it.
    """

    positions: Literal[0, 2, 4, 8] = 0  # label look-ups a voxel; 0 turns the stage off
    probability: float = 1.0  # of the pairs; the others keep one label a voxel

    def __post_init__(self) -> None:
        _probability("partial_volume.probability", self.probability)

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.positions > 0 and self.probability > 0


@dataclass(frozen=True, kw_only=True)
class ClustersPrior:
    """Sub-regions within a label: two or three, with means a little apart, as within cortex, white matter or fat."""

    probability: float = 0.0  # of the pairs
    max_std: float = 15.0  # intensity units of 0 to 255: offsets ~ N(0, s^2) with s ~ U(0, max_std) for each pair
    node_mm: float = 15.0  # distance of the nodes of the random fields whose signs bound the regions

    def __post_init__(self) -> None:
        _probability("clusters.probability", self.probability)
        _not_negative("clusters.max_std", self.max_std)
        _positive("clusters.node_mm", self.node_mm)

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.probability > 0 and self.max_std > 0


@dataclass(frozen=True, kw_only=True)
class MorphologyPrior:
    """Ventricles and sulci wider or narrower, by displacements that follow the labels, and heads of other sizes.

    Which labels are ventricles, CSF and brain comes from the label table (``generation/roles.py``).
    """

    probability: float = 0.0  # of the pairs whose ventricles and sulci change
    ventricles_mm: tuple[float, float] = (-3.0, 8.0)  # U(low, high): how far a wide ventricle's wall moves outwards
    ventricles_sigma_mm: float = 6.0  # smoothing of the ventricles' mask: how far tissue around them gives way
    sulci_mm: tuple[float, float] = (-0.5, 1.3)  # U(low, high): how far the cortex moves away from the CSF
    sulci_sigma_mm: float = 3.0  # smoothing of the CSF's mask
    size_range: tuple[float, float] = (1.0, 1.0)  # U(low, high) factor on the head, beside the affine's; of all pairs

    def __post_init__(self) -> None:
        _probability("morphology.probability", self.probability)
        for key in ("ventricles_sigma_mm", "sulci_sigma_mm"):
            _positive(f"morphology.{key}", getattr(self, key))
        # Within these bounds no displacement folds: see generation/morphology.py.
        most = 1.5 * self.ventricles_sigma_mm
        _ordered("morphology.ventricles_mm", self.ventricles_mm, -most, most)
        most = 0.45 * self.sulci_sigma_mm
        _ordered("morphology.sulci_mm", self.sulci_mm, -most, most)
        _ordered("morphology.size_range", self.size_range, 0.5, 2.0)

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.changes_tissues or self.size_range != (1, 1)

    @property
    def changes_tissues(self) -> bool:
        """Whether ventricles or sulci can change at all."""
        return self.probability > 0 and (self.ventricles_mm != (0, 0) or self.sulci_mm != (0, 0))


@dataclass(frozen=True, kw_only=True)
class SurroundingsPrior:
    """What is outside the brain: labels that are missing, a cut neck or face, voids, patches in the background.

    The target does not change: only labels that stripping may take away are touched, and the image's background.
    """

    drop_probability: float = 0.0  # of the pairs: labels outside the brain become background, each with drop_share
    drop_share: float = 0.5
    cut_probability: float = 0.0  # of the pairs: what is outside the brain ends at a plane below or before it
    cut_mm: tuple[float, float] = (40.0, 90.0)  # U(low, high): the plane's distance from the brain's centre
    void_probability: float = 0.0  # of the pairs: smooth holes outside the brain
    patch_probability: float = 0.0  # of the pairs: soft patches of another Gaussian in the background
    node_mm: float = 25.0  # distance of the nodes of the random fields that bound voids and patches

    def __post_init__(self) -> None:
        for key in ("drop_probability", "drop_share", "cut_probability", "void_probability", "patch_probability"):
            _probability(f"surroundings.{key}", getattr(self, key))
        _ordered("surroundings.cut_mm", self.cut_mm, 0, 1000)
        _positive("surroundings.node_mm", self.node_mm)

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return max(self.drop_probability, self.cut_probability, self.void_probability, self.patch_probability) > 0


@dataclass(frozen=True, kw_only=True)
class FieldOfViewPrior:
    """Scans that end within the head: beyond a side of the field of view the image is 0 and the target background."""

    probability: float = 0.0  # of the pairs
    side_probability: float = 0.3  # of these: for each of the six sides
    max_share: float = 0.25  # of the axis: U(0, max_share) is cut

    def __post_init__(self) -> None:
        _probability("field_of_view.probability", self.probability)
        _probability("field_of_view.side_probability", self.side_probability)
        # At most 0.4: a fifth of eight voxels, the shortest axis, always holds a voxel's centre.
        _require(0 <= self.max_share <= 0.4, "field_of_view.max_share", self.max_share, "give a share of 0 to 0.4")

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.probability > 0 and self.side_probability > 0 and self.max_share > 0


@dataclass(frozen=True, kw_only=True)
class NoisePrior:
    """Noise of the scanner: added to the slices as acquired, before they are interpolated to the pair's grid.

    The mixture's noise comes before the blur, which all but removes it from thick slices; a scan's own does not.
    """

    probability: float = 0.0  # of the pairs
    max_std: float = 0.05  # of images in [0, 1]: s ~ U(0, max_std)

    def __post_init__(self) -> None:
        _probability("noise.probability", self.probability)
        _not_negative("noise.max_std", self.max_std)

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.probability > 0 and self.max_std > 0


@dataclass(frozen=True, kw_only=True)
class GhostsPrior:
    """Ghosts of motion: part of the signal appears shifted along one axis, wrapped around."""

    probability: float = 0.0  # of the pairs
    max_strength: float = 0.2  # U(0, max_strength) of the signal goes into the ghosts
    max_copies: int = 4  # ghosts lie n / copies voxels away on an axis of n; copies 2 to max_copies, equally likely

    def __post_init__(self) -> None:
        _probability("ghosts.probability", self.probability)
        _require(0 <= self.max_strength < 1, "ghosts.max_strength", self.max_strength, "give a share in [0, 1)")
        _require(2 <= self.max_copies <= 8, "ghosts.max_copies", self.max_copies, "give 2 to 8")

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.probability > 0 and self.max_strength > 0


@dataclass(frozen=True, kw_only=True)
class InflationPrior:
    """One label of a pair grown by a voxel or two, over whatever lies there, in image and target alike.

    Source: the fetal extension's label inflation (reference A.6.2), which its own training leaves off. Its values:
    ``probability = 1`` and the edges below, of which half change nothing.
    """

    probability: float = 0.0  # of the pairs
    edges: tuple[int, ...] = (1, 1, 1, 2, 3, 4)  # voxels of the cube that grows it, each equally likely; 1: as it was
    values: tuple[int, ...] = ()  # labels, each equally likely; empty: all with a target, the background excepted

    def __post_init__(self) -> None:
        _probability("inflation.probability", self.probability)
        usable = bool(self.edges) and all(1 <= edge <= 9 for edge in self.edges)
        _require(usable, "inflation.edges", self.edges, "give edges of 1 to 9 voxels")

    @property
    def enabled(self) -> bool:
        """Whether the stage is drawn at all."""
        return self.probability > 0 and max(self.edges) > 1
