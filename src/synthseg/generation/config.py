"""The generative model's hyperparameters: one small frozen config a stage, with units and source.

Defaults follow the paper (Billot et al. 2023, Media, section 3.1); where its supplement is not public, the original
code's value is used. :func:`original` gives the values of the released code. See docs/decisions/0001-paper-or-code.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from synthseg.generation.config_checks import not_negative as _not_negative
from synthseg.generation.config_checks import positive as _positive
from synthseg.generation.config_checks import probability as _probability
from synthseg.generation.config_checks import require as _require
from synthseg.generation.config_stages import (
    ClustersPrior,
    FieldOfViewPrior,
    GhostsPrior,
    InflationPrior,
    MorphologyPrior,
    NoisePrior,
    PartialVolumePrior,
    SurroundingsPrior,
)
from synthseg.generation.priors import ClassPriors, load_priors, prior_blocks


@dataclass(frozen=True, kw_only=True)
class GridPrior:
    """The grid pairs are made on, and which part of the label map it shows (section 4.2: random 160^3 crops)."""

    shape: tuple[int, int, int] = (160, 160, 160)  # voxels
    spacing_mm: float = 1.0  # r_HR
    focus: Literal["map", "brain"] = "map"  # crop centre: anywhere in the map, or at the brain's centre
    jitter_mm: float = 20.0  # with focus = "brain": the centre moves by U(-jitter, jitter) along each axis

    def __post_init__(self) -> None:
        _require(min(self.shape) >= 8, "grid.shape", self.shape, "give three sides of at least 8 voxels")
        _require(0.1 <= self.spacing_mm <= 10, "grid.spacing_mm", self.spacing_mm, "give a spacing of 0.1 to 10 mm")
        _not_negative("grid.jitter_mm", self.jitter_mm)


@dataclass(frozen=True, kw_only=True)
class DeformationPrior:
    """Affine and diffeomorphic deformation (Eqs. 1-10)."""

    scaling: float = 0.2  # each axis: U(1 - s, 1 + s)
    rotation_deg: float = 15.0  # each axis: U(-r, r)
    shearing: float = 0.012  # six off-diagonal entries: U(-s, s)
    translation_mm: float = 0.0  # each axis: U(-t, t); crops already move the head
    svf_max_std_mm: float = 4.0  # sigma ~ U(0, max) of the stationary velocity field's nodes
    svf_node_mm: float = 25.0  # distance of its nodes: 0.04 nodes per voxel of 1 mm, about 10^3 in a head
    svf_step_mm: float = 4.0  # grid it is integrated on
    svf_gain: float = 1.0  # 2 repeats the original code: integrated at half size, applied unscaled at full size
    squarings: int = 7

    def __post_init__(self) -> None:
        _require(0 <= self.scaling < 1, "deformation.scaling", self.scaling, "give a factor in [0, 1)")
        _require(0 <= self.rotation_deg <= 180, "deformation.rotation_deg", self.rotation_deg, "give 0 to 180 degrees")
        _require(0 <= self.shearing < 0.5, "deformation.shearing", self.shearing, "give a factor in [0, 0.5)")
        for key in ("translation_mm", "svf_max_std_mm"):
            _not_negative(f"deformation.{key}", getattr(self, key))
        for key in ("svf_node_mm", "svf_step_mm", "svf_gain"):
            _positive(f"deformation.{key}", getattr(self, key))
        _require(1 <= self.squarings <= 12, "deformation.squarings", self.squarings, "give 1 to 12")


@dataclass(frozen=True, kw_only=True)
class AnatomyPrior:
    """What the label map shows: flips, skull stripping and lesions (section 4.2).

    Which labels are stripped and which are lesions comes from the label table (``generation/roles.py``); values given
    here replace that choice.
    """

    flip_probability: float = 0.5
    strip_probability: float = 0.5  # extra-cerebral labels become background
    strip_values: tuple[int, ...] = ()  # empty: the table's labels outside the brain
    strip_csf_probability: float = 0.3  # of the stripped ones: extra-ventricular CSF goes too (the code's value)
    csf_value: int | None = None  # none: 24 where the table calls it CSF
    lesion_probability: float = 0.5  # own lesions are shown; else they become their host tissue
    lesion_paste_probability: float = 1.0  # of those: another map's lesions are pasted into the white matter too
    lesion_values: tuple[int, ...] = ()  # empty: labels named lesions whose target is another label

    def __post_init__(self) -> None:
        for key in ("flip", "strip", "strip_csf", "lesion", "lesion_paste"):
            _probability(f"anatomy.{key}_probability", getattr(self, f"{key}_probability"))


@dataclass(frozen=True, kw_only=True)
class MixturePrior:
    """Gaussian mixture of intensities (Eqs. 11-13; ranges of section 5.2), in intensity units of 0 to 255."""

    kind: Literal["uniform", "normal"] = "uniform"
    classes: Literal["random", "contrast"] = "random"  # which class column of the label protocol is used
    mean_range: tuple[float, float] = (0.0, 255.0)  # uniform
    std_range: tuple[float, float] = (0.0, 35.0)
    symmetric_probability: float = 0.0  # right classes take their left partners' Gaussians (not in the paper)
    # A pair for each class, or one for all: (mean, std) of the class's mean (normal), (lowest, highest) (uniform, which
    # needs none: it has the ranges). Several lists of pairs: each draw takes one.
    class_means: tuple[ClassPriors, ...] | ClassPriors = ()
    class_stds: tuple[ClassPriors, ...] | ClassPriors = ()  # likewise for the class's standard deviation
    mix_probability: float = 0.0  # of taking the ranges in place of the class priors, for means and stds separately
    label_classes: tuple[int, ...] = ()  # class of each label in the table's order, in place of ``classes``
    background_zero_probability: float = 0.05  # class 0 exactly 0 (not in the paper; the code's values)
    background_dark_probability: float = 0.25  # class 0 in U(0, 15), standard deviation in U(0, 5)
    stripped_dark_probability: float = 0.0  # of skull-stripped pairs: background exactly 0, as such scans have it

    def __post_init__(self) -> None:
        for key in ("mean_range", "std_range"):
            low, high = getattr(self, key)
            _require(0 <= low <= high < math.inf, f"mixture.{key}", (low, high), "give 0 <= low <= high, both finite")
        for key in ("background_zero", "background_dark", "stripped_dark", "symmetric", "mix"):
            _probability(f"mixture.{key}_probability", getattr(self, f"{key}_probability"))
        total = self.background_zero_probability + self.background_dark_probability
        _require(total <= 1, "mixture.background_dark_probability", total, "the two background shares exceed 1")
        if self.kind == "normal":
            blocks = [list(map(len, prior_blocks(given))) for given in (self.class_means, self.class_stds)]
            agree = all(blocks) and len({n for counts in blocks for n in counts} - {1}) <= 1
            _require(agree, "mixture.class_means", self.class_means, "give (mean, std) per class for means and stds")
        for key in ("class_means", "class_stds"):
            self._check_pairs(f"mixture.{key}", getattr(self, key))
        classes = set(self.label_classes)
        gapless = classes == set(range(len(classes)))
        _require(gapless, "mixture.label_classes", self.label_classes, "number the classes 0, 1, 2, ... without gaps")

    def _check_pairs(self, key: str, given: tuple[ClassPriors, ...] | ClassPriors) -> None:
        blocks = prior_blocks(given)
        same = len({len(block) for block in blocks}) <= 1 and all(blocks)
        _require(same, key, given, "give every list of pairs the same number of classes")
        for number, block in enumerate(blocks):
            place = f"{key}[{number}]" if len(blocks) > 1 else key
            for index, pair in enumerate(block):
                usable, fix = all(0 <= v < math.inf for v in pair), "give a mean and a standard deviation of at least 0"
                if self.kind == "uniform":
                    usable, fix = -math.inf < pair[0] <= pair[1] < math.inf, "give lowest <= highest, both finite"
                _require(usable, f"{place}[{index}]", pair, fix)


@dataclass(frozen=True, kw_only=True)
class BiasPrior:
    """Multiplicative bias field (Eqs. 14-17)."""

    max_std: float = 0.7  # natural-log units: sigma_B ~ U(0, max_std); 0 turns the stage off
    node_mm: float = 40.0  # distance of the coarse grid's nodes: 160 mm -> 4 nodes
    probability: float = 1.0

    def __post_init__(self) -> None:
        _require(0 <= self.max_std <= 5, "bias.max_std", self.max_std, "give 0 to 5: gains go up to exp(4 max_std)")
        _positive("bias.node_mm", self.node_mm, "give a positive distance, e.g. 40")
        _probability("bias.probability", self.probability)


@dataclass(frozen=True, kw_only=True)
class IntensityPrior:
    """Rescaling and gamma (Eqs. 18-19)."""

    clip_max: float | None = None  # the code clips to [0, 300] before rescaling; the paper does not
    gamma_std: float = 0.5  # log of the exponent ~ N(0, gamma_std)
    final_percentiles: tuple[float, float] | None = None  # stretch the finished image, as test images are stretched

    def __post_init__(self) -> None:
        _not_negative("intensity.gamma_std", self.gamma_std)
        if self.clip_max is not None:
            _require(self.clip_max > 0, "intensity.clip_max", self.clip_max, "give a positive intensity")
        if self.final_percentiles is not None:
            low, high = self.final_percentiles
            _require(0 <= low < high <= 100, "intensity.final_percentiles", (low, high), "give 0 <= low < high <= 100")


@dataclass(frozen=True, kw_only=True)
class AcquisitionPrior:
    """Slice spacing, thickness and direction (Eqs. 20-26)."""

    max_spacing_mm: float = 8.0  # one axis: U(r_HR, max)
    max_isotropic_mm: float = 4.0  # three axes, each U(r_HR, max)
    isotropic_probability: float = 0.0
    native_probability: float = 0.0  # no coarse axis at all
    sigma_factor: float = math.log(10) / math.pi  # Eq. 23; 0.75 in the code
    native_sigma_vox: float = 0.0  # blur of axes that are not thick; 0.5 in the code
    jitter: float = 0.03  # alpha ~ U(1 / (1 + jitter), 1 + jitter)
    downsampling: Literal["linear", "nearest"] = "linear"  # "nearest" in the code
    # Voxel sizes of real acquisitions, in place of drawn ones (SynthSeg-R, section 5.2): each draw takes one row. Axes
    # are the map's: right, front, up. Sizes finer than the grid's become the grid's.
    spacings_mm: tuple[tuple[float, float, float], ...] = ()
    thicknesses_mm: tuple[tuple[float, float, float], ...] = ()  # of their slices, row by row; none: as the spacings

    def __post_init__(self) -> None:
        for key in ("spacings_mm", "thicknesses_mm"):
            given = getattr(self, key)
            usable = all(0 < size < math.inf for row in given for size in row)
            _require(usable, f"acquisition.{key}", given, "give rows of three positive sizes in mm")
        agree = len(self.thicknesses_mm) in (0, len(self.spacings_mm))
        _require(agree, "acquisition.thicknesses_mm", self.thicknesses_mm, "give a row for each row of spacings_mm")
        for key in ("max_spacing_mm", "max_isotropic_mm"):
            _positive(f"acquisition.{key}", getattr(self, key), "give a positive spacing in mm")
        for key in ("isotropic_probability", "native_probability"):
            _probability(f"acquisition.{key}", getattr(self, key))
        total = self.isotropic_probability + self.native_probability
        _require(total <= 1, "acquisition.isotropic_probability", total, "the two probabilities exceed 1")
        for key in ("sigma_factor", "native_sigma_vox", "jitter"):
            _not_negative(f"acquisition.{key}", getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The whole model: the paper's stages in the order they are applied, then the optional ones (``config_stages``)."""

    grid: GridPrior = field(default_factory=GridPrior)
    deformation: DeformationPrior = field(default_factory=DeformationPrior)
    anatomy: AnatomyPrior = field(default_factory=AnatomyPrior)
    mixture: MixturePrior = field(default_factory=MixturePrior)
    bias: BiasPrior = field(default_factory=BiasPrior)
    intensity: IntensityPrior = field(default_factory=IntensityPrior)
    acquisition: AcquisitionPrior = field(default_factory=AcquisitionPrior)
    partial_volume: PartialVolumePrior = field(default_factory=PartialVolumePrior)
    clusters: ClustersPrior = field(default_factory=ClustersPrior)
    morphology: MorphologyPrior = field(default_factory=MorphologyPrior)
    surroundings: SurroundingsPrior = field(default_factory=SurroundingsPrior)
    field_of_view: FieldOfViewPrior = field(default_factory=FieldOfViewPrior)
    noise: NoisePrior = field(default_factory=NoisePrior)
    ghosts: GhostsPrior = field(default_factory=GhostsPrior)
    inflation: InflationPrior = field(default_factory=InflationPrior)


