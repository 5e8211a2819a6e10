"""Overlap of two label maps by groups of structures: what quality control predicts, what the denoiser mends."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from synthseg.errors import LabelError
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.labels.convert import group_mapping
from synthseg.metrics import overlap

GROUPS = {"quality": "quality-groups", "tissue": "tissue-groups"}  # column of a protocol -> the protocol of its groups


def group_names(column: str) -> dict[int, str]:
    """Number -> name of the groups of a protocol's column, background left out.

    Raises: LabelError for a column other than "quality" and "tissue".
    """
    if column not in GROUPS:
        found, fix = f"no named groups for the column {column!r}", f"use one of {', '.join(GROUPS)}"
        raise LabelError("groups of structures", found=found, fix=fix)
    return {label.value: label.name for label in load_protocol(GROUPS[column]).labels if label.value != 0}


def grouped(label_map: np.ndarray, mapping: Mapping[int, int], *, keep: int | None = None) -> np.ndarray:
    """Every value's group; values that the mapping does not know become 0.

    Args:
        label_map: integers >= 0, any shape.
        keep: a value that stays as it is (one that means "ignore").
    Returns: int32, same shape.
    """
    table = np.zeros(max(int(label_map.max(initial=0)), *mapping, 0 if keep is None else keep) + 1, dtype=np.int32)
    for value, group in mapping.items():
        table[value] = group
    if keep is not None:
        table[keep] = keep
    return np.asarray(table[label_map])


def group_dice(
    predicted: np.ndarray,
    truth: np.ndarray,
    protocol: LabelProtocol,
    column: str = "quality",
    *,
    ignore_value: int | None = 255,
) -> dict[str, float]:
    """Dice of each group of structures, both sides together: the structures of a group count as one label.

    Args:
        predicted, truth: integer label maps of one shape, of ``protocol``; values it does not know count as background.
        column: "quality" (reference C.7) or "tissue" (C.2).
        ignore_value: voxels where ``truth`` has this value are left out of both maps.
    Returns: by group name; NaN for a group that neither map has, 0 for one that only one of them has.
    Raises: LabelError for another column; ShapeError when the shapes differ.
    """
    names = group_names(column)
    mapping = group_mapping(protocol, column)
    if ignore_value in mapping:
        found = f"{ignore_value}, a label of {protocol.name}"
        raise LabelError("value to ignore", found=found, fix="ignore another value, or none")
    theirs = grouped(truth, mapping, keep=ignore_value)
    scores = overlap(grouped(predicted, mapping), theirs, list(names), ignore_value=ignore_value).dice()
    return dict(zip(names.values(), scores.tolist(), strict=True))
