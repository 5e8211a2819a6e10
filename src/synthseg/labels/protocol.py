"""A label protocol: what the values of a label map mean, as a table (architecture.md, "labels").

Values, indices and channels: a *value* is a label's number in a file, an *index* its row in the protocol, a *channel*
the position of its target among the distinct target values in ascending order (the order of a network's outputs;
reference 1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import LabelError
from synthseg.labels.checks import check_labels
from synthseg.labels.convert import LookUp
from synthseg.labels.label import SIDES, Label, Side
from synthseg.labels.table import format_table, label_from_row, label_to_row, parse_table, read_text
from synthseg.reading import exists, is_folder

__all__ = ["SIDES", "Label", "LabelProtocol", "Side", "builtin_protocols", "load_protocol"]

BUILTIN = (
    "synthseg-generation",
    "synthseg-generation-dk",
    "synthseg-1.0",
    "synthseg-2.0",
    "freesurfer-dk",
    "desikan-killiany",
    "dkt",
    "tissue-groups",
    "quality-groups",
    "feta",
    "feta-generation",
    "dhcp",
    "whole-heart",
    "hvsmr",
)


@dataclass(frozen=True)
class LabelProtocol:
    """A checked label table. Row 0 is the background; the other rows may come in any order.

    The arrays are new copies at every access: changing one cannot change the protocol.

    Raises: LabelError when built from labels that break a rule (:func:`synthseg.labels.checks.check_labels`).
    """

    name: str
    description: str
    labels: tuple[Label, ...]
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        check_labels(self.labels, subject=self.name, where=[f"row {i + 1}" for i in range(len(self.labels))])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def values(self) -> np.ndarray:
        """[K] int64: label values in table order."""
        return np.array([label.value for label in self.labels], dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """The K names in table order."""
        return tuple(label.name for label in self.labels)

    @property
    def sides(self) -> tuple[str, ...]:
        """The K sides in table order."""
        return tuple(label.side for label in self.labels)

    @property
    def partner_index(self) -> np.ndarray:
        """[K] int64: index of each label's partner, an involution (what a left/right flip does to indices)."""
        position = {label.value: i for i, label in enumerate(self.labels)}
        return np.array([position[label.partner] for label in self.labels], dtype=np.int64)

    @property
    def generation_classes(self) -> np.ndarray:
        """[K] int64: Gaussian of the random-contrast prior, 0 to G - 1 without gaps."""
        return np.array([label.generation_class for label in self.labels], dtype=np.int64)

    @property
    def contrast_classes(self) -> np.ndarray:
        """[K] int64: Gaussian of a contrast-specific prior."""
        return np.array([label.contrast_class for label in self.labels], dtype=np.int64)

    @property
    def targets(self) -> np.ndarray:
        """[K] int64: the value each label becomes in the target."""
        return np.array([label.target for label in self.labels], dtype=np.int64)

    @property
    def target_values(self) -> np.ndarray:
        """[C] int64: distinct targets in ascending order, the network's channels."""
        return np.unique(self.targets)

    @property
    def target_channel(self) -> np.ndarray:
        """[K] int64: channel of each label's target."""
        return np.searchsorted(self.target_values, self.targets).astype(np.int64)

    @property
    def partner_channel(self) -> np.ndarray:
        """[C] int64: channel of each channel's partner, an involution (what a flip does to channels; reference 1.3)."""
        channels = self.target_channel
        partners = np.empty(len(self.target_values), dtype=np.int64)
        partners[channels] = channels[self.partner_index]
        return partners

    @property
    def topology_groups(self) -> np.ndarray:
        """[K] int64: group cleaned as one object, 0 = never."""
        return np.array([label.topology for label in self.labels], dtype=np.int64)

    @property
    def quality_groups(self) -> np.ndarray:
        """[K] int64: group of the quality score, 0 = none."""
        return np.array([label.quality for label in self.labels], dtype=np.int64)

    @property
    def tissue_groups(self) -> np.ndarray:
        """[K] int64: coarse tissue group (reference 1.6)."""
        return np.array([label.tissue for label in self.labels], dtype=np.int64)

    @property
    def colors(self) -> np.ndarray:
        """[K, 3] uint8: red, green, blue."""
        return np.array([label.color for label in self.labels], dtype=np.uint8)

    @cached_property
    def _look_up(self) -> LookUp:
        return LookUp.of(self.values, np.arange(len(self.labels)))

    def index_of(self, label_map: np.ndarray, *, subject: str | Path = "label map") -> np.ndarray:
        """Turn values into indices, all voxels in one look-up.

        Args:
            label_map: any shape; whole numbers (integers, or floats without a fraction).
            subject: the map's name for the message.
        Returns: int64, same shape, 0 to K - 1.
        Raises: LabelError naming each unknown value and its voxel count.
        """
        return self._look_up(label_map, subject=subject, known_as=f"protocol {self.name}")

    def by_value(self, value: int) -> Label:
        """The label with this value.

        Raises: LabelError if there is none.
        """
        for label in self.labels:
            if label.value == value:
                return label
        raise LabelError(
            f"protocol {self.name}", found=f"no label with value {value}", fix="see `synthseg labels show`"
        )

    def merge_sides(self) -> dict[int, int]:
        """Value -> value with the sides merged: right labels become their left partner, the others stay."""
        return {label.value: label.partner if label.side == "right" else label.value for label in self.labels}

    def to_table(self) -> str:
        """The protocol as tab-separated text; :meth:`from_table` reads it back unchanged."""
        header = {"name": self.name, "description": self.description, "source": self.source}
        return format_table(self.labels, header)

    @classmethod
    def from_table(cls, text: str, name: str, *, subject: str | Path | None = None) -> LabelProtocol:
        """Read a table.

        Args:
            text: tab-separated text as :meth:`to_table` writes it.
            name: used when the table has no ``# name:`` line.
            subject: file name for the messages (default: ``name``).
        Raises: LabelError naming the line and the fix.
        """
        subject = name if subject is None else subject
        header, labels, places = parse_table(text, subject)
        check_labels(labels, subject=subject, where=places)
        return cls(header.get("name") or name, header.get("description", ""), tuple(labels), header.get("source", ""))

    def to_rows(self) -> list[dict[str, Any]]:
        """The labels as plain dictionaries for a JSON card; :meth:`from_rows` reads them back."""
        return [label_to_row(label) for label in self.labels]

    @classmethod
    def from_rows(cls, name: str, description: str, rows: Iterable[Mapping[str, Any]]) -> LabelProtocol:
        """Build a protocol from :meth:`to_rows`.

        Raises: LabelError naming the row and the fix.
        """
        return cls(name, description, tuple(label_from_row(row, name, f"row {i + 1}") for i, row in enumerate(rows)))


