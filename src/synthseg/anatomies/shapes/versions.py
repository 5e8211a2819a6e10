"""Maps of shapes that no map shows: one named change, or a random version."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from synthseg.anatomies.shapes.border import largest_size, move_border, scale_head
from synthseg.anatomies.shapes.callosum import find_callosum, thin_callosum
from synthseg.anatomies.shapes.growth import MARGIN_MM, grow
from synthseg.anatomies.shapes.kinds import KINDS, check_severity, kind_of
from synthseg.anatomies.shapes.roles import ShapeRoles
from synthseg.anatomies.shapes.spec import Edit, ShapeDraw, ShapeSpec
from synthseg.anatomies.shapes.tidy import without_specks
from synthseg.errors import ConfigError, LabelError, ShapeError
from synthseg.labels.protocol import LabelProtocol

_NEAR = 0.1  # of the volume's logarithm: how far a change by name may miss its severity
_LEAST = 0.005  # a smaller share is no change
_ROOM_MM = 24.0  # around the brain: beyond what moves and what is filled


def edit(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    protocol: LabelProtocol,
    kind: str,
    severity: float,
    rng: torch.Generator,
) -> tuple[np.ndarray, Edit]:
    """Make one change at a given severity.

    Args:
        labels: [X, Y, Z] integers, values of the protocol, axes in RAS+ order.
        spacing_mm: three voxel sizes.
        kind: a name of :data:`synthseg.anatomies.shapes.kinds.KINDS`.
        severity: the factor on the volume of the kind's structure.
        rng: of where tissue changes more and where less.
    Returns: a new map, the same shape and type, and what was done. Every label is still there, but a callosum's own
        at a severity of 0. Beyond 17 mm around the brain nothing has changed, but by 'size'.
    Raises: ConfigError for a severity out of the kind's range, or that this map cannot reach (with the factor that it
        can); LabelError for unknown values, or a map without the structure; UsageError for an unknown kind.
    """
    changed, made = _edited(labels, spacing_mm, _checked(labels, protocol), kind, severity, rng)
    missed = abs(math.log(max(made.reached, 1e-3) / max(severity, 1e-3)))
    if missed > _NEAR and not (kind == "callosum" and abs(made.reached - severity) < _NEAR):
        fix = _instead(kind, severity, made.reached)
        raise ConfigError(f"shapes: severity of {kind}", found=f"{severity:g}", fix=fix)
    return changed, made


def _instead(kind: str, severity: float, reached: float) -> str:
    """What to do about a severity that a map does not reach."""
    if abs(reached - 1) < _LEAST:
        return f"leave the kind '{kind}' out for this map: nothing in it gives way"
    if min(1.0, severity) < reached < max(1.0, severity):
        return f"give a factor nearer to 1: {reached:.2f} is what the other tissues leave room for"
    return f"leave the kind '{kind}' out: the map's voxels are too coarse, the nearest they hold is {reached:.2f}"


def vary(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    protocol: LabelProtocol,
    spec: ShapeSpec,
    rng: torch.Generator,
) -> tuple[np.ndarray, ShapeDraw]:
    """Make a random version: one change or several.

    A severity that the map has no room for is made as far as it goes; the draw says how far that was. Kinds whose
    structure a map does not have are left out.

    Args:
        labels: [X, Y, Z] integers, values of the protocol, axes in RAS+ order.
        rng: of everything: same state, same version.
    Returns: a new map, the same shape and type, and its changes.
    Raises: LabelError for unknown values, or a map that no kind of the spec can change.
    """
    roles = _checked(labels, protocol)
    chosen = _choose(spec, [kind for kind in spec.kinds if _present(labels, spacing_mm, roles, kind)], rng)
    edits = []
    for kind in chosen:
        if _present(labels, spacing_mm, roles, kind):  # what was there first may be gone: a callosum under a ventricle
            labels, made = _edited(labels, spacing_mm, roles, kind, _severity(spec, kind, rng), rng)
            edits.append(made)
    return labels, ShapeDraw(tuple(edits))


def volume_of(labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, kind: str) -> float:
    """Volume in mm3 of what a kind's severity is a factor on."""
    return _count(labels, spacing_mm, roles, kind) * float(np.prod(np.asarray(spacing_mm, dtype=np.float64)))


def _edited(
    labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, kind: str, severity: float, rng: torch.Generator
) -> tuple[np.ndarray, Edit]:
    known = kind_of(kind)
    check_severity(kind, severity)
    box = _head_box(labels, severity) if kind == "size" else _box(labels, spacing_mm, roles)
    part = labels[box]
    before = volume_of(part, spacing_mm, roles, kind)
    if before == 0:
        fix = f"leave the kind '{kind}' out for this map"
        raise LabelError(f"shapes: {kind}", found=f"a map without {known.structure}", fix=fix)
    made = min(severity, largest_size(labels)) if kind == "size" else severity
    if made == 1:
        return labels.copy(), Edit(kind, float(severity), 1.0, before, before)
    changed = _changed(part, spacing_mm, roles, kind, made, rng)
    if kind == "callosum":  # found by what is around it: what is left of it is counted where it was
        found = find_callosum(part, spacing_mm, roles)
        after = before * float(np.mean(changed[found] == part[found]))
    else:
        after = volume_of(changed, spacing_mm, roles, kind)
    result = labels.copy()
    result[box] = changed
    return result, Edit(kind, float(severity), after / before, before, after)


