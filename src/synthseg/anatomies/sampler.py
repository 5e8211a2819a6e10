"""Label maps in, a weight for each out: rare anatomies are drawn more often (the door of this part of the room).

Source: reference A.4 (the fetal extension's scheme) and B (its generalisation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from synthseg.anatomies.density import NO_CLUSTER, spread
from synthseg.anatomies.families import dataset_of, family_of, join_families, representatives
from synthseg.anatomies.features import ShapeMeasures, feature_names, feature_vector
from synthseg.anatomies.groups import ShapeGroup, shape_groups
from synthseg.anatomies.scaling import embed
from synthseg.anatomies.settings import SamplerSettings
from synthseg.anatomies.sources import MapSource, measure_all, sources_of
from synthseg.anatomies.weights import dataset_masses, effective_sample_size, share_within, soften, with_uncounted
from synthseg.errors import ConfigError
from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol, load_protocol

DEFAULT_PROTOCOL = "synthseg-generation"
_OUTLIER = 5.0  # standard deviations by the interquartile range; a Gaussian's five hundred maps hold none


@dataclass(frozen=True)
class MapRow:
    """One map: a row of the table."""

    name: str
    weight: float
    dataset: str
    family: str  # maps of one anatomy share its weight
    cluster: int  # -1: none
    scores: tuple[float, ...]  # of its anatomy, in principal components
    flags: tuple[str, ...]  # what a person should look at


@dataclass(frozen=True)
class PartFacts:
    """One density: a data set, or all of them."""

    name: str
    maps: int
    anatomies: int
    mass: float
    explained: tuple[float, ...]
    cluster_sizes: tuple[int, ...]  # anatomies; empty where the density has no clusters
    central: str  # the map nearest to the mean of all


@dataclass(frozen=True)
class MapWeights:
    """A weight for each map, sum 1, and what they rest on."""

    rows: tuple[MapRow, ...]
    parts: tuple[PartFacts, ...]
    settings: SamplerSettings
    groups: tuple[ShapeGroup, ...]
    columns: tuple[str, ...]
    features: np.ndarray  # [n, F], NaN where a map lacks a shape

    def as_dict(self) -> dict[str, float]:
        """Weight by map name."""
        return {row.name: row.weight for row in self.rows}

    @property
    def weights(self) -> np.ndarray:
        """[n] in the order of the maps."""
        return np.array([row.weight for row in self.rows])

    @property
    def effective(self) -> float:
        """Effective number of maps."""
        return effective_sample_size(self.weights)


def weights_of(
    places: Sequence[Path] | LabelBank,
    settings: SamplerSettings | None = None,
    *,
    protocol: LabelProtocol | None = None,
    cache: Path | None = None,
    on_map: Callable[[str], None] = lambda _: None,
) -> MapWeights:
    """Measure label maps and weigh them.

    Args:
        places: files of label maps, or a bank.
        settings: by default the general scheme.
        protocol: of the files' values (default ``synthseg-generation``); a bank has its own.
        cache: file of measures that is read and added to.
        on_map: called with each map's name when it has been measured.
    Returns: a pure function of maps and settings: the same on every run.
    Raises: ConfigError for settings that do not fit maps or protocol, LabelError naming a map, UsageError for no maps
        or a missing package.
    """
    chosen = settings or SamplerSettings()
    table = places.protocol if isinstance(places, LabelBank) else protocol or load_protocol(DEFAULT_PROTOCOL)
    sources = sources_of(places, table)
    groups = shape_groups(table, chosen.features.labels)
    datasets = [dataset_of(source, chosen.family) for source in sources]
    measures = measure_all(sources, groups, chosen.features, cache=cache, on_map=on_map)
    return weigh(sources, datasets, measures, groups, chosen)


def weigh(
    sources: Sequence[MapSource],
    datasets: Sequence[str],
    measures: Sequence[ShapeMeasures],
    groups: Sequence[ShapeGroup],
    settings: SamplerSettings,
) -> MapWeights:
    """From measures to weights; the arguments are aligned, one entry a map (groups apart)."""
    names = [source.name for source in sources]
    columns = feature_names(groups)
    features = np.array([feature_vector(measured) for measured in measures])
    parts = dict.fromkeys(["all"] if settings.family.joint else datasets)
    masses = {"all": 1.0}
    if not settings.family.joint:
        masses = dataset_masses({name: datasets.count(name) for name in parts}, settings.family)
    clusters = _cluster_counts(list(parts), settings)
    rows: dict[int, MapRow] = {}
    facts = []
    for name in parts:
        members = [n for n in range(len(names)) if settings.family.joint or datasets[n] == name]
        own_names, own_measures = [names[n] for n in members], [measures[n] for n in members]
        part = _Part(own_names, own_measures, features[members], columns, groups, settings)
        found, fact = part.rows([datasets[n] for n in members], name, masses[name], clusters[name])
        rows.update(zip(members, found, strict=True))
        facts.append(fact)
    ordered = tuple(rows[n] for n in range(len(names)))
    return MapWeights(ordered, tuple(facts), settings, tuple(groups), columns, features)


class _Part:
    """The maps that share one density."""

    def __init__(
        self,
        names: list[str],
        measures: list[ShapeMeasures],
        features: np.ndarray,
        columns: tuple[str, ...],
        groups: Sequence[ShapeGroup],
        settings: SamplerSettings,
    ) -> None:
        self.names, self.measures, self.settings, self.groups = names, measures, settings, groups
        self.columns, self.features = columns, features
        self.families, self.member_of = join_families(names, measures, settings.family)
        self.points = representatives(names, self.families, self.member_of, features)
        limit = settings.family.border
        self.cut = np.array([limit is not None and measured.border > limit for measured in measures])
        self.far = far_off(features)
        self.counts = np.array([not self.cut[self.member_of == g].any() for g in range(len(self.families))])

    def rows(
        self, datasets: Sequence[str], name: str, mass: float, clusters: int | None
    ) -> tuple[list[MapRow], PartFacts]:
        """Weights of these maps, which sum to ``mass``."""
        settings, counts = self.settings, self.counts
        if not counts.any():
            fix = "leave such maps out, or raise family.border"
            raise ConfigError(f"sampler: {name}", found="no map whose shapes lie within it", fix=fix)
        space = embed(self.points, self.columns, settings.space, counts)
        wanted = clusters or max(1, round(float(np.sqrt(counts.sum())) / 2))
        found = spread(space.scores[counts], settings.density, wanted)
        weights = with_uncounted(soften(found.weights, settings.strength), counts)
        cluster = np.full(len(counts), NO_CLUSTER)
        cluster[counts] = found.cluster
        each = share_within(weights, self.member_of) * mass
        rows = [
            MapRow(
                map_name,
                float(each[n]),
                datasets[n],
                self.families[self.member_of[n]],
                int(cluster[self.member_of[n]]),
                tuple(map(float, space.scores[self.member_of[n]])),
                self._flags(n),
            )
            for n, map_name in enumerate(self.names)
        ]
        central = int(np.linalg.norm(space.scores - space.scores[counts].mean(axis=0), axis=1).argmin())
        sizes = np.bincount(found.cluster[found.cluster != NO_CLUSTER])
        middle = self.names[int(np.flatnonzero(self.member_of == central)[0])]
        several = tuple(map(int, sizes))
        return rows, PartFacts(name, len(rows), len(counts), mass, space.explained, several, middle)

    def _flags(self, index: int) -> tuple[str, ...]:
        measured = self.measures[index]
        flags = []
        if self.cut[index]:
            flags.append(f"cut off at the border ({100 * measured.border:.1f} % of the surface): not in the density")
        flags += [f"no {group.name}" for group in compress(self.groups, measured.absent)]
        twins = [
            name
            for n, name in enumerate(self.names)
            if n < index
            and (self.measures[n].volumes, self.measures[n].areas) == (measured.volumes, measured.areas)
            and family_of(name, self.settings.family) != family_of(self.names[index], self.settings.family)
        ]
        if twins:
            flags.append(f"same shapes as {twins[0]}")
        flags += [f"far from the others: {name}" for name in compress(self.columns, self.far[index])][:3]
        return tuple(flags)


def far_off(features: np.ndarray) -> np.ndarray:
    """[n, F] bool: features more than 5 deviations (by the interquartile range) from the median of all maps."""
    far = np.zeros(features.shape, dtype=bool)
    for column in range(features.shape[1]):
        own = features[:, column]
        known = own[~np.isnan(own)]
        if len(known):
            low, middle, high = np.percentile(known, [25, 50, 75])
            far[:, column] = np.abs(np.nan_to_num(own, nan=middle) - middle) > _OUTLIER * (high - low) / 1.349 + 1e-12
    return far


def _cluster_counts(parts: Sequence[str], settings: SamplerSettings) -> dict[str, int | None]:
    """The number asked for of each part; None: by its size."""
    given = settings.density.clusters
    if not given:
        return dict.fromkeys(parts)
    if len(given) not in (1, len(parts)):
        found = f"{len(given)} numbers for {len(parts)} data sets"
        raise ConfigError("sampler: density.clusters", found=found, fix="give one number, or one for each data set")
    return dict(zip(parts, given * len(parts) if len(given) == 1 else given, strict=True))
