"""FreeSurfer's numbering: which values are left, right or neutral, and which two are partners (reference 1.10)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from synthseg.errors import LabelError
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol, load_protocol

# (first left value, last left value, what to add for the right one)
_LATERAL_RANGES = (
    (1, 13, 39),
    (17, 20, 36),
    (25, 39, 32),
    (136, 137, 27),  # choroid plexus in the SynthSeg maps; FreeSurfer's own 136/137 are fused basal ganglia
    (138, 138, 1),
    (865, 865, 1),
    (1000, 1035, 1000),
    (3000, 3035, 1000),  # white-matter parcels
    (11100, 11175, 1000),  # Destrieux parcels
    (20101, 20109, -100),
)
_NEUTRAL_RANGES = (
    (0, 0),
    (14, 16),
    (21, 24),
    (72, 72),
    (77, 77),
    (80, 80),
    (85, 85),
    (100, 109),
    (165, 165),
    (200, 210),
    (251, 255),
    (258, 260),
    (331, 340),
    (502, 502),
    (506, 509),
    (511, 512),
    (514, 517),
    (530, 537),
)
# Names and colours of common values that our own tables do not hold.
_MORE = {
    31: ("left choroid plexus", (0, 200, 200)),
    63: ("right choroid plexus", (0, 200, 221)),
    77: ("white matter hypointensities", (200, 70, 255)),
    80: ("non-white-matter hypointensities", (164, 108, 226)),
    251: ("posterior corpus callosum", (0, 0, 64)),
    252: ("mid-posterior corpus callosum", (0, 0, 112)),
    253: ("central corpus callosum", (0, 0, 160)),
    254: ("mid-anterior corpus callosum", (0, 0, 208)),
    255: ("anterior corpus callosum", (0, 0, 255)),
    1000: ("ctx-lh-unknown", (25, 5, 25)),
    2000: ("ctx-rh-unknown", (25, 5, 25)),
    1004: ("ctx-lh-corpuscallosum", (120, 70, 50)),
    2004: ("ctx-rh-corpuscallosum", (120, 70, 50)),
}


@cache
def _sides() -> dict[int, tuple[str, int]]:
    table: dict[int, tuple[str, int]] = {}
    for first, last in _NEUTRAL_RANGES:
        table.update({value: ("neutral", value) for value in range(first, last + 1)})
    for first, last, step in _LATERAL_RANGES:
        for value in range(first, last + 1):
            table[value] = ("left", value + step)
            table[value + step] = ("right", value)
    return table


def side_and_partner(value: int) -> tuple[str, int] | None:
    """("neutral" | "left" | "right", value of the partner), or None for a value FreeSurfer's numbering lacks."""
    return _sides().get(value)


@cache
def _known() -> dict[int, Label]:
    rows = {label.value: label for label in load_protocol("desikan-killiany").labels}
    rows.update({label.value: label for label in load_protocol("synthseg-generation").labels})
    return rows


def known_label(value: int) -> Label | None:
    """The row of our own whole-head or parcellation table for this value, if it has one."""
    return _known().get(value)


def name_and_color(value: int) -> tuple[str, tuple[int, int, int]] | None:
    """Name and colour of a value in FreeSurfer's numbering, as far as we know it."""
    label = known_label(value)
    return (label.name, label.color) if label else _MORE.get(value)


def neutral_count(values: Sequence[int], subject: str | Path) -> int:
    """How many leading labels are neutral by FreeSurfer's numbering (reference 1.10).

    Lists that hold one hemisphere's numbers only are all neutral, as in the original.

    Raises: LabelError if a value is not FreeSurfer's, or the list is not in the order neutral, left, right with
        partners in the same order.
    """
    fix = "say how many labels come before the left ones: --n-neutral N, n_neutral=N in Python"
    known = [side_and_partner(value) for value in values]
    for entry, (value, row) in enumerate(zip(values, known, strict=True)):
        if row is None:
            found = f"entry {entry}: {value}, which FreeSurfer's numbering gives no side"
            raise LabelError(subject, found=found, fix=fix)
    sides = [row[0] for row in known if row]
    if "left" not in sides or "right" not in sides:
        return len(values)
    count = sides.index("left")
    half = (len(values) - count) // 2
    expected = ["neutral"] * count + ["left"] * half + ["right"] * (len(values) - count - half)
    for entry, (value, side, due) in enumerate(zip(values, sides, expected, strict=True)):
        if side != due:
            found = f"entry {entry}: {value}, by FreeSurfer's numbering {side}, where a {due} label is due"
            raise LabelError(subject, found=found, fix=fix)
    for entry in range(count, count + half):
        ours, row = values[entry + half], known[entry]
        if row and row[1] != ours:
            found = f"entry {entry}: {values[entry]} with the partner {ours}, by FreeSurfer's numbering {row[1]}"
            raise LabelError(subject, found=found, fix=fix)
    return count


def doubts(protocol: LabelProtocol) -> list[str]:
    """Rows whose side or partner is not that of FreeSurfer's numbering, for tables that mostly follow it.

    A wrong ``n_neutral`` shifts partners without any error; this is how it shows.
    """
    known = [(row, side_and_partner(row.value)) for row in protocol.labels if row.value]
    sides = {theirs[0] for _, theirs in known if theirs}
    if not all(theirs for _, theirs in known) or not {"left", "right"} <= sides:
        return []
    return [
        f"{row.value} ({row.name}) is {row.side} with partner {row.partner}; in FreeSurfer's numbering it is"
        f" {theirs[0]} with partner {theirs[1]}"
        for row, theirs in known
        if theirs and (row.side, row.partner) != theirs
    ]
