"""What the network's channels mean, drawn from the weights' label protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from synthseg.errors import UsageError, WeightsError
from synthseg.labels import Label, LabelProtocol

CSF_VALUE = 24
CORTEX_VALUES = {"left": 3, "right": 42}  # FreeSurfer's cerebral cortex, which parcels divide


@dataclass(frozen=True)
class Structure:
    """One label of a segmentation: its value in files, its name and FreeSurfer's colour (RGB, 0 to 255).

    ``side`` is "left", "right" or "neutral"; ``partner`` the value on the other side, itself when neutral; ``whole``
    the value of the structure that this one is a part of (a parcel's cortex), whose volume contains its own.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    side: str = "neutral"
    partner: int = -1
    whole: int | None = None


@dataclass(frozen=True)
class Channels:
    """The network's channels, in order; channel 0 is background.

    ``values``, ``partners`` (channel of the same structure on the other side, itself when neutral), ``topology``
    (group cleaned up as one piece, 0 = none) and ``quality`` (group that quality control scores, 0 = none) are [C]
    int64.
    """

    structures: tuple[Structure, ...]
    values: np.ndarray
    partners: np.ndarray
    topology: np.ndarray
    quality: np.ndarray

    def __len__(self) -> int:
        return len(self.structures)


def channels_of(protocol: LabelProtocol) -> Channels:
    """Channels of a protocol's distinct targets, in ascending order of value.

    Raises: WeightsError if a target is not itself a label of the protocol, or the first channel is not background 0.
    """
    rows = {label.value: label for label in protocol.labels}
    values = [int(value) for value in protocol.target_values]
    missing = [value for value in values if value not in rows]
    if missing or not values or values[0] != 0:
        raise WeightsError(
            f"protocol {protocol.name}",
            found=f"targets {missing} without a row of their own" if missing else f"first target {values[:1]}, not 0",
            fix="save the weights with the protocol of their outputs: one row per output, background (0) first",
        )
    return Channels(
        structures=tuple(_structure(rows[value]) for value in values),
        values=np.array(values, dtype=np.int64),
        partners=protocol.partner_channel,
        topology=np.array([rows[value].topology for value in values], dtype=np.int64),
        quality=np.array([rows[value].quality for value in values], dtype=np.int64),
    )


def _structure(label: Label) -> Structure:
    return Structure(label.value, label.name, label.color, label.side, label.partner)


def unsided(name: str) -> str:
    """A structure's name without its side ('left hippocampus' -> 'hippocampus', 'ctx-lh-cuneus' -> 'ctx-cuneus')."""
    return re.sub(r"^(ctx-)?(left |right |lh-|rh-)", r"\1", name)


def _called(structure: Structure) -> set[str]:
    """Everything a structure may be called, in lower case."""
    names = {structure.name.lower(), unsided(structure.name.lower())}
    return names | {name.removeprefix("ctx-") for name in names} | {str(structure.value)}


def find_structures(wanted: Iterable[str], structures: Iterable[Structure]) -> tuple[Structure, ...]:
    """Structures by name ('left hippocampus', or 'hippocampus' for both sides) or by value ('17').

    Parcels go by their name with or without 'ctx-': 'ctx-lh-cuneus', 'lh-cuneus', 'ctx-cuneus', 'cuneus'.

    Raises: UsageError naming the first entry that is nowhere in ``structures``.
    """
    known = [structure for structure in structures if structure.value != 0]
    chosen: set[int] = set()
    for entry in wanted:
        key = entry.strip().lower()
        matches = [s.value for s in known if key in _called(s)]
        if not matches:
            names = sorted({unsided(s.name) for s in known})
            raise UsageError(
                f"structure '{entry.strip()}'", found="no such label", fix=f"use any of: {', '.join(names)}"
            )
        chosen.update(matches)
    return tuple(structure for structure in known if structure.value in chosen)
