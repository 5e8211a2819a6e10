"""Sub-labels: labels split into parts with Gaussians of their own, where a label map leaves tissue unmodelled.

A label map that holds a heart and nothing around it would teach a network that the rest of the chest is one even grey.
The paper splits every label by the intensities of the associated image, the background into 3 to 10 parts, the others
into 2, and merges the parts again in the target (Billot et al. 2023, section 5.4). Without an image the parts are made
by geometry: loosely ordered by distance from the border, bounded by smooth random fields.

Arrays [X, Y, Z] in, arrays out: no files here (``synthseg sublabels`` reads and writes them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from synthseg.errors import ConfigError, LabelError, ShapeError
from synthseg.generation.mixture_em import assign, fit_mixture
from synthseg.generation.neighbours import box_of, majority
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix
from synthseg.labels.checks import MAX_VALUE
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol

MOST_PARTS = 32  # of one label: more is no tissue but noise
BANK_LABELS = 256  # what a bank holds


@dataclass(frozen=True, kw_only=True)
class SubLabelSpec:
    """How labels are split."""

    protocol: LabelProtocol  # of the maps as they are
    foreground: int = 2  # parts of each label but the background; 1 leaves them whole
    background: tuple[int, int] = (3, 10)  # N ~ U{low, ..., high} parts of label 0; (1, 1) leaves it whole
    keep: tuple[int, ...] = ()  # labels that stay whole
    least_voxels: int = 64  # smaller labels stay whole
    smooth: int = 1  # passes of a majority vote among 27 neighbours of the same label: specks of noise go; 0: none
    starts: int = 5  # of the mixture's fit
    background_node_mm: float = 40.0  # geometry: distance of the nodes of the random fields around the foreground
    foreground_node_mm: float = 20.0  # geometry: within the labels

    def __post_init__(self) -> None:
        low, high = self.background
        _require(1 <= self.foreground <= MOST_PARTS, "foreground", self.foreground, f"give 1 to {MOST_PARTS} parts")
        _require(1 <= low <= high <= MOST_PARTS, "background", (low, high), f"give 1 <= low <= high <= {MOST_PARTS}")
        _require(self.least_voxels >= 1, "least_voxels", self.least_voxels, "give at least 1")
        _require(0 <= self.smooth <= 10, "smooth", self.smooth, "give 0 to 10 passes")
        _require(self.starts >= 1, "starts", self.starts, "give at least 1")
        for key in ("background_node_mm", "foreground_node_mm"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "give a distance in mm above 0")
        for value in self.keep:
            self.protocol.by_value(value)

    def parts_of(self, value: int) -> int:
        """Most parts that a label may have."""
        if value in self.keep:
            return 1
        return self.foreground if value else self.background[1]


class SubLabels(NamedTuple):
    """A map whose labels are split, and what its new values mean."""

    labels: np.ndarray  # [X, Y, Z] int32
    rows: tuple[Label, ...]  # to add to the protocol: the same for every map of a spec
    background: int  # N of this map


def sublabel_rows(spec: SubLabelSpec) -> tuple[Label, ...]:
    """The rows that a spec adds to its protocol, whatever the maps hold.

    A label's first part keeps its value and row (so that the background stays 0, the first row). Part j has the value
    ``value + j * base``, with base the smallest power of ten above all values and targets; name, colour and side say
    where it comes from; its partner is its parent's partner's part j. Parts have Gaussians of their own: part j of
    labels that share a generation class share one. ``contrast_class``, ``target``, ``topology``, ``quality`` and
    ``tissue`` are the parent's, so that the parts are one label again in the target.

    Raises: LabelError if the values would not fit 32 bits, or the bank.
    """
    labels = spec.protocol.labels
    parts = {label.value: spec.parts_of(label.value) for label in labels}
    parts = {label.value: min(parts[label.value], parts[label.partner]) for label in labels}  # partners alike
    base = 10 ** len(str(max(max(label.value, label.target) for label in labels)))
    classes: dict[tuple[int, int], int] = {}
    first_free = max(label.generation_class for label in labels) + 1
    rows = []
    for part in range(1, max(parts.values())):
        for label in labels:
            if parts[label.value] <= part:
                continue
            own = classes.setdefault((label.generation_class, part), first_free + len(classes))
            rows.append(_row(label, part, base, own))
    total = len(labels) + len(rows)
    if total > BANK_LABELS or any(row.value > MAX_VALUE for row in rows):
        found = f"{total} labels with values up to {max(row.value for row in rows)}"
        fix = f"split into fewer parts or keep labels whole: a bank holds {BANK_LABELS}; values go up to {MAX_VALUE}"
        raise LabelError(f"sub-labels of {spec.protocol.name}", found=found, fix=fix)
    return tuple(rows)


def sublabel_protocol(spec: SubLabelSpec) -> LabelProtocol:
    """The protocol of the split maps: the spec's protocol with :func:`sublabel_rows` added."""
    given = spec.protocol
    high = spec.background[1]
    return LabelProtocol(
        f"{given.name}-parts",
        f"{given.description}; background in up to {high} parts, other labels in up to {spec.foreground}, merged again"
        " in the target",
        (*given.labels, *sublabel_rows(spec)),
        given.source,
    )


