"""Effect size between two groups after linear correction for covariates (paper section 5.3, equation 28)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from synthseg.errors import ConfigError, ShapeError
from synthseg.evaluation.statistics import BootstrapConfig, Interval, bootstrap_interval

FITS = ("controls", "all", "within")


@dataclass(frozen=True, kw_only=True)
class EffectConfig:
    """How an effect size is found."""

    # Whose volumes the linear model is fitted to. The paper does not say. "controls": disease cannot leak into the
    # slopes. "all": everyone, groups ignored, which shrinks the effect where groups differ in a covariate. "within":
    # everyone, with the group in the model (analysis of covariance), of which only the covariates' part is taken off.
    fit: str = "controls"
    population: bool = False  # variances over n (the original's) instead of n - 1 (equation 28 as usually read)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ConfigError("fit", found=repr(self.fit), fix=f"use one of {', '.join(FITS)}")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Controls against cases. Means and deviation are of corrected volumes, in the volumes' unit."""

    n_controls: int
    n_cases: int
    mean_controls: float
    mean_cases: float
    sd_pooled: float
    d: float  # positive when cases are smaller
    interval: Interval
    d_uncorrected: float


def cohens_d(controls: np.ndarray, cases: np.ndarray, *, population: bool = False) -> float:
    """(mean of controls - mean of cases) / s, with s^2 = ((n1 - 1) s1^2 + (n2 - 1) s2^2) / (n1 + n2 - 2).

    NaN when a group has fewer than two values, or when nobody differs from anybody; infinite for two constant groups
    with different means.

    Args:
        controls, cases: [n1], [n2].
        population: the original's variant, whose s1^2 and s2^2 are sums of squares over n (reference, section 7); |d|
            is then larger by a factor of sqrt(n / (n - 1)) for groups of n.
    Source: equation 28; Cohen 1988.
    """
    s = pooled_sd(controls, cases, population=population)
    difference = float(np.mean(controls) - np.mean(cases)) if math.isfinite(s) else math.nan
    if s == 0:  # two constant groups
        return math.nan if controls[0] == cases[0] else math.copysign(math.inf, difference)
    return difference / s


def pooled_sd(controls: np.ndarray, cases: np.ndarray, *, population: bool = False) -> float:
    """The s of :func:`cohens_d`; NaN when a group has fewer than two values."""
    if min(len(controls), len(cases)) < 2:
        return math.nan
    groups = [group for group in (controls, cases) if np.ptp(group) > 0]  # rounding gives equal numbers a variance
    total = math.fsum((len(group) - 1) * float(np.var(group, ddof=0 if population else 1)) for group in groups)
    return math.sqrt(total / (len(controls) + len(cases) - 2))


def correct(values: np.ndarray, covariates: np.ndarray, cases: np.ndarray, fit: str = "controls") -> np.ndarray:
    """Values without what a linear model of the covariates explains, at the covariates' mean over everyone.

    Args:
        values: [n].
        covariates: [n, p]; p may be 0, which changes nothing.
        cases: [n] bool, True for cases.
        fit: see :class:`EffectConfig`.
    Returns: [n], in the unit of ``values``.
    Raises: ShapeError for other shapes; ConfigError when the fitted subjects cannot determine the model: too few, or a
        covariate that is constant among them or follows from the others.
    """
    if values.ndim != 1 or covariates.shape[:1] != values.shape or covariates.ndim != 2 or cases.shape != values.shape:
        found = f"shapes {values.shape}, {covariates.shape}, {cases.shape}"
        raise ShapeError("covariates", found=found, fix="pass values [n], covariates [n, p], cases [n]")
    if covariates.shape[1] == 0:
        return values
    fitted = ~cases if fit == "controls" else np.ones_like(cases)
    require_determined(covariates[fitted], cases[fitted] if fit == "within" else None)
    adjusted: np.ndarray = _correct(values[None], _standard(covariates)[None], cases, fit)[0]
    return adjusted


def require_determined(covariates: np.ndarray, group: np.ndarray | None) -> None:
    """Raise ConfigError unless covariates [n, p], an intercept and the group (where given) determine a linear model."""
    n, p = covariates.shape
    columns = [np.ones((n, 1)), _standard(covariates)]
    columns += [] if group is None else [group[:, None].astype(float)]
    design = np.hstack(columns)
    fix = "leave a covariate out, or fit to more subjects (fit = 'all' or 'within')"
    if n <= design.shape[1]:
        raise ConfigError("the linear model", found=f"{n} subjects for {design.shape[1]} coefficients", fix=fix)
    rank = int(np.linalg.matrix_rank(design))
    if rank < design.shape[1]:
        found = f"{p} covariate columns of which {design.shape[1] - rank} is constant or follows from the others"
        raise ConfigError("the linear model", found=f"{found}, among the {n} subjects it is fitted to", fix=fix)


