"""What the study compares: four arms, the test anatomies, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.fetal.phantom import CONTRASTS

from synthseg.errors import ConfigError, UsageError

ARMS = ("uniform", "sampler", "shapes", "sampler+shapes")
MILD, SEVERE = "mild", "severe"
HEALTHIER = "towards healthy"  # the maps are of spina bifida: wide ventricles, small cerebella
ORDINARY, ATLAS = "ordinary", "atlas images"


@dataclass(frozen=True)
class Arm:
    """Which of the two measures an arm takes."""

    name: str
    sampler: bool  # maps drawn by weights that favour the rare
    shapes: bool  # most maps edited into shapes that no map shows


@dataclass(frozen=True)
class Edit:
    """A change of shape given to a held-out map."""

    name: str
    kind: str  # of synthseg.anatomies.shapes
    stratum: str  # MILD, SEVERE or HEALTHIER
    severity: float  # factor on the structure's volume


EDITS = (
    Edit("wide ventricles x 1.5", "ventricles", MILD, 1.5),
    Edit("small cerebellum x 0.7", "cerebellum", MILD, 0.7),
    Edit("thin cortex x 0.8", "cortex", MILD, 0.8),
    Edit("wide ventricles x 3", "ventricles", SEVERE, 3.0),
    Edit("small cerebellum x 0.4", "cerebellum", SEVERE, 0.4),
    Edit("thin cortex x 0.5", "cortex", SEVERE, 0.5),
    Edit("narrow ventricles x 0.4", "ventricles", HEALTHIER, 0.4),
    Edit("large cerebellum x 1.6", "cerebellum", HEALTHIER, 1.6),
)


@dataclass(frozen=True, kw_only=True)
class FetalConfig:
    """Settings that change what is computed; a folder holds one set of them."""

    protocol: str = "feta"
    variants: int = 8  # entries a map in every arm's bank: versions of its surroundings, and of its shape
    edited: int = 6  # of them, in arms with shapes: the others keep the map's own shape
    margin_mm: float = 25.0  # of surroundings around the brain
    edits: tuple[Edit, ...] = EDITS  # of held-out maps
    contrasts: tuple[str, ...] = tuple(CONTRASTS)  # of held-out maps as they are
    edited_contrasts: tuple[str, ...] = ("t2", "t1")  # of held-out maps edited
    test_spacing_mm: float = 1.0
    scheme: str = "general"  # of the sampler
    siblings: bool = False  # edited variants share their map's weight; else each counts as an anatomy of its own
    seed: int = 0

    def __post_init__(self) -> None:
        for contrast in (*self.contrasts, *self.edited_contrasts):
            if contrast not in CONTRASTS:
                raise ConfigError("contrasts", found=repr(contrast), fix=f"use some of {', '.join(CONTRASTS)}")
        if not 0 <= self.edited < self.variants:
            found = f"{self.edited} edited of {self.variants}"
            raise ConfigError("variants", found=found, fix="give at least 1, and fewer edited ones than that")
        if not 0.3 <= self.test_spacing_mm <= 5 or self.margin_mm < 0:
            found = f"{self.test_spacing_mm:g} mm voxels, a margin of {self.margin_mm:g} mm"
            raise ConfigError("test scans", found=found, fix="give voxels of 0.3 to 5 mm and a margin of at least 0")


def arms_of(names: str) -> tuple[Arm, ...]:
    """The arms named in a comma-separated list. Raises: UsageError for an unknown or repeated name, or none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in ARMS or wanted.count(name) > 1:
            found = f"{name!r}{' more than once' if wanted.count(name) > 1 else ''}"
            raise UsageError("--arms", found=found, fix=f"give some of {', '.join(ARMS)}")
    if not wanted:
        raise UsageError("--arms", found="nothing", fix=f"give some of {', '.join(ARMS)}")
    return tuple(Arm(name, "sampler" in name, "shapes" in name) for name in wanted)
