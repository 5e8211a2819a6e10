"""A volumetric group study: tables of volumes and of participants -> effect sizes (paper section 5.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation.effects import Effect, EffectConfig, effect_size
from synthseg.evaluation.measurements import SIDE
from synthseg.evaluation.subjects import Subject, match_subjects, require_columns
from synthseg.evaluation.writing import listed, write_rows

ICV = "total intracranial"  # what `synthseg segment --volumes` and the original call it


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Who is compared, and what volumes are corrected for."""

    group: str  # column of the participants' table
    cases: str  # its value for cases
    controls: str
    covariates: tuple[str, ...] = ()  # columns of the participants' table; text columns are categories
    categorical: tuple[str, ...] = ()  # covariates whose numbers are names, e.g. a site's
    icv: str | None = None  # correct for this volume too, or for this column of the participants' table
    structures: tuple[str, ...] = ()  # only these; (): all
    sum_sides: bool = False  # left and right together
    scans: str = "*"  # use only subjects of the volume table named so, e.g. "*FLAIR*"
    effect: EffectConfig = field(default_factory=EffectConfig)

    def __post_init__(self) -> None:
        if self.cases == self.controls:
            raise ConfigError("cases", found=f"{self.cases!r}, the controls too", fix="name two values of the column")
        strangers = sorted(set(self.categorical) - set(self.covariates))
        if strangers:
            found = f"{', '.join(strangers)}, not among the covariates"
            raise ConfigError("categorical", found=found, fix="list it in the covariates as well")


@dataclass(frozen=True, kw_only=True)
class EffectRow:
    """Controls against cases in one structure. Volumes are corrected ones, at the covariates' mean over everyone."""

    structure: str
    n_controls: int
    n_cases: int
    mean_controls_mm3: float
    mean_cases_mm3: float
    difference_percent: float  # (cases - controls) / controls
    sd_pooled_mm3: float
    cohens_d: float  # equation 28: positive when cases are smaller
    d_low: float
    d_high: float
    interval: str
    d_uncorrected: float
    corrected_for: str
    fit: str
    variance: str  # "n-1" or "n"


@dataclass(frozen=True)
class StudyResult:
    """Effect sizes, largest structures' order as in the table of volumes, and who was left out, in sentences."""

    rows: tuple[EffectRow, ...]
    notes: tuple[str, ...]


def run_study(
    volumes: Mapping[str, Mapping[str, float]], participants: Mapping[str, Mapping[str, str]], config: StudyConfig
) -> StudyResult:
    """Cohen's d of every structure between controls and cases.

    A scan belongs to the participant of the same name, or of its ``sub-...``; ids are the same with and without
    ``sub-``. Everyone left out is named in the notes: no volumes, neither group, a covariate that is missing.

    Raises: UsageError for columns or values that are not there, two scans of one participant, an empty group;
        ConfigError when the linear model cannot be fitted.
    """
    wanted = {config.cases: True, config.controls: False}
    require_columns(participants, (config.group, *config.covariates))
    subjects, notes = match_subjects(volumes, participants, config.group, wanted, config.scans)
    tables = {s.scan: _with_sides(volumes[s.scan], config) for s in subjects}
    covariates, names, complete = _covariates(subjects, volumes, config, notes)
    subjects = [subject for subject, whole in zip(subjects, complete, strict=True) if whole]
    structures = _structures(tables, config)
    rows = []
    for structure in structures:
        sizes = np.array([tables[s.scan].get(structure, math.nan) for s in subjects], dtype=float)
        usable = np.isfinite(sizes)
        if not usable.all():
            gone = [s.scan for s, there in zip(subjects, usable, strict=True) if not there]
            notes.append(f"{structure}: {len(gone)} scan(s) without a volume left out: {listed(gone)}")
        cases = np.array([s.case for s in subjects], dtype=bool)[usable]
        if min(cases.sum(), (~cases).sum()) < 2:
            found = f"{(~cases).sum()} controls and {cases.sum()} cases with all values"
            raise UsageError(f"the groups ({structure})", found=found, fix="two of each are the least")
        effect = effect_size(sizes[usable], covariates[usable], cases, config.effect)
        rows.append(_row(structure, effect, names, config))
    return StudyResult(tuple(rows), tuple(dict.fromkeys(notes)))


def write_effects(rows: Sequence[EffectRow], path: str | Path) -> Path:
    """Write one line a structure; columns are the fields of :class:`EffectRow`.

    Raises: UsageError unless the name ends in .tsv or .csv; OutputError when it cannot be written.
    """
    return write_rows(rows, [item.name for item in fields(EffectRow)], path)


