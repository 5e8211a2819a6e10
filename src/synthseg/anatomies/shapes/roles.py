"""What the labels of a protocol are to the shape of a brain, read off their names and targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthseg.errors import LabelError
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol

ROLES = ("ventricle", "fourth", "csf", "cortex", "white", "cerebellum", "nuclei", "stem", "callosum", "outside")
"""Ventricles but the fourth (where that has a label); the fourth; the fluid around the brain; cortex; cerebral white
matter; cerebellum; deep grey matter and everything else within the brain; brainstem; corpus callosum, where it has a
label; and what lies outside the brain."""
BACKGROUND = "background"
_LARGEST_TABLE = 2**20


@dataclass(frozen=True)
class ShapeRoles:
    """Which values of a protocol play which role. Every value but 0 plays exactly one."""

    protocol: LabelProtocol
    values: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, protocol: LabelProtocol) -> ShapeRoles:
        """Read the roles off a protocol.

        Labels that come in a left and a right part, or share the contrast of a label with a target, lie within the
        brain even without a target (vessels, the optic chiasm).
        """
        inside = {label.contrast_class for label in protocol.labels if label.target}
        found: dict[str, list[int]] = {role: [] for role in ROLES}
        for label in protocol.labels:
            if label.value:
                found[_role(label, inside)].append(label.value)
        return cls(protocol, {role: tuple(values) for role, values in found.items()})

    def mask(self, labels: np.ndarray, *roles: str) -> np.ndarray:
        """Where any of the roles is played; ``"background"`` is value 0."""
        values = [0] if BACKGROUND in roles else []
        values += [value for role in roles if role != BACKGROUND for value in self.values[role]]
        largest = max(int(self.protocol.values.max()), 1)
        if largest > _LARGEST_TABLE:
            return np.asarray(np.isin(labels, values))
        table = np.zeros(largest + 1, dtype=bool)
        table[values] = True
        return np.asarray(table[labels])  # much faster than a search among many values

    def brain(self, labels: np.ndarray) -> np.ndarray:
        """Everything but the background and what lies outside the brain; the CSF around it belongs to it."""
        return ~self.mask(labels, BACKGROUND, "outside")

    def require(self, role: str, kind: str) -> None:
        """Raises: LabelError where no label of the protocol plays a role that an edit needs."""
        if not self.values[role]:
            fix = f"leave the kind '{kind}' out, or use a protocol with such a label"
            raise LabelError(f"protocol {self.protocol.name}", found=f"no label for {role}", fix=fix)

    def check(self, labels: np.ndarray) -> None:
        """Raises: LabelError for values the protocol does not know."""
        self.protocol.index_of(labels)


def _role(label: Label, inside: set[int]) -> str:
    name = label.name.lower()
    if "ventric" in name or "cavum" in name:
        return "fourth" if "4th" in name or "fourth" in name else "ventricle"
    for word, role in (("csf", "csf"), ("callosum", "callosum"), ("cerebell", "cerebellum"), ("brain", "stem")):
        if word in name and (role != "stem" or "stem" in name):
            return role
    if not label.target and label.side == "neutral" and label.contrast_class not in inside:
        return "outside"
    if "white matter" in name:
        return "white"
    if "cortex" in name or "cortical" in name or ("grey matter" in name and "deep" not in name):
        return "cortex"
    return "nuclei"