def _changed(
    part: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, kind: str, severity: float, rng: torch.Generator
) -> np.ndarray:
    growth = KINDS[kind].growth
    if growth is not None:
        changed = _outline_kept(part, grow(part, spacing_mm, roles, growth, severity, rng=rng).labels, roles)
    elif kind == "callosum":
        changed = thin_callosum(part, spacing_mm, roles, severity, rng=rng)
    elif kind == "external-csf":
        changed = move_border(part, spacing_mm, roles, severity, rng=rng)
    else:
        changed = scale_head(part, severity)
    tidy = without_specks(changed, part, np.asarray(spacing_mm, dtype=np.float64))
    return tidy if len(np.unique(tidy)) == len(np.unique(changed)) else changed


def _outline_kept(before: np.ndarray, after: np.ndarray, roles: ShapeRoles) -> np.ndarray:
    """What the brain has left to the background becomes CSF, where the protocol has it: a skull does not shrink."""
    if not roles.values["csf"]:
        return after
    left = roles.brain(before) & ~roles.brain(after)
    return np.where(left, np.asarray(_csf_value(before, roles), dtype=after.dtype), after)


def _csf_value(labels: np.ndarray, roles: ShapeRoles) -> int:
    return max(roles.values["csf"], key=lambda value: int(np.count_nonzero(labels == value)))


def _box(labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles) -> tuple[slice, ...]:
    """The brain with room around it."""
    box = []
    for at, s, n in zip(np.nonzero(roles.brain(labels)), spacing_mm, labels.shape, strict=True):
        room = math.ceil((MARGIN_MM + _ROOM_MM) / 2 / float(s))
        box.append(slice(max(int(at.min()) - room, 0), min(int(at.max()) + room + 1, n)))
    return tuple(box)


def _head_box(labels: np.ndarray, severity: float) -> tuple[slice, ...]:
    """All that is labelled, with room for it to be larger by a factor."""
    box = []
    for at, n in zip(np.nonzero(labels), labels.shape, strict=True):
        low, high = int(at.min()), int(at.max())
        room = math.ceil((high - low + 1) * max(severity ** (1 / 3) - 1, 0) / 2) + 2
        box.append(slice(max(low - room, 0), min(high + room + 1, n)))
    return tuple(box)


def _count(labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, kind: str) -> int:
    growth = KINDS[kind].growth
    if growth is not None:
        found = roles.mask(labels, *growth.structure)
    elif kind == "callosum":
        found = find_callosum(labels, spacing_mm, roles)
    elif kind == "external-csf":
        found = roles.brain(labels)
    else:
        found = labels != 0
    return int(np.count_nonzero(found))


def _present(labels: np.ndarray, spacing_mm: Sequence[float], roles: ShapeRoles, kind: str) -> bool:
    if kind == "external-csf" and (not roles.values["csf"] or roles.mask(labels, "outside").any()):
        return False  # maps with a skull: it would have to move
    return _count(labels, spacing_mm, roles, kind) > 0


def _choose(spec: ShapeSpec, kinds: list[str], rng: torch.Generator) -> list[str]:
    if not kinds:
        fix = "give a range to another kind, or leave the map out"
        raise LabelError("shapes", found=f"a map without anything of {', '.join(spec.kinds)}", fix=fix)
    shown = torch.rand(len(kinds), generator=rng, device=rng.device) < spec.probability
    order = torch.randperm(len(kinds), generator=rng, device=rng.device).tolist()
    picked = {kinds[i] for i in [i for i in order if shown[i]][: spec.most]} or {kinds[order[0]]}
    return sorted(picked, key=lambda kind: (kind != "callosum", list(KINDS).index(kind)))


def _severity(spec: ShapeSpec, kind: str, rng: torch.Generator) -> float:
    low, high = spec.range_of(kind)
    share = float(torch.rand((), generator=rng, device=rng.device))
    if low <= 0 or kind == "callosum":
        return low + share * (high - low)
    return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)  # within rounding


def _checked(labels: np.ndarray, protocol: LabelProtocol) -> ShapeRoles:
    if labels.ndim != 3:
        raise ShapeError("shapes", found=f"labels of shape {labels.shape}", fix="pass [X, Y, Z]")
    roles = ShapeRoles.of(protocol)
    roles.check(labels)
    if not roles.brain(labels).any():
        raise LabelError("shapes", found="a map without any brain", fix="leave it out")
    return roles