def _covariates(
    subjects: Sequence[Subject], volumes: Mapping[str, Mapping[str, float]], config: StudyConfig, notes: list[str]
) -> tuple[np.ndarray, list[str], list[bool]]:
    """[n, p] numbers of those who have them all, what was corrected for, and who has them all."""
    named = {name: [s.participant[name] for s in subjects] for name in config.covariates}
    if config.icv is not None:
        named[config.icv] = [_icv_of(subject, volumes[subject.scan], config.icv) for subject in subjects]
    missing = {name: [cell.lower() in ("", "n/a", "na", "nan") for cell in cells] for name, cells in named.items()}
    complete = [not any(gaps[index] for gaps in missing.values()) for index in range(len(subjects))]
    for name, gaps in missing.items():
        gone = [s.scan for s, gap in zip(subjects, gaps, strict=True) if gap]
        if gone:
            notes.append(f"{len(gone)} without {name}, left out: {listed(gone)}")
    kept = {name: [cell for cell, whole in zip(cells, complete, strict=True) if whole] for name, cells in named.items()}
    columns = {
        what: numbers
        for name, cells in kept.items()
        for what, numbers in _as_numbers(name, cells, name in config.categorical, notes).items()
    }
    whole = [subject for subject, all_there in zip(subjects, complete, strict=True) if all_there]
    fitted = np.array([config.effect.fit != "controls" or not subject.case for subject in whole], dtype=bool)
    for what, numbers in columns.items():
        if len(np.unique(numbers[fitted])) < 2:
            found = f"one value among the {fitted.sum()} subjects that the linear model is fitted to"
            raise UsageError(f"covariate {what}", found=found, fix="leave it out, or use --fit all or within")
    design = np.column_stack(list(columns.values())) if columns else np.empty((len(whole), 0))
    return design, list(named), complete


def _as_numbers(name: str, cells: Sequence[str], categorical: bool, notes: list[str]) -> dict[str, np.ndarray]:
    """One column of numbers, or one 0/1 column for each category but the first in the alphabet."""
    plain = [_is_number(cell) for cell in cells]
    if not categorical and all(plain):
        return {name: np.array([float(cell) for cell in cells])}
    if not categorical and any(plain):
        text = next(cell for cell, number in zip(cells, plain, strict=True) if not number)
        fix = "mend the table (n/a for what is missing), or use --categorical if numbers are names there"
        raise UsageError(f"covariate {name}", found=f"numbers and text, e.g. {text!r}", fix=fix)
    levels = sorted(set(cells))
    notes.append(f"{name} has {len(levels)} categories: {listed(levels)}")
    rest = levels[1:] or levels  # a single category is a constant, which is refused by name
    return {f"{name} ({level})": np.array([float(cell == level) for cell in cells]) for level in rest}


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _icv_of(subject: Subject, volumes: Mapping[str, float], name: str) -> str:
    if name in volumes:
        return repr(volumes[name])
    if name in subject.participant:
        return subject.participant[name]
    found = f"no volume or column {name!r} for {subject.scan}"
    raise UsageError("the intracranial volume", found=found, fix="name another with --icv-from")


def _with_sides(volumes: Mapping[str, float], config: StudyConfig) -> dict[str, float]:
    """Volumes, with left and right summed where that is wanted; a side without its partner keeps its name.

    So does what has a third part of the same name (FreeSurfer's WM-hypointensities): a sum would hide which it holds.
    """
    if not config.sum_sides:
        return dict(volumes)
    parts: dict[str, list[str]] = {}
    for name in volumes:
        parts.setdefault(SIDE.sub("", name), []).append(name)
    summed: dict[str, float] = {}
    for short, names in parts.items():
        sides = {match.group(1).lower() for name in names if (match := SIDE.match(name))}
        if len(names) == len(sides) == 2:
            summed[short] = math.fsum(volumes[name] for name in names)
        else:
            summed.update({name: volumes[name] for name in names})
    return summed


def _structures(tables: Mapping[str, Mapping[str, float]], config: StudyConfig) -> list[str]:
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    absent = [name for name in config.structures if name not in names]
    if absent:
        raise UsageError("--structures", found=f"no volume {listed(absent)}", fix=f"use some of {listed(names, 40)}")
    chosen = config.structures or tuple(names)
    tested = [name for name in chosen if name != config.icv]  # corrected for itself, nothing is left of it
    if not tested:
        fix = "test another volume, or do not correct for this one"
        raise UsageError("the volumes", found=f"only {config.icv}, which is corrected for", fix=fix)
    return tested


def _row(structure: str, effect: Effect, names: Sequence[str], config: StudyConfig) -> EffectRow:
    change = effect.mean_cases / effect.mean_controls - 1 if effect.mean_controls else math.nan
    return EffectRow(
        structure=structure,
        n_controls=effect.n_controls,
        n_cases=effect.n_cases,
        mean_controls_mm3=effect.mean_controls,
        mean_cases_mm3=effect.mean_cases,
        difference_percent=100 * change,
        sd_pooled_mm3=effect.sd_pooled,
        cohens_d=effect.d,
        d_low=effect.interval.low,
        d_high=effect.interval.high,
        interval=effect.interval.method,
        d_uncorrected=effect.d_uncorrected,
        corrected_for=", ".join(names) or "nothing",
        fit=config.effect.fit if names else "none",
        variance="n" if config.effect.population else "n-1",
    )
