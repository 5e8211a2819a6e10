"""What the sampler may be told: shapes, their space, the density in it, and what becomes of it (reference B.2)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from synthseg.anatomies.groups import REFERENCE_GROUPS
from synthseg.configs import config_from_dict, told_at
from synthseg.errors import ConfigError

Scheme = Literal["general", "reference", "uniform"]
# Variants of one map by the names that `synthseg shapes`, `synthseg sublabels` and their like give: their stem is one.
SIBLINGS = r"(.+?)(?:_shape-\d+)?(?:_v\d+)?"


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What is measured of each map."""

    labels: str = "structures"  # "structures", "tissues" or a list of values (groups.shape_groups)
    units: Literal["mm", "voxel"] = "mm"
    closed: bool = True  # shapes cut off by the map's border get a surface there
    absent: Literal["fill", "refuse"] = "fill"  # a shape that a map lacks: median of the others and a column, or error


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """From features to the space in which maps are near or far."""

    scaling: Literal["robust", "minmax", "rank"] = "robust"
    emphasis: tuple[tuple[str, float], ...] = ()  # (pattern of feature names, factor), after scaling
    components: int = 3  # principal components
    variance: float | None = None  # instead: as many as explain this share

    def __post_init__(self) -> None:
        _least("space.components", self.components, 1)
        if self.variance is not None and not 0 < self.variance <= 1:
            raise ConfigError("sampler: space.variance", found=repr(self.variance), fix="give a share in (0, 1]")
        for pattern, factor in self.emphasis:
            if not 0 <= factor < math.inf:
                raise ConfigError(
                    "sampler: space.emphasis", found=f"{pattern}={factor}", fix="give finite factors of 0 or more"
                )


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """How common a shape is."""

    kind: Literal["kernel", "mixture", "soft", "kmeans", "farthest", "uniform"] = "kernel"
    bandwidth: float = 1.0  # kernel: factor on Scott's rule
    clusters: tuple[int, ...] = ()  # of each data set, or one number for all; empty: round(sqrt(n) / 2)
    min_cluster: int = 1  # smaller clusters join the nearest one
    restarts: int = 10  # k-means starts of each fit
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46, 47, 48, 49)  # weights are averaged over them
    empty: Literal["share", "refuse"] = "share"  # the mass of clusters without maps: to the others, or an error

    def __post_init__(self) -> None:
        _least("density.min_cluster", self.min_cluster, 1)
        _least("density.restarts", self.restarts, 1)
        for count in self.clusters:
            _least("density.clusters", count, 1)
        if not 1e-3 <= self.bandwidth <= 1e3:
            raise ConfigError("sampler: density.bandwidth", found=repr(self.bandwidth), fix="give 0.001 to 1000")
        if not self.seeds or not all(0 <= seed < 2**32 for seed in self.seeds):
            fix = "give at least one, each 0 to 4294967295"
            raise ConfigError("sampler: density.seeds", found=", ".join(map(str, self.seeds)) or "none", fix=fix)


@dataclass(frozen=True, kw_only=True)
class StrengthSettings:
    """How much of the density's say is followed: the trade of common cases for rare ones."""

    temper: float = 1.0  # weights to this power: 0 uniform, 1 all of it
    uniform: float = 0.2  # share of the draws that are uniform
    cap: float | None = 4.0  # largest weight, as a multiple of the median

    def __post_init__(self) -> None:
        if not self.temper >= 0:
            raise ConfigError("sampler: strength.temper", found=repr(self.temper), fix="give a power of at least 0")
        if not 0 <= self.uniform <= 1:
            raise ConfigError("sampler: strength.uniform", found=repr(self.uniform), fix="give a share in [0, 1]")
        if self.cap is not None and not self.cap >= 1:
            raise ConfigError("sampler: strength.cap", found=repr(self.cap), fix="give a multiple of at least 1")


