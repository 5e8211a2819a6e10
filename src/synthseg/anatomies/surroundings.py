"""What surrounds a fetal brain, by geometry: for label maps that show the brain and nothing else, and have no image.

A map of FeTA's tissues gets more fluid around the brain (or none more), a skull, a scalp, and around these amniotic
fluid, the womb, the mother's and the fetus's own body, as shells and regions bounded by smooth random fields; then what
a reconstruction's mask leaves of it. Nothing here is anatomy: it is meant to be more varied than what scans show, like
the intensities of the generative model, and several versions of a map are made (``synthseg fetal prepare``).

Distances are ours, from looking at reconstructions and stacks; the extra-cerebral labels 10 to 13 are those of the
reference (A.1.2), which has them from images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from synthseg.anatomies.ribbon import with_ribbon
from synthseg.anatomies.smooth import depth_in_hull, distance_to, smooth_between, smooth_field
from synthseg.errors import ConfigError, LabelError, ShapeError

EXTRA_CEREBRAL = (10, 11, 12, 13)
FLUID = 1  # external CSF of FeTA
BRAIN = (2, 3, 4, 5, 6, 7)

Kind = Literal["none", "halo", "box", "womb"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class SurroundingsSpec:
    """How surroundings are drawn; distances in mm."""

    kinds: tuple[Kind, ...] = ("womb", "halo", "womb", "box", "halo", "none")  # of a map's versions in turn
    margin_mm: float = 25.0  # around the labels: how far the new map reaches; beyond it, training repeats the border
    fluid_probability: float = 0.6  # of the versions: more external CSF, at the cost of background only
    fluid_mm: tuple[float, float] = (-2.0, 7.0)  # its outer border, from the closed surface of the brain
    cortex_probability: float = 0.5  # of the versions: a thicker cortex, at the cost of white matter only
    cortex_mm: tuple[float, float] = (1.0, 2.8)  # its least thickness then
    closing_mm: float = 10.0  # of that surface: sulci and fissures narrower than twice this are fluid
    skull_mm: tuple[float, float] = (0.0, 2.5)
    scalp_mm: tuple[float, float] = (0.0, 5.0)
    halo_mm: tuple[float, float] = (0.5, 14.0)  # what a mask leaves around the brain and its fluid
    node_mm: float = 30.0  # distance of the nodes of the random fields

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(KINDS)
        _require(bool(self.kinds) and not unknown, "kinds", self.kinds, f"give some of {', '.join(KINDS)}")
        for key in ("fluid_probability", "cortex_probability"):
            _require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "give 0 to 1")
        for key in ("skull_mm", "scalp_mm", "halo_mm", "cortex_mm", "fluid_mm"):
            low, high = getattr(self, key)
            least = -self.closing_mm if key == "fluid_mm" else 0.0
            _require(least <= low <= high <= 50, key, (low, high), f"give {least:g} <= low <= high <= 50, in mm")
        for key in ("margin_mm", "closing_mm", "node_mm"):
            value = getattr(self, key)
            _require(0 < value <= 200, key, value, "give a distance in mm above 0, at most 200")
        least = self.closing_mm + max(self.fluid_mm[1], 0)
        _require(self.margin_mm >= least, "margin_mm", self.margin_mm, f"give at least {least:g} mm for the fluid")


class Surrounded(NamedTuple):
    """A map with surroundings."""

    labels: np.ndarray  # [X, Y, Z] int32: FeTA's values and 10 to 13
    start: tuple[int, int, int]  # of its first voxel in the given map: negative where the new one reaches further
    kind: Kind
    fluid: bool  # more external CSF than the map had
    cortex: bool  # a thicker cortex


def surround(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    spec: SurroundingsSpec,
    rng: np.random.Generator,
    *,
    kind: Kind | None = None,
    fluid: bool | None = None,
    cortex: bool | None = None,
    subject: str = "surroundings",
) -> Surrounded:
    """Draw the surroundings of a map. Tissue keeps its labels, but for white matter where a cortex is to be thicker.

    Args:
        labels: [X, Y, Z] values of FeTA (0 to 7).
        spacing_mm: three voxel sizes.
        kind: of the surroundings; drawn from the spec's by default. ``none``: air; ``halo``: a shell of varying
            thickness; ``box``: what a box around the brain shows; ``womb``: the whole field of view.
        fluid: whether there is more external CSF; drawn by default.
        cortex: whether the cortex gets a least thickness (:func:`synthseg.anatomies.ribbon.with_ribbon`); likewise.
        subject: for messages.
    Returns: the map, cut or enlarged to the labels' box and the spec's margin.
    Raises: LabelError for no brain, or other values; ShapeError for no volume or no voxel sizes.
    """
    _check(labels, spacing_mm, subject)
    kind = spec.kinds[int(rng.integers(len(spec.kinds)))] if kind is None else kind
    fluid = bool(rng.random() < spec.fluid_probability) if fluid is None else fluid
    cortex = bool(rng.random() < spec.cortex_probability) if cortex is None else cortex
    data, start = with_margin(labels, spacing_mm, spec.margin_mm)
    if cortex:
        low, high = spec.cortex_mm
        wanted = rng.uniform(low, high)  # of this version, a little different from place to place
        spread = min(0.4, high - wanted, wanted - low)
        least = smooth_between(wanted - spread, wanted + spread, data.shape, spacing_mm, spec.node_mm, rng)
        data = with_ribbon(data, spacing_mm, least)
    if fluid:
        data = _with_fluid(data, spacing_mm, spec, rng)
    if kind != "none":
        outside = data == 0
        data[outside] = _body(~outside, spacing_mm, spec, kind, rng)[outside]
    return Surrounded(data, start, kind, fluid, cortex)


def with_margin(
    labels: np.ndarray, spacing_mm: Sequence[float], margin_mm: float
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The labels' box and a margin, background where the map does not reach: a new int32 array, and its start."""
    places = [np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    extra = [int(np.ceil(margin_mm / s)) for s in spacing_mm]
    low = [int(place[0]) - e for place, e in zip(places, extra, strict=True)]
    high = [int(place[-1]) + 1 + e for place, e in zip(places, extra, strict=True)]
    data = np.zeros([h - s for s, h in zip(low, high, strict=True)], dtype=np.int32)
    inner = tuple(slice(max(s, 0), min(h, n)) for s, h, n in zip(low, high, labels.shape, strict=True))
    there = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inner, low, strict=True))
    data[there] = labels[inner]
    return data, (low[0], low[1], low[2])


