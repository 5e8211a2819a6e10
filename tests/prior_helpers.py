"""What the tests of estimated priors share."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def by_scipy(image: np.ndarray, labels: np.ndarray, classes: np.ndarray, *, scale: Any) -> np.ndarray:
    """[2, K] medians and deviations by the original's rules, with SciPy; (0, 0) for empty classes."""
    low, high = np.percentile(image, [2, 98])
    stretched = np.interp(image, [low, high], [0, 255])
    rows = np.zeros((2, classes.max() + 1))
    for k in range(classes.max() + 1):
        pool = stretched[np.isin(labels, np.flatnonzero(classes == k))]
        pool = pool if k == 0 else pool[pool > 0]
        if pool.size:
            rows[:, k] = np.median(pool), stats.median_abs_deviation(pool, scale=scale)
    return rows