def sublabels_from_image(
    labels: np.ndarray, image: np.ndarray, spec: SubLabelSpec, *, rng: torch.Generator, background: int | None = None
) -> SubLabels:
    """Split labels by the intensities of their image: a Gaussian mixture each, by expectation maximisation.

    Args:
        labels: [X, Y, Z] values of the spec's protocol.
        image: the same grid, any units; voxels that are not finite (outside the image) go to a label's first part.
        rng: of the mixture's starts and of N.
        background: N for this map in place of a drawn one.
    Returns: parts in ascending order of mean intensity, so that the first (of the background: 0) is the darkest; parts
        that no voxel is likeliest to be of come last, and stay empty.
    Raises: ShapeError for arrays that disagree; LabelError for values the protocol does not know.
    """
    if image.shape != labels.shape:
        found = f"an image of shape {image.shape} and labels of shape {labels.shape}"
        raise ShapeError("sub-labels", found=found, fix="resample the image onto the label map's grid")

    def split(box: tuple[slice, ...], mask: np.ndarray, parts: int, _: bool) -> np.ndarray:
        values = image[box]
        usable = mask & np.isfinite(values)
        found = np.zeros(mask.shape, dtype=np.uint8)
        if int(usable.sum()) >= spec.least_voxels:
            inside = values[usable]
            found[usable] = _ordered(assign(inside, fit_mixture(inside, parts, rng=rng, starts=spec.starts)), inside)
        return found

    return _split_all(labels, spec, split, rng, background)


def sublabels_by_geometry(
    labels: np.ndarray,
    spec: SubLabelSpec,
    *,
    rng: torch.Generator,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    background: int | None = None,
) -> SubLabels:
    """Split labels where there is no image, into parts with the sizes and borders that organs might have.

    Each part i has a preferred place r_i in [0, 1] and a smooth random field f_i (unit variance, linear between nodes
    some centimetres apart). A voxel at r goes to the part with the largest f_i - ((r - r_i) K / 2)^2 among K. For the
    background r falls with the logarithm of the distance from the foreground (0 farthest away, 1 at its border); within
    a label it is the distance from its border over the largest one there. So neighbouring parts mingle, and remote ones
    keep apart.

    Args:
        labels: [X, Y, Z] values of the spec's protocol.
        rng: of the fields and of N.
        spacing_mm: the grid's voxel sizes.
        background: N for this map in place of a drawn one.
    Returns: the first part of the background, 0, is the one farthest away; of a label, the one at its border.
    Raises: ShapeError for arrays of other dimensions or voxel sizes; LabelError for unknown values.
    """
    if len(spacing_mm) != 3 or not all(0 < s < np.inf for s in spacing_mm):
        raise ShapeError("sub-labels", found=f"voxel sizes {list(spacing_mm)}", fix="give three positive sizes in mm")
    from synthseg.volumes.distance import distance_inside  # here: training reads no scipy

    def split(_: tuple[slice, ...], mask: np.ndarray, parts: int, is_background: bool) -> np.ndarray:
        distance = distance_inside(mask, spacing_mm)
        distance[~np.isfinite(distance)] = 0  # nothing but this label
        if is_background:
            distance = np.log1p(distance / _NEAR_MM)
        place = distance / max(float(distance.max()), 1e-6)
        if is_background:
            place = 1 - place
        node = spec.background_node_mm if is_background else spec.foreground_node_mm
        return _regions(place, parts, [node / s for s in spacing_mm], rng=rng)

    return _split_all(labels, spec, split, rng, background)


_NEAR_MM = 10.0  # distances count by their logarithm beyond this: regions grow with the distance