def builtin_protocols() -> tuple[str, ...]:
    """Names of the protocols that come with the package."""
    return BUILTIN


def load_protocol(name_or_path: str | Path) -> LabelProtocol:
    """Load a built-in protocol by name, a table by path (``.tsv``), or the original's lists (a folder, or a ``.npy``).

    What the original's lists become: :func:`synthseg.labels.original.load_npy_protocol`.

    Raises: LabelError if there is no such protocol or file, or the table breaks a rule.
    """
    if str(name_or_path) in BUILTIN:
        return _load_builtin(str(name_or_path))
    path = Path(name_or_path)
    if path.suffix.lower() == ".npy" or is_folder(path):
        from synthseg.labels.original import load_npy_protocol  # needs this module

        return load_npy_protocol(path)
    if path.suffix.lower() != ".tsv" and path == Path(path.name) and not exists(path):
        raise LabelError(
            f"label protocol {str(name_or_path)!r}",
            found="no built-in protocol of that name",
            fix=f"use one of {', '.join(BUILTIN)}, or the path of a .tsv table (or of the original's .npy lists)",
        )
    return LabelProtocol.from_table(read_text(path), path.stem, subject=path)


@cache
def _load_builtin(name: str) -> LabelProtocol:
    table = resources.files("synthseg.labels") / "protocols" / f"{name}.tsv"
    return LabelProtocol.from_table(table.read_text(encoding="utf-8"), name)
