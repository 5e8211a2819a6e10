"""From one label convention to another: one vectorised look-up for all voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthseg.errors import LabelError

if TYPE_CHECKING:
    from synthseg.labels.protocol import LabelProtocol

# Up to this value the look-up is a plain array (32 MiB at most); atlases with larger values (Allen: up to 6e8) are
# searched in a sorted list instead, about ten times slower.
_DENSE_LIMIT = 2**22
_SHOWN = 12  # unknown values listed in a message


@dataclass(frozen=True, eq=False)
class LookUp:
    """Known values (ascending) and what each becomes."""

    values: np.ndarray  # [K] int64, ascending, distinct
    results: np.ndarray  # [K] int64
    dense: np.ndarray | None  # [max value + 1] int64, -1 where unknown; None when values are too large

    @classmethod
    def of(cls, values: np.ndarray, results: np.ndarray) -> LookUp:
        """Prepare a look-up from distinct non-negative ``values`` [K] to non-negative ``results`` [K]."""
        order = np.argsort(values)
        values, results = values[order].astype(np.int64), np.asarray(results)[order].astype(np.int64)
        dense = None
        if values[-1] <= _DENSE_LIMIT:
            dense = np.full(int(values[-1]) + 1, -1, dtype=np.int64)
            dense[values] = results
        return cls(values, results, dense)

    def __call__(self, label_map: np.ndarray, *, subject: str | Path, known_as: str) -> np.ndarray:
        """Look up every voxel.

        Returns: int64, same shape.
        Raises: LabelError if the map is not of whole numbers, or holds unknown values (named with voxel counts).
        """
        label_map = as_integers(label_map, subject=subject)
        if label_map.size == 0:
            return np.zeros(label_map.shape, dtype=np.int64)
        if self.dense is None:
            position = np.searchsorted(self.values, label_map).clip(max=len(self.values) - 1)
            if (self.values[position] != label_map).any():
                self._raise_unknown(label_map, subject, known_as)
            return self.results[position]
        if int(label_map.min()) < 0 or int(label_map.max()) >= len(self.dense):
            self._raise_unknown(label_map, subject, known_as)
        found = self.dense[label_map]
        if int(found.min()) < 0:
            self._raise_unknown(label_map, subject, known_as)
        return found

    def _raise_unknown(self, label_map: np.ndarray, subject: str | Path, known_as: str) -> None:
        present, counts = np.unique(label_map, return_counts=True)
        unknown = ~np.isin(present, self.values)
        listed = [f"{value} ({count} voxels)" for value, count in zip(present[unknown], counts[unknown], strict=True)]
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise LabelError(
            subject,
            found=f"label values that {known_as} does not know: {', '.join(listed[:_SHOWN])}{more}",
            fix="add them to the label table (`synthseg labels inspect` writes one for your maps), or relabel the map",
        )


def as_integers(label_map: np.ndarray, *, subject: str | Path) -> np.ndarray:
    """The map with an integer dtype (floats and booleans are converted exactly, integers returned as they are).

    Raises: LabelError if a value is not a whole number, not finite, or beyond 32 bits.
    """
    label_map = np.asarray(label_map)
    if label_map.dtype == bool:
        return label_map.astype(np.uint8)
    if np.issubdtype(label_map.dtype, np.integer):
        return label_map
    if not np.issubdtype(label_map.dtype, np.floating):
        raise LabelError(subject, found=f"values of type {label_map.dtype}", fix="save the label map as integers")
    whole = np.isfinite(label_map) & (np.abs(label_map) < 2**31)
    whole &= np.where(whole, label_map, 0) == np.rint(np.where(whole, label_map, 0))
    if not whole.all():
        odd = label_map[~whole]
        raise LabelError(
            subject,
            found=f"{odd.size} voxels that hold no whole number (e.g. {odd.flat[0]})",
            fix="give a label map, resampled with nearest neighbours and saved as integers; is this an image?",
        )
    return label_map.astype(np.int64)


def convert(
    label_map: np.ndarray,
    source_values: Sequence[int] | np.ndarray,
    target_values: Sequence[int] | np.ndarray,
    *,
    subject: str | Path = "label map",
) -> np.ndarray:
    """Replace ``source_values[i]`` by ``target_values[i]`` everywhere.

    Args:
        label_map: any shape, whole numbers.
        source_values, target_values: [K] each; every value of the map must be among the sources.
        subject: the map's name for the message.
    Returns: int32 (int64 if a target needs it), same shape.
    Raises: LabelError for a value without a target, lists of unequal length, or a value with two targets.
    """
    source, target = np.asarray(source_values).ravel(), np.asarray(target_values).ravel()
    if len(source) != len(target) or not len(source):
        raise LabelError(
            subject,
            found=f"{len(source)} source values for {len(target)} target values",
            fix="give one target for each source value",
        )
    pairs: dict[int, int] = {}
    for old, new in zip(source.tolist(), target.tolist(), strict=True):
        if pairs.setdefault(int(old), int(new)) != int(new):
            raise LabelError(
                subject,
                found=f"two targets for value {old}: {pairs[int(old)]} and {new}",
                fix="name each source value once",
            )
        if old < 0 or new < 0:
            raise LabelError(subject, found=f"the pair {old} -> {new}", fix="label values are never negative")
    look_up = LookUp.of(np.array([*pairs.keys()], dtype=np.int64), np.array([*pairs.values()], dtype=np.int64))
    converted = look_up(label_map, subject=subject, known_as="the conversion")
    return converted if max(pairs.values()) >= 2**31 else converted.astype(np.int32)


def target_mapping(protocol: LabelProtocol, onto: LabelProtocol | None = None) -> dict[int, int]:
    """Value -> target value; with ``onto``, targets that protocol lacks become background 0.

    ``target_mapping(generation, synthseg_1_0)`` is how the 1.0 targets follow from the 2.0 ones: CSF (24) drops out.
    """
    known = None if onto is None else {label.value for label in onto.labels}
    return {label.value: label.target if known is None or label.target in known else 0 for label in protocol.labels}


def group_mapping(protocol: LabelProtocol, column: str) -> dict[int, int]:
    """Value -> group of the column "tissue" (S1/denoiser, reference 1.6), "quality" (1.5) or "topology" (1.4).

    Raises: LabelError for another column.
    """
    if column not in ("tissue", "quality", "topology"):
        raise LabelError(
            f"protocol {protocol.name}", found=f"no group column {column!r}", fix="use tissue, quality or topology"
        )
    return {label.value: getattr(label, column) for label in protocol.labels}


def apply_mapping(label_map: np.ndarray, mapping: Mapping[int, int], *, subject: str | Path) -> np.ndarray:
    """:func:`convert` with a mapping."""
    return convert(label_map, [*mapping.keys()], [*mapping.values()], subject=subject)
