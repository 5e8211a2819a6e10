"""What a study is: arms that differ in one thing, scans and conditions they are compared on, and the paper's numbers.

A study is a TOML file in ``experiments/studies``. Its ``[recipe]`` is laid over the size's recipe (``sizes.toml``), an
arm's own ``[arm.recipe]`` over both; keys and meanings are those of any training recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from synthseg.configs import config_from_dict
from synthseg.errors import ConfigError, UsageError
from synthseg.training.recipe import overlay, read_toml

HERE = Path(__file__).parent
STUDIES = HERE / "studies"
SIZES = ("toy", "laptop", "small", "full")
Size = Literal["toy", "laptop", "small", "full"]


@dataclass(frozen=True, kw_only=True)
class Slices:
    """One acquisition for all training images, in place of random ones."""

    axis: int  # 0 sagittal, 1 coronal, 2 axial
    spacing_mm: float  # of the slices, which are as thick

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ConfigError("arm.slices.axis", found=repr(self.axis), fix="give 0, 1 or 2")
        if not 0 < self.spacing_mm <= 20:
            raise ConfigError("arm.slices.spacing_mm", found=repr(self.spacing_mm), fix="give up to 20 mm")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Other arms whose weights an arm starts from."""

    structures: str | None = None
    autoencoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to segment: a network trained for it, weights that exist, or another method."""

    name: str
    method: Literal["network", "bayes", "adapt"] = "network"
    weights: str | None = None  # existing ones, by name or path: nothing is trained
    mode: str = "default"  # of inference
    trainer: Literal["synthetic", "rules", "real", "autoencoder"] = "synthetic"
    maps: int | None = None  # train on so many label maps only: nested subsets
    maps_draw: int = 0  # which random order of the maps the subset is taken from
    sampler: Literal["uniform", "general", "reference"] = "uniform"  # weights of the maps: rare shapes more often
    shapes: int = 0  # edited variants of each map beside it (synthseg.anatomies.shapes)
    prior: str | None = None  # intensity priors of one contrast: "t1", or NAME/priors.tsv in the folder --priors
    slices: Slices | None = None
    needs: Needs = field(default_factory=Needs)
    evaluate: bool = True  # else only trained, for the arms that need it
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method == "adapt" and None in (self.needs.structures, self.needs.autoencoder):
            fix = 'give needs = { structures = "ARM", autoencoder = "ARM" }'
            raise ConfigError(f"arm {self.name}: needs", found="not two arms to adapt with", fix=fix)
        if self.shapes < 0:
            raise ConfigError(f"arm {self.name}: shapes", found=repr(self.shapes), fix="give 0 or more variants a map")
        if self.maps is not None and (self.sampler != "uniform" or self.shapes):
            found = f"{self.maps} maps beside a sampler or shapes"
            raise ConfigError(f"arm {self.name}: maps", found=found, fix="leave one of the two out")
        if self.trainer == "real" and (self.sampler != "uniform" or self.shapes):
            found = "real images beside a sampler or shapes"
            raise ConfigError(f"arm {self.name}: trainer", found=found, fix="use synthetic images")

    @property
    def trained(self) -> bool:
        """Whether a network is trained for this arm."""
        return self.method == "network" and self.weights is None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which of the known scans, under which changes (``synthseg.volumes.degrade``)."""

    groups: tuple[str, ...] = ()  # of scans; empty: all there are
    changes: tuple[str, ...] = ("plain",)
    toy_changes: tuple[str, ...] = ("plain",)
    surface: bool = True
    split_by_ventricles: bool = False  # groups of four scans and more in two: narrow and wide lateral ventricles
    held_out: int = 0  # so many label maps are in no arm's training, and make synthetic scans
    ventricles: tuple[float, ...] = (1.0,)  # factors on their lateral ventricles

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise ConfigError("evaluation.held_out", found=repr(self.held_out), fix="give 0 or more maps")
        if any(not factor > 0 for factor in self.ventricles):
            raise ConfigError("evaluation.ventricles", found=repr(self.ventricles), fix="give factors above 0")


