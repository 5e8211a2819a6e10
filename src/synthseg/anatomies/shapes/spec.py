"""What is drawn: how often each kind of change is made, and how far."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from synthseg.anatomies.shapes.kinds import KINDS, kind_of
from synthseg.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ShapeSpec:
    """Severities to draw from: factors on volumes, log-uniform (the callosum's uniform); (1, 1) never changes a kind.

    The defaults hold what fetal and adult brains show in disease, and, since maps may be of ill brains, the way back.
    """

    ventricles: Range = (0.4, 4.0)  # ventriculomegaly, and maps with large ventricles back to ordinary ones
    cerebellum: Range = (0.4, 2.0)  # hypoplasia; regrowth of small ones (Chiari II)
    cortex: Range = (0.65, 1.25)  # thinner, thicker
    atrophy: Range = (0.75, 1.0)  # cortex and white matter, for the CSF's good
    callosum: Range = (0.0, 1.0)  # share that is left near the midline
    external_csf: Range = (0.9, 1.35)  # brain and CSF together
    size: Range = (0.75, 1.35)
    probability: float = 0.4  # that a kind is among a version's changes
    most: int = 3  # changes of a version; at least one is made

    def __post_init__(self) -> None:
        for name in KINDS:
            low, high = self.range_of(name)
            kind = KINDS[name]
            if not kind.lowest <= low <= high <= kind.highest:
                bounds = f"{kind.lowest:g} <= low <= high <= {kind.highest:g}"
                fix = f"give {bounds}, factors on the volume of: {kind.structure}"
                raise ConfigError(f"shapes: {name}", found=repr((low, high)), fix=fix)
        if not 0 < self.probability <= 1:
            raise ConfigError("shapes: probability", found=repr(self.probability), fix="give a share above 0, up to 1")
        if not 1 <= self.most <= len(KINDS):
            raise ConfigError("shapes: most", found=repr(self.most), fix=f"give 1 to {len(KINDS)} changes")
        if not self.kinds:
            raise ConfigError("shapes", found="(1, 1) for every kind", fix="give at least one kind a range")

    def range_of(self, kind: str) -> Range:
        """The severities of a kind."""
        low, high = getattr(self, kind_of(kind).name.replace("-", "_"))
        return float(low), float(high)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that change anything."""
        return tuple(name for name in KINDS if self.range_of(name) != (1.0, 1.0))


class Edit(NamedTuple):
    """One change of a map."""

    kind: str
    severity: float  # as wanted
    reached: float  # volume after / before, of the kind's structure
    before_mm3: float
    after_mm3: float


class ShapeDraw(NamedTuple):
    """The changes of one version of a map, in the order in which they were made."""

    edits: tuple[Edit, ...]


def spec_with(kinds: tuple[str, ...], spec: ShapeSpec) -> ShapeSpec:
    """The spec with these kinds only. Raises: UsageError for a name that is no kind."""
    wanted = {kind_of(name).name.replace("-", "_") for name in kinds}
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    for name in KINDS:
        key = name.replace("-", "_")
        if key not in wanted:
            values[key] = (1.0, 1.0)
    return ShapeSpec(**values)


def load_spec(path: Path) -> ShapeSpec:
    """Read a spec from a TOML file: the keys of :class:`ShapeSpec`. Raises: ConfigError naming file and key."""
    from synthseg.configs import config_from_dict, told_at
    from synthseg.reading import read_toml

    values = read_toml(path, error=ConfigError, fix="write lines such as: ventricles = [0.5, 4.0]")
    with told_at(path):
        return config_from_dict(ShapeSpec, values, where=str(path))
