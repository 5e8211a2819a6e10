"""The rules a label table must keep; each broken rule is an error that names the table, the row and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthseg.errors import LabelError
from synthseg.labels.label import SIDES, Label

MAX_VALUE = 2**31 - 1  # label maps are stored as int32
_COUNTED = ("value", "partner", "generation_class", "contrast_class", "target", "topology", "quality", "tissue")


def check_labels(labels: Sequence[Label], *, subject: str | Path, where: Sequence[str]) -> None:
    """Check a whole table.

    Args:
        labels: the rows, in order.
        subject: file or protocol name for the message.
        where: one place per row ("line 12", "row 3") for the message.
    Raises: LabelError for the first rule that is broken.
    """
    if not labels:
        raise LabelError(subject, found="a table without rows", fix="add at least the background, a row with value 0")
    for label, place in zip(labels, where, strict=True):
        _check_row(label, subject, place)
    _check_unique(labels, subject, where)
    _check_background(labels, subject, where)
    _check_partners(labels, subject, where)
    _check_classes(labels, subject)
    _check_mirrored(labels, subject, where, "target")
    _check_mirrored(labels, subject, where, "topology")


def _check_row(label: Label, subject: str | Path, place: str) -> None:
    for field in _COUNTED:
        number = getattr(label, field)
        if isinstance(number, bool) or not isinstance(number, int):
            raise LabelError(
                subject, found=f"{place}: {field} = {number!r}, not a whole number", fix="write a whole number there"
            )
        if not 0 <= number <= MAX_VALUE:
            raise LabelError(
                subject,
                found=f"{place}: {field} = {number}, outside 0 to {MAX_VALUE}",
                fix="label tables hold non-negative 32-bit numbers only; renumber this label in table and maps",
            )
    if not isinstance(label.name, str) or not label.name or label.name != label.name.strip():
        raise LabelError(subject, found=f"{place}: the name {label.name!r}", fix="give a name without spaces around it")
    if not label.name.isprintable() or (label.name[0] == '"' == label.name[-1]):
        raise LabelError(
            subject,
            found=f"{place}: the name {label.name!r} holds quotes around it, tabs or control characters",
            fix="use plain text in one line",
        )
    if label.side not in SIDES:
        raise LabelError(subject, found=f"{place}: side {label.side!r}", fix="write neutral, left or right")
    if len(label.color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in label.color):
        raise LabelError(
            subject,
            found=f"{place}: colour {tuple(label.color)}",
            fix="red, green and blue are three whole numbers from 0 to 255",
        )


def _check_unique(labels: Sequence[Label], subject: str | Path, where: Sequence[str]) -> None:
    for field in ("value", "name"):
        first: dict[object, str] = {}
        for label, place in zip(labels, where, strict=True):
            key = getattr(label, field)
            if key in first:
                raise LabelError(
                    subject,
                    found=f"{place}: {field} {key!r} again, already on {first[key]}",
                    fix=f"give every row its own {field}, or delete one of the two",
                )
            first[key] = place


def _check_background(labels: Sequence[Label], subject: str | Path, where: Sequence[str]) -> None:
    position = next((i for i, label in enumerate(labels) if label.value == 0), None)
    if position is None:
        raise LabelError(
            subject, found="no row for value 0", fix="add the background (value 0, neutral, target 0) as the first row"
        )
    background, place = labels[position], where[position]
    if position != 0:
        raise LabelError(subject, found=f"background 0 on {place}, not first", fix="move this row to the top")
    if background.side != "neutral" or background.target != 0:
        raise LabelError(
            subject,
            found=f"{place}: background with side {background.side} and target {background.target}",
            fix="the background is neutral and its target is 0",
        )


def _check_partners(labels: Sequence[Label], subject: str | Path, where: Sequence[str]) -> None:
    by_value = {label.value: label for label in labels}
    for label, place in zip(labels, where, strict=True):
        who = f"{place}: {label.value} ({label.name}, {label.side})"
        if label.side == "neutral":
            if label.partner != label.value:
                raise LabelError(
                    subject,
                    found=f"{who} has partner {label.partner}",
                    fix=f"a neutral label is its own partner: write {label.value}, or set its side to left or right",
                )
            continue
        other = by_value.get(label.partner)
        if other is None:
            raise LabelError(
                subject,
                found=f"{who} has partner {label.partner}, which has no row",
                fix="add the partner's row, or make the label neutral if it exists on one side only",
            )
        if other.side == label.side or other.side == "neutral":
            raise LabelError(
                subject,
                found=f"{who} has partner {other.value} ({other.name}), whose side is {other.side}",
                fix="partners sit on opposite sides, one left and one right; correct the side or the partner",
            )
        if other.partner != label.value:
            raise LabelError(
                subject,
                found=f"{who} has partner {other.value}, whose own partner is {other.partner}",
                fix=f"partners must name each other: write {label.value} as the partner of {other.value}",
            )


def _check_classes(labels: Sequence[Label], subject: str | Path) -> None:
    present = {label.generation_class for label in labels}
    missing = sorted(set(range(max(present) + 1)) - present)
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise LabelError(
            subject,
            found=f"generation classes 0 to {max(present)} with no label in {shown}",
            fix="number the classes 0, 1, 2, ... without gaps",
        )


def _check_mirrored(labels: Sequence[Label], subject: str | Path, where: Sequence[str], field: str) -> None:
    """A left/right flip must map every group of ``field`` onto one group, or a flipped map has no defined target."""
    by_value = {label.value: label for label in labels}
    seen: dict[int, tuple[int, str]] = {}
    for label, place in zip(labels, where, strict=True):
        group, mirrored = getattr(label, field), getattr(by_value[label.partner], field)
        expected, first = seen.setdefault(group, (mirrored, f"{label.value} on {place}"))
        if mirrored != expected:
            raise LabelError(
                subject,
                found=f"{place}: {field} {group} becomes {mirrored} on the other side for {label.value},"
                f" but {expected} for {first}",
                fix=f"labels that share a {field} must have partners that share one too",
            )