def effect_size(
    values: np.ndarray, covariates: np.ndarray, cases: np.ndarray, config: EffectConfig | None = None
) -> Effect:
    """Cohen's d of corrected values, with a bootstrap interval over subjects.

    Subjects are drawn within their group; the linear model is fitted again to every resample, so that the interval
    holds the correction's uncertainty too. A resample that cannot determine a coefficient (a site that is not in it)
    takes the least squares solution of smallest norm.

    Args:
        values: [n] finite.
        covariates: [n, p] finite numbers: categories as 0/1 columns.
        cases: [n] bool.
    Raises: as :func:`correct`.
    """
    config = config or EffectConfig()
    adjusted = correct(values, covariates, cases, config.fit)
    controls, patients = adjusted[~cases], adjusted[cases]
    scaled = _standard(covariates)

    def resampled(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        """d of subjects by index: [..., n1] and [..., n2] -> [...]."""
        assert axis == -1
        n1, n2 = first.shape[-1], second.shape[-1]
        lead = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
        drawn = np.concatenate([np.broadcast_to(i, (*lead, i.shape[-1])) for i in (first, second)], axis=-1)
        drawn = drawn.reshape(-1, n1 + n2).astype(int)
        is_case = np.arange(n1 + n2) >= n1
        corrected = _correct(values[drawn], scaled[drawn], is_case, config.fit)
        return _cohens_d_rows(corrected[:, :n1], corrected[:, n1:], config.population).reshape(lead)

    interval = bootstrap_interval((np.flatnonzero(~cases), np.flatnonzero(cases)), resampled, config.bootstrap)
    return Effect(
        n_controls=len(controls),
        n_cases=len(patients),
        mean_controls=float(controls.mean()) if len(controls) else math.nan,
        mean_cases=float(patients.mean()) if len(patients) else math.nan,
        sd_pooled=pooled_sd(controls, patients, population=config.population),
        d=cohens_d(controls, patients, population=config.population),
        interval=interval,
        d_uncorrected=cohens_d(values[~cases], values[cases], population=config.population),
    )


def _correct(values: np.ndarray, covariates: np.ndarray, cases: np.ndarray, fit: str) -> np.ndarray:
    """Rows of [B, n] without the part that covariates [B, n, p] explain; cases [n] are the same in all rows."""
    if covariates.shape[-1] == 0:
        return values
    x, y = covariates, values
    if fit == "controls":
        x, y = x[:, ~cases], y[:, ~cases]
    if fit == "within":  # the group's own means absorb the group: slopes are those of the model with a group term
        x, y = x.copy(), y.copy()
        for members in (cases, ~cases):
            x[:, members] -= x[:, members].mean(axis=1, keepdims=True)
            y[:, members] -= y[:, members].mean(axis=1, keepdims=True)
    else:
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    gram = np.einsum("bnp,bnq->bpq", x, x)
    slopes = np.linalg.pinv(gram, hermitian=True) @ np.einsum("bnp,bn->bp", x, y)[..., None]
    shifted = covariates - covariates.mean(axis=1, keepdims=True)
    corrected: np.ndarray = values - (shifted @ slopes)[..., 0]
    return corrected


def _cohens_d_rows(controls: np.ndarray, cases: np.ndarray, population: bool) -> np.ndarray:
    """:func:`cohens_d` of each row of [B, n1] and [B, n2]."""
    ddof = 0 if population else 1
    n1, n2 = controls.shape[1], cases.shape[1]
    if min(n1, n2) < 2:
        return np.full(len(controls), math.nan)
    squares = (n1 - 1) * controls.var(axis=1, ddof=ddof) + (n2 - 1) * cases.var(axis=1, ddof=ddof)
    with np.errstate(invalid="ignore", divide="ignore"):
        d: np.ndarray = (controls.mean(axis=1) - cases.mean(axis=1)) / np.sqrt(squares / (n1 + n2 - 2))
    return d


def _standard(covariates: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1: ages and intracranial volumes differ by four orders of magnitude."""
    if not len(covariates):
        return covariates
    mean, spread = covariates.mean(axis=0), covariates.std(axis=0)
    constant = spread <= 1e-12 * np.abs(mean)  # rounding alone
    standard: np.ndarray = np.where(constant, 0.0, (covariates - mean) / np.where(constant, 1.0, spread))
    return standard
