"""How much weight each point of a space should get so that rare regions are drawn as often as common ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from synthseg.anatomies.packages import require_package
from synthseg.anatomies.settings import DensitySettings
from synthseg.errors import ConfigError

NO_CLUSTER = -1


@dataclass(frozen=True)
class Spread:
    """Weights over points, and the clusters behind them."""

    weights: np.ndarray  # [n], sum 1
    cluster: np.ndarray  # [n] int64; NO_CLUSTER where the density has none


def spread(points: np.ndarray, settings: DensitySettings, clusters: int) -> Spread:
    """Weights of points by how rare their region is.

    ``mixture`` and ``kmeans``: hard clusters, 1 / (K n_c) for a point in a cluster of n_c (reference A.4.3).
    ``farthest``: as these, around points chosen one by one as far as possible from those before; without any seed.
    ``soft``: a Gaussian mixture's components share each point. ``kernel``: 1 / density, of a Gaussian kernel whose
    width is Scott's rule for the root mean square deviation over the axes; no point weighs more than n times another.

    Args:
        points: [n, k].
        clusters: K asked for.
    Raises: ConfigError for more clusters than points, or (``empty = "refuse"``) a cluster that no point is in;
        UsageError without scikit-learn where it is needed.
    """
    count = len(points)
    if settings.kind == "uniform" or count == 1:
        return Spread(np.full(count, 1.0 / count), np.full(count, NO_CLUSTER))
    if settings.kind == "kernel":
        return Spread(kernel_weights(points, settings.bandwidth), np.full(count, NO_CLUSTER))
    if clusters > count:
        fix = "ask for fewer clusters, or leave their number out"
        raise ConfigError("sampler: density.clusters", found=f"{clusters} clusters of {count} anatomies", fix=fix)
    if settings.kind == "farthest":
        assigned = merge_small(points, farthest_clusters(points, clusters), settings.min_cluster)
        return Spread(cluster_weights(assigned), _numbered(assigned))
    require_package("sklearn", f"density.kind = {settings.kind!r}")
    weights, first = np.zeros(count), np.full(count, NO_CLUSTER)
    for number, seed in enumerate(settings.seeds):
        own, assigned = _fitted(points, settings, clusters, seed)
        weights += own / len(settings.seeds)
        first = _numbered(assigned) if number == 0 else first
    return Spread(weights, first)


def cluster_weights(cluster: np.ndarray) -> np.ndarray:
    """[n]: 1 / (K n_c), K the number of clusters that hold any point."""
    _, inverse, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    return 1.0 / (len(sizes) * sizes[inverse])


def kernel_weights(points: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    """[n], sum 1: inverse of the kernel density at each point."""
    count, axes = points.shape
    deviation = float(np.sqrt(points.var(axis=0).mean()))
    if deviation == 0:
        return np.full(count, 1.0 / count)
    width = bandwidth * deviation * count ** (-1.0 / (axes + 4))
    squared = np.zeros((count, count))
    for axis in points.T:  # one after the other: [n, n, k] at once would not fit for thousands of maps
        squared += np.subtract.outer(axis, axis) ** 2
    rare = 1.0 / np.exp(-squared / (2 * width**2)).sum(axis=1)
    return rare / rare.sum()


def farthest_clusters(points: np.ndarray, clusters: int) -> np.ndarray:
    """[n]: index of the nearest of K points, of which the first is nearest the mean and each next one farthest off."""
    distance = np.linalg.norm(points - points.mean(axis=0), axis=1)
    nearest = np.linalg.norm(points - points[distance.argmin()], axis=1)
    assigned = np.zeros(len(points), dtype=np.int64)
    for number in range(1, clusters):
        if nearest.max() == 0:  # fewer different points than clusters
            break
        to_new = np.linalg.norm(points - points[nearest.argmax()], axis=1)
        assigned[to_new < nearest] = number
        nearest = np.minimum(nearest, to_new)
    return assigned


def merge_small(points: np.ndarray, cluster: np.ndarray, least: int) -> np.ndarray:
    """Clusters of fewer than ``least`` points join the one with the nearest mean, the smallest first."""
    cluster = cluster.copy()
    while True:
        names, sizes = np.unique(cluster, return_counts=True)
        if len(names) == 1 or sizes.min() >= least:
            return cluster
        means = np.array([points[cluster == name].mean(axis=0) for name in names])
        small = int(sizes.argmin())
        distance = np.linalg.norm(means - means[small], axis=1)
        distance[small] = np.inf
        cluster[cluster == names[small]] = names[int(distance.argmin())]


def _fitted(points: np.ndarray, settings: DensitySettings, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and hard clusters of one seed."""
    if settings.kind == "kmeans":
        from sklearn.cluster import KMeans

        with _quiet():
            model = KMeans(clusters, init="k-means++", n_init=settings.restarts, random_state=seed)
            assigned = model.fit_predict(points)
    else:
        from sklearn.mixture import GaussianMixture

        with _quiet():
            mixture = GaussianMixture(
                clusters, covariance_type="full", n_init=settings.restarts, init_params="kmeans", random_state=seed
            ).fit(points)
        assigned = mixture.predict(points)
        if settings.kind == "soft":
            return _soft(mixture.predict_proba(points), settings.min_cluster), assigned
    present = len(np.unique(assigned))
    if present < clusters and settings.empty == "refuse":
        fix = "ask for fewer clusters (the reference stops here, too)"
        raise ConfigError("sampler: density.clusters", found=f"{present} of {clusters} clusters with maps", fix=fix)
    assigned = merge_small(points, assigned, settings.min_cluster)
    return cluster_weights(assigned), assigned


def _soft(shares: np.ndarray, least: int) -> np.ndarray:
    """[n]: mean over components of each one's shares, normalised; components of fewer than ``least`` points dropped."""
    sizes = shares.sum(axis=0)
    kept = sizes >= min(least, float(sizes.max()))
    kept &= sizes > 1e-9
    shares = shares[:, kept]
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    weights = (shares / np.maximum(shares.sum(axis=0), 1e-300)).mean(axis=1)
    return np.asarray(weights / weights.sum())


def _numbered(cluster: np.ndarray) -> np.ndarray:
    """0, 1, ... in the order in which clusters come first: a seed's arbitrary numbers would differ by machine."""
    _, first, inverse = np.unique(cluster, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _quiet() -> warnings.catch_warnings:
    """Without the library's warnings that few points converge slowly or lie on each other: both are fine here."""
    from sklearn.exceptions import ConvergenceWarning

    caught = warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
    return caught