@dataclass(frozen=True, kw_only=True)
class Atrophy:
    """The group study: simulated patients whose hippocampi are smaller by a known share."""

    subjects: int = 50  # a group (section 5.3); toy and small sizes take fewer
    small_subjects: int = 10
    toy_subjects: int = 2
    mean_loss: float = 0.2  # of the patients' hippocampal volume
    sd_loss: float = 0.08  # of either group's
    contrasts: tuple[str, ...] = ("t1", "flair")
    toy_contrasts: tuple[str, ...] = ("t1",)
    changes: tuple[str, ...] = ("plain", "axial-5mm")
    toy_changes: tuple[str, ...] = ("plain",)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mean_loss < 1:
            raise ConfigError("atrophy.mean_loss", found=repr(self.mean_loss), fix="give a share in [0, 1)")
        if min(self.subjects, self.small_subjects, self.toy_subjects) < 2:
            raise ConfigError("atrophy.subjects", found="fewer than 2", fix="give at least 2 a group")


@dataclass(frozen=True, kw_only=True)
class PaperNumber:
    """A number of the paper that the study's are put beside."""

    what: str
    value: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and what is run to answer it."""

    name: str
    title: str
    question: str
    source: str
    arms: tuple[Arm, ...]
    reference: str  # the arm that others are compared with
    evaluation: Evaluation = field(default_factory=Evaluation)
    atrophy: Atrophy | None = None
    paper: tuple[PaperNumber, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or not names:
            raise ConfigError(self.name, found=f"arms {', '.join(names) or 'none'}", fix="name each arm differently")
        wanted = [self.reference, *(n for a in self.arms for n in (a.needs.structures, a.needs.autoencoder) if n)]
        for name in wanted:
            if name not in names:
                raise ConfigError(self.name, found=f"no arm called {name!r}", fix=f"name one of {', '.join(names)}")
        for name in wanted[1:]:
            if not next(arm for arm in self.arms if arm.name == name).trained:
                found = f"{name!r}, which is not trained here, as one that another arm needs"
                raise ConfigError(self.name, found=found, fix="name an arm that trains a network")

    def chosen(self, names: Sequence[str]) -> tuple[Arm, ...]:
        """The arms of these names and those they need, in the study's order; all without names.

        Raises: UsageError for a name the study does not have.
        """
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            if name not in known:
                raise UsageError("--arms", found=repr(name), fix=f"give some of {', '.join(known)}")
        wanted = set(names or known)
        for arm in self.arms:
            if arm.name in wanted:
                wanted |= {n for n in (arm.needs.structures, arm.needs.autoencoder) if n}
        return tuple(arm for arm in self.arms if arm.name in wanted)


def study_names() -> list[str]:
    """The names of all studies there are."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load_study(name_or_path: str | Path) -> Study:
    """Read a study by its name, or from a file of one's own.

    Raises: UsageError for an unknown name; ConfigError naming file and key for anything wrong in it.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = STUDIES / f"{name_or_path}.toml"
        if not path.is_file():
            raise UsageError("study", found=repr(str(name_or_path)), fix=f"choose one of {', '.join(study_names())}")
    tables = dict(read_toml(path))
    recipe = tables.pop("recipe", {})
    given = tables.pop("arm", [])
    if not isinstance(given, list) or not all(isinstance(arm, dict) for arm in given):
        raise ConfigError(f"{path.name}: arm", found=repr(given), fix="write each arm as a [[arm]] table")
    arms = []
    for number, arm in enumerate(given):
        keys = {key: value for key, value in arm.items() if key != "recipe"}
        made = config_from_dict(Arm, keys, where=f"{path.name}: arm[{number}]")
        arms.append(replace(made, recipe=arm.get("recipe", {})))
    study = config_from_dict(_Head, {"name": path.stem, **tables}, where=path.name)
    return Study(**{key: getattr(study, key) for key in _Head.__dataclass_fields__}, arms=tuple(arms), recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A study's own keys, without arms and recipes."""

    name: str
    title: str
    question: str
    source: str
    reference: str
    evaluation: Evaluation = field(default_factory=Evaluation)
    atrophy: Atrophy | None = None
    paper: tuple[PaperNumber, ...] = ()


def size_tables(size: Size) -> dict[str, Any]:
    """The recipe that a size stands for, as plain tables."""
    tables = tomllib.loads((HERE / "sizes.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = overlay(tables["all"], tables[size])
    return found