def paper() -> GenerationConfig:
    """The model as section 3.1 of the paper describes it."""
    return GenerationConfig()


def original() -> GenerationConfig:
    """The model of the released code (reference sections 2.2-2.3): its values, each reached by a config key."""
    return GenerationConfig(
        deformation=DeformationPrior(svf_step_mm=2.0, svf_gain=2.0),
        anatomy=AnatomyPrior(strip_probability=0.0, lesion_probability=1.0, lesion_paste_probability=0.0),
        mixture=MixturePrior(mean_range=(0.0, 250.0), std_range=(0.0, 30.0)),
        bias=BiasPrior(probability=0.95),
        intensity=IntensityPrior(clip_max=300.0),
        acquisition=AcquisitionPrior(
            isotropic_probability=0.095,
            native_probability=0.05,
            sigma_factor=0.75,
            native_sigma_vox=0.5,
            downsampling="nearest",
        ),
    )


def t1() -> GenerationConfig:
    """T1-weighted images: the model of :func:`paper` with the original's T1 intensities (reference section 1.8).

    Contrast-specific training, the paper's rival to random contrasts: classes of the ``contrast_class`` column, each
    with normal priors. For another contrast put the values of ``load_priors(table)`` into ``mixture``.
    """
    means, stds = load_priors("t1")
    mixture = MixturePrior(kind="normal", classes="contrast", class_means=means, class_stds=stds)
    return GenerationConfig(mixture=mixture)


PRESETS = {"paper": paper, "original": original, "t1": t1}