def _with_fluid(
    data: np.ndarray, spacing_mm: Sequence[float], spec: SurroundingsSpec, rng: np.random.Generator
) -> np.ndarray:
    """Background that lies in the brain's closed surface, moved by a smooth amount, becomes external CSF."""
    low, high = spec.fluid_mm
    middle = rng.uniform(low, high)  # of this version: some heads have a wide rim all around
    spread = min(2.0, high - middle, middle - low)
    rim = smooth_between(middle - spread, middle + spread, data.shape, spacing_mm, spec.node_mm, rng)
    depth = depth_in_hull(np.isin(data, BRAIN), spacing_mm, spec.closing_mm)
    return np.where((data == 0) & (depth >= spec.closing_mm - rim), FLUID, data).astype(np.int32)


def _body(
    head: np.ndarray, spacing_mm: Sequence[float], spec: SurroundingsSpec, kind: Kind, rng: np.random.Generator
) -> np.ndarray:
    """[X, Y, Z] labels of what is outside the head; those within it mean nothing."""
    shape = head.shape
    distance = distance_to(head, spacing_mm)
    bone, skin, *others = rng.permutation(EXTRA_CEREBRAL).tolist()
    found = _regions(shape, spacing_mm, [*others, bone, skin, *others, 0], rng)
    layers: list[tuple[int, tuple[float, float]]] = [(bone, spec.skull_mm), (skin, spec.scalp_mm)]
    if rng.random() < 0.7:  # amniotic fluid around the head, thin where it touches the womb
        layers.append((others[0], (0.0, 15.0)))
    outer = np.zeros(shape, dtype=np.float32)
    shells = []
    for label, (low, high) in layers:
        outer = outer + smooth_between(low, high, shape, spacing_mm, spec.node_mm, rng)
        shells.append((label, outer))
    for label, border in reversed(shells):
        found[distance <= border] = label
    if kind == "halo":
        low, high = sorted(rng.uniform(*spec.halo_mm, size=2))
        found[distance > smooth_between(low, high, shape, spacing_mm, spec.node_mm / 2, rng)] = 0
    if kind == "box":
        found[~_box(head, spacing_mm, spec.halo_mm, rng)] = 0
    return found


def _regions(
    shape: Sequence[int], spacing_mm: Sequence[float], values: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Smooth regions, two to as many as there are values: each voxel has the value whose field is the largest there."""
    parts = int(rng.integers(2, len(values) + 1))
    node_mm = float(rng.uniform(15.0, 50.0))
    best = np.full(shape, -np.inf, dtype=np.float32)
    found = np.zeros(shape, dtype=np.int32)
    for value in rng.permutation(values)[:parts]:
        field = smooth_field(shape, spacing_mm, node_mm, rng)
        better = field > best
        found[better] = value
        best[better] = field[better]
    return found


def _box(
    head: np.ndarray, spacing_mm: Sequence[float], margin_mm: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """[X, Y, Z] bool: the head's box with another margin on each of the six sides."""
    inside = np.ones(head.shape, dtype=bool)
    for axis, size in enumerate(spacing_mm):
        seen = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        before, after = (int(margin / size) for margin in rng.uniform(*margin_mm, size=2))
        line = np.arange(head.shape[axis])
        within = (line >= seen[0] - before) & (line <= seen[-1] + after)
        inside &= within.reshape([-1 if a == axis else 1 for a in range(3)])
    return inside


def _check(labels: np.ndarray, spacing_mm: Sequence[float], subject: str) -> None:
    if labels.ndim != 3 or len(spacing_mm) != 3 or not all(0 < s < np.inf for s in spacing_mm):
        found = f"an array of shape {labels.shape} with voxel sizes {list(spacing_mm)}"
        raise ShapeError(subject, found=found, fix="give [X, Y, Z] labels and three sizes in mm")
    require_tissues(labels, subject=subject)


def require_tissues(labels: np.ndarray, *, subject: str) -> None:
    """Raise LabelError for labels that are not FeTA's (0 to 7), or that show no brain."""
    values = np.unique(labels)
    strange = sorted(set(values.tolist()) - {0, FLUID, *BRAIN})
    if strange:
        fix = "give maps of FeTA's tissues (0 to 7), without surroundings"
        raise LabelError(subject, found=f"the values {strange}", fix=fix)
    if not np.isin(values, BRAIN).any():
        raise LabelError(subject, found="no brain", fix="give a map with some of the values 2 to 7")


def _require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"surroundings: {key}", found=repr(value), fix=fix)
