"""Two groups of which one has lost volume, for tests of group studies."""

from __future__ import annotations

import numpy as np

from synthseg.evaluation.statistics import BootstrapConfig

QUICK = BootstrapConfig(resamples=300)


def cohort(n: int = 60, loss: float = 900.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes, covariates (age, sex, ICV) and who is a case; cases are older."""
    draw = np.random.default_rng(seed)
    cases = np.arange(n) % 2 == 1
    age, sex = draw.normal(70, 8, n) + 4 * cases, draw.integers(0, 2, n)
    icv = draw.normal(1.5e6, 1e5, n) - 1e5 * sex
    volumes = 8000 - 30 * age + 100 * sex + 0.002 * icv - loss * cases + draw.normal(0, 400, n)
    return volumes, np.column_stack([age, sex, icv]), cases
