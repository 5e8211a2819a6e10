"""From what was measured in label maps to a first table: sides, partners, classes, targets, names, colours."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

from synthseg.labels.freesurfer import known_label, name_and_color, side_and_partner
from synthseg.labels.label import Label
from synthseg.labels.pairing import Shapes, guess_pairs

BY_NUMBER = "side by FreeSurfer's numbering"
BY_PLACE = "side guessed from its place"
UNPAIRED = "no partner found"


@dataclass
class Proposal:
    """Rows for a table, why each has its side, and notes."""

    labels: list[Label] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sides:
    side: dict[int, str]
    partner: dict[int, int]
    reason: dict[int, str]
    freesurfer: bool  # the maps use FreeSurfer's numbering


def propose_labels(present: list[int], shapes: Shapes) -> Proposal:
    """Propose a row for every value.

    FreeSurfer's numbering is believed where both values of at least one left/right pair occur (one-sided lists such
    as 0 to 7 are then not mistaken for "left" labels; reference 1.10 treats them the same way). All other values are
    paired by place.

    Args:
        present: K distinct values.
        shapes: where they lie, in the same order.
    Returns: rows in the order background, neutral, left, right (partners in the same order).
    """
    proposal = Proposal()
    if 0 not in present:
        proposal.notes.append("No map holds the value 0; a background row was added, because every table needs one.")
    sides = _find_sides(present, shapes, proposal.notes)
    order = _row_order(sides)
    generation, contrast = _number_classes(order, sides)
    for value in order:
        proposal.labels.append(_make_row(value, sides, generation[value], contrast[value]))
        proposal.reasons.append(sides.reason[value])
    if not sides.freesurfer and set(present) <= set(range(8)) and len(present) > 4:
        proposal.notes.append("Values 0 to 7 are also FeTA's; if these are fetal maps use the built-in protocol feta.")
    return proposal


def _find_sides(present: list[int], shapes: Shapes, notes: list[str]) -> _Sides:
    index = {value: i for i, value in enumerate(present)}
    lateral = {value: known for value in present if (known := side_and_partner(value)) and known[0] != "neutral"}
    complete = sorted(v for v, (side, partner) in lateral.items() if side == "left" and partner in index)
    freesurfer = bool(complete)
    sides = _Sides({0: "neutral"}, {0: 0}, {0: "background"}, freesurfer)
    for value in present if freesurfer else []:
        known = side_and_partner(value)
        if known is None or value == 0:
            continue
        sides.side[value], sides.partner[value], sides.reason[value] = *known, BY_NUMBER
        if known[1] not in index:
            other = "right" if known[0] == "left" else "left"
            sides.side[known[1]], sides.partner[known[1]] = other, value
            sides.reason[known[1]] = f"added as the partner of {value}"
            notes.append(f"{known[1]} occurs in no map; a row was added, because {value} becomes {known[1]} in a flip.")
    certain = [(index[value], index[lateral[value][1]]) for value in complete]
    _pair_by_place(present, sides, shapes, certain, notes)
    for value in present:
        if value not in sides.side:
            sides.side[value], sides.partner[value], sides.reason[value] = "neutral", value, UNPAIRED
    return sides


def _pair_by_place(
    present: list[int], sides: _Sides, shapes: Shapes, certain: list[tuple[int, int]], notes: list[str]
) -> None:
    """Fill in the sides of values without one, and check the ``certain`` (left, right) pairs against the header."""
    swapped = [present[i] for i, j in certain if shapes.positions[i, 0] > shapes.positions[j, 0]]
    if swapped:
        shown = ", ".join(map(str, swapped[:8])) + (" ..." if len(swapped) > 8 else "")
        notes.append(
            f"{len(swapped)} of {len(certain)} left labels lie to the right of their partners ({shown}): "
            "check the orientation in the files' headers, or whether these are FreeSurfer's values at all."
        )
        certain = []
    positions = shapes.positions.copy()
    settled = {i for i, value in enumerate(present) if value in sides.side}
    positions[sorted(settled - {i for pair in certain for i in pair})] = np.nan
    for i, j in guess_pairs(shapes._replace(positions=positions), known=certain):
        left, right = present[i], present[j]
        sides.side[left], sides.side[right] = "left", "right"
        sides.partner[left], sides.partner[right] = right, left
        sides.reason[left] = sides.reason[right] = BY_PLACE


def _row_order(sides: _Sides) -> list[int]:
    """Background, other neutral labels, left ones, then right ones in the order of their left partners."""
    neutral = sorted(value for value, side in sides.side.items() if side == "neutral")
    left = sorted(value for value, side in sides.side.items() if side == "left")
    return [*neutral, *left, *(sides.partner[value] for value in left)]


def _number_classes(order: list[int], sides: _Sides) -> tuple[dict[int, int], dict[int, int]]:
    """Generation classes: one Gaussian a label, shared where SynthSeg's own table shares it. Contrast classes: shared
    between the sides; SynthSeg's numbers if it knows every value (the T1 prior then applies), else our own."""
    known = {value: known_label(value) if sides.freesurfer else None for value in order}
    generation_keys: dict[tuple[str, int], int] = {}
    contrast_keys: dict[int, int] = {}
    generation: dict[int, int] = {}
    contrast: dict[int, int] = {}
    all_known = sides.freesurfer and all(known.values())
    for value in order:
        label = known[value]
        key = ("shared", label.generation_class) if label and value < 1000 else ("own", value)
        generation[value] = generation_keys.setdefault(key, len(generation_keys))
        pair = min(value, sides.partner[value])
        own = contrast_keys.setdefault(pair, len(contrast_keys))
        contrast[value] = label.contrast_class if label and all_known else own
    return generation, contrast


def _make_row(value: int, sides: _Sides, generation_class: int, contrast_class: int) -> Label:
    partner = sides.partner[value]
    known = known_label(value) if sides.freesurfer or value == 0 else None
    described = name_and_color(value) if sides.freesurfer or value == 0 else None
    name, color = described or (f"label {value}", color_of(min(value, partner)))
    # A merged label (a lesion, say) keeps its target only if that value is in the table too.
    target = known.target if known and (known.target == 0 or known.target in sides.side) else value
    return Label(
        value=value,
        name=name,
        side=sides.side[value],
        partner=partner,
        generation_class=generation_class,
        contrast_class=contrast_class,
        target=target,
        topology=known.topology if known else 0,
        quality=known.quality if known else 0,
        color=color,
        tissue=known.tissue if known else 0,
    )


def color_of(value: int) -> tuple[int, int, int]:
    """A colour of its own for any value: hues a golden-ratio step apart."""
    red, green, blue = colorsys.hsv_to_rgb((value * 0.618034) % 1.0, 0.55 + 0.4 * (value % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