def _regions(place: np.ndarray, parts: int, node_vox: Sequence[float], *, rng: torch.Generator) -> np.ndarray:
    """[X, Y, Z] uint8: which part wins at each voxel."""
    best = np.full(place.shape, -np.inf, dtype=np.float32)
    winner = np.zeros(place.shape, dtype=np.uint8)
    for part in range(parts):
        wanted = (part + 0.5) / parts
        score = _field(place.shape, node_vox, rng=rng) - ((place - wanted) * (parts / 2)) ** 2
        better = score > best
        winner[better] = part
        best[better] = score[better]
    return winner


def _field(shape: tuple[int, ...], node_vox: Sequence[float], *, rng: torch.Generator) -> np.ndarray:
    """A smooth random field of mean 0 and variance 1 over the box, [X, Y, Z] float32."""
    nodes = [max(int(np.ceil((n - 1) / step)) + 2, 2) for n, step in zip(shape, node_vox, strict=True)]
    values = torch.randn(1, 1, *nodes, generator=rng, device=rng.device).cpu()
    matrices = tuple(
        interpolation_matrix(centered_positions(n, 1 / step, m, 1.0, device=values.device), m)[None]
        for n, m, step in zip(shape, nodes, node_vox, strict=True)
    )
    found: np.ndarray = apply_separable(values, matrices)[0, 0].numpy()  # type: ignore[arg-type]
    return (found - found.mean()) / max(float(found.std()), 1e-6)


def _ordered(components: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Components renumbered from 0, without gaps, by the mean of the values that they have: both [n]."""
    used, position = np.unique(components, return_inverse=True)
    means = np.bincount(position, weights=values) / np.bincount(position)
    rank = np.empty(len(used), dtype=np.int64)
    rank[np.argsort(means, kind="stable")] = np.arange(len(used))
    found: np.ndarray = rank[position]
    return found


_Split = Callable[[tuple[slice, ...], np.ndarray, int, bool], np.ndarray]  # box, mask in it, parts, background -> part


def _split_all(
    labels: np.ndarray, spec: SubLabelSpec, split: _Split, rng: torch.Generator, background: int | None
) -> SubLabels:
    """Every label of the map in turn, in the protocol's order."""
    if labels.ndim != 3:
        raise ShapeError("sub-labels", found=f"labels of shape {labels.shape}", fix="pass [X, Y, Z] label values")
    index = spec.protocol.index_of(labels)
    rows = sublabel_rows(spec)
    values = _values_by_part(spec.protocol, rows)
    low, high = spec.background
    wanted = (
        int(torch.randint(low, high + 1, (), generator=rng, device=rng.device)) if background is None else background
    )
    if not 1 <= wanted <= high:
        raise ConfigError("sub-labels: background", found=repr(wanted), fix=f"give 1 to the spec's {high} parts")
    counts = np.bincount(index.ravel(), minlength=len(spec.protocol.labels))
    result = labels.astype(np.int32)
    for position, label in enumerate(spec.protocol.labels):
        parts = min(len(values[label.value]), wanted if label.value == 0 else MOST_PARTS)
        if parts == 1 or counts[position] < spec.least_voxels:
            continue
        box = box_of(index == position)
        mask = index[box] == position
        found = split(box, mask, parts, label.value == 0)
        for _ in range(spec.smooth):
            found = majority(found, mask, parts)
        result[box][mask] = np.array(values[label.value], dtype=np.int32)[found[mask]]
    return SubLabels(result, rows, 1 if 0 in spec.keep else wanted)


def _values_by_part(protocol: LabelProtocol, rows: Sequence[Label]) -> dict[int, list[int]]:
    """The values of each label's parts; rows come part by part, and end in the digits of their parent."""
    values = {label.value: [label.value] for label in protocol.labels}
    base = 10 ** len(str(max(max(label.value, label.target) for label in protocol.labels)))
    for row in rows:
        values[row.value % base].append(row.value)
    return values


def _row(label: Label, part: int, base: int, generation_class: int) -> Label:
    """Part ``part`` (from 1) of a label; its colour is the parent's, made lighter, or darker where that is light."""
    towards, share = (255 if sum(label.color) < 384 else 0), 0.8 * part / (part + 2)
    red, green, blue = (round(c + (towards - c) * share) for c in label.color)
    return dataclasses.replace(
        label,
        value=label.value + part * base,
        name=f"{label.name} (part {part + 1})",
        partner=label.partner + part * base,
        generation_class=generation_class,
        color=(red, green, blue),
    )


def _require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"sub-labels: {key}", found=repr(value), fix=fix)
