"""The kinds of change: which structure gains or loses volume, and which tissue yields it or fills the space.

Every kind's severity is one number, the factor on its structure's volume: 1 leaves it, 2 doubles it, 0.5 halves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from synthseg.errors import ConfigError, UsageError


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A change of volume by deformation.

    What the structure gains is taken from the others in proportion to their weight here and their volume nearby; what
    has no weight keeps its volume and is only moved.
    """

    structure: tuple[str, ...]  # roles that grow or shrink
    yields: dict[str, float] = field(default_factory=dict)  # role -> weight
    reach_mm: float | None = None  # how far (standard deviation) tissue yields; None: as far as the brain goes
    guarded: tuple[str, ...] = ()  # roles that keep at least ``least_share`` of their volume together
    least_share: float = 0.4
    uneven: float = 0.5  # standard deviation of the log of the growth's smooth random unevenness


@dataclass(frozen=True)
class Kind:
    """A kind of change."""

    name: str
    structure: str  # whose volume the severity is a factor on, in words
    lowest: float  # severities that are accepted
    highest: float
    growth: Growth | None = None  # None: an edit of its own


_KINDS = (
    Kind(
        "ventricles",
        "ventricles",
        0.2,
        6.0,
        # A head without skull in its map gives way a little, as a fetus's does.
        Growth(
            structure=("ventricle",),
            yields={"white": 1.0, "csf": 1.0, "callosum": 1.0, "background": 0.2},
            guarded=("white",),
        ),
    ),
    Kind(
        "cerebellum",
        "cerebellum",
        0.2,
        3.0,
        Growth(
            structure=("cerebellum",),
            yields={"csf": 1.0, "fourth": 0.3, "ventricle": 0.2, "background": 1.0, "outside": 0.5, "white": 0.1},
            reach_mm=10.0,
            uneven=0.2,
        ),
    ),
    Kind(
        "cortex",
        "cortex",
        0.4,
        1.6,
        Growth(structure=("cortex",), yields={"csf": 1.0, "white": 0.1, "background": 0.5}, guarded=("white",)),
    ),
    Kind(
        "atrophy",
        "cerebral cortex and white matter",
        0.5,
        1.3,
        Growth(
            structure=("cortex", "white", "callosum"),
            yields={"csf": 1.0, "ventricle": 0.5, "background": 0.2},
            guarded=("csf", "ventricle"),
        ),
    ),
    Kind("callosum", "corpus callosum near the midline", 0.0, 1.0),
    Kind("external-csf", "brain and the CSF around it", 0.5, 2.0),
    Kind("size", "whole head", 0.3, 3.0),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which several are carried out on one map, but for the callosum, which comes first."""


def kind_of(name: str) -> Kind:
    """The kind of this name. Raises: UsageError naming those there are."""
    if name not in KINDS:
        raise UsageError("shapes: kind", found=repr(name), fix=f"give one of {', '.join(KINDS)}")
    return KINDS[name]


def check_severity(kind: str, severity: float) -> None:
    """Raises: ConfigError for a severity out of the kind's range; UsageError for an unknown kind."""
    known = kind_of(kind)
    if not (math.isfinite(severity) and known.lowest <= severity <= known.highest):
        fix = f"give a factor of {known.lowest:g} to {known.highest:g} on the volume of: {known.structure}"
        raise ConfigError(f"shapes: severity of {kind}", found=f"{severity:g}", fix=fix)