@dataclass(frozen=True, kw_only=True)
class FamilySettings:
    """Which maps belong together, and which do not count."""

    siblings: str | None = SIBLINGS  # of file names without extension: equal first groups are one anatomy
    duplicates: Literal["join", "keep"] = "join"  # maps of exactly the same shapes are one anatomy, too
    border: float | None = 0.01  # share of the surface cut off by the map's border beyond which a map does not count
    datasets: str | None = None  # of file names: the first group is the data set; None: the folder or bank is
    mass: Literal["equal", "maps"] = "equal"  # of data sets: the same, or as their numbers of maps
    masses: tuple[tuple[str, float], ...] = ()  # instead: by data set
    joint: bool = False  # one density over all data sets, which then have no masses

    def __post_init__(self) -> None:
        for key in ("siblings", "datasets"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                found = f"{getattr(self, key)!r} ({error})"
                raise ConfigError(f"sampler: family.{key}", found=found, fix="give a regular expression") from error
        if self.border is not None and not self.border >= 0:
            raise ConfigError("sampler: family.border", found=repr(self.border), fix="give a share of at least 0")
        names, given = [name for name, _ in self.masses], [mass for _, mass in self.masses]
        usable = all(0 <= mass < math.inf for mass in given) and (not given or sum(given) > 0)
        if not usable or len(set(names)) < len(names):
            found = ", ".join(f"{name}={mass:g}" for name, mass in self.masses)
            fix = "give each data set one finite mass of at least 0, not all 0"
            raise ConfigError("sampler: family.masses", found=found, fix=fix)
        if self.joint and self.masses:
            raise ConfigError("sampler: family.joint", found="masses beside it", fix="leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """All of it. The defaults are the general scheme (reference B.2 with the mitigations of B.4)."""

    scheme: Scheme = "general"  # the preset these values started from; for the record
    features: FeatureSettings = field(default_factory=FeatureSettings)
    space: SpaceSettings = field(default_factory=SpaceSettings)
    density: DensitySettings = field(default_factory=DensitySettings)
    strength: StrengthSettings = field(default_factory=StrengthSettings)
    family: FamilySettings = field(default_factory=FamilySettings)


def preset(scheme: Scheme) -> SamplerSettings:
    """The settings that a name stands for.

    ``reference``: features in voxels of the six inner tissues of FeTA, min-max, twelve columns doubled, three
    components, one Gaussian mixture of full covariances per data set with hard clusters, each data set the same mass
    (reference A.4; seed 42, one start). ``uniform``: every map of a data set alike (its control, A.4.3).
    """
    if scheme == "general":
        return SamplerSettings()
    if scheme == "uniform":
        plain = FamilySettings(siblings=None, duplicates="keep", border=None)
        strength = StrengthSettings(uniform=0.0, cap=None)
        return SamplerSettings(scheme=scheme, density=DensitySettings(kind="uniform"), strength=strength, family=plain)
    return SamplerSettings(
        scheme=scheme,
        features=FeatureSettings(labels=REFERENCE_GROUPS, units="voxel", closed=False, absent="refuse"),
        space=SpaceSettings(scaling="minmax", emphasis=reference_emphasis()),
        density=DensitySettings(kind="mixture", restarts=1, seeds=(42,), empty="refuse"),
        strength=StrengthSettings(uniform=0.0, cap=None),
        family=FamilySettings(siblings=None, duplicates="keep", border=None),
    )


def settings_from(values: Mapping[str, Any], *, where: str) -> SamplerSettings:
    """A preset with changes: ``{"scheme": "reference", "density": {"clusters": [6]}}``, as a TOML file has them.

    ``inf`` switches off what has a limit (TOML knows no none).
    Raises: ConfigError naming the key for anything unknown or out of range.
    """
    scheme = values.get("scheme", "general")
    if not any(scheme == name for name in get_args(Scheme)):
        raise ConfigError(f"{where}: scheme", found=repr(scheme), fix=f"choose one of {', '.join(get_args(Scheme))}")
    merged: dict[str, Any] = dataclasses.asdict(preset(scheme))
    for key, value in values.items():
        if isinstance(merged.get(key), dict) and isinstance(value, Mapping):
            merged[key] |= {name: None if one == math.inf else one for name, one in value.items()}
        else:
            merged[key] = value
    with told_at(where):
        return config_from_dict(SamplerSettings, merged, where=where)


def reference_emphasis() -> tuple[tuple[str, float], ...]:
    """The reference's twelve doubled columns: the global three, and grey matter, white matter, ventricles (A.4.3)."""
    shapes = ("grey matter", "white matter", "ventricles")
    names = ["volume", "area", "area per volume"]
    names += [f"{what}: {shape}" for what in ("volume share", "area share", "area per volume") for shape in shapes]
    return tuple((name, 2.0) for name in names)


def _least(key: str, value: int, least: int) -> None:
    if not value >= least:
        raise ConfigError(f"sampler: {key}", found=repr(value), fix=f"give at least {least}")
