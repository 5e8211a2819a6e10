"""Label maps made wrong on purpose, to see what the denoiser mends.

Written apart from what the denoiser is trained with: these are errors that it has not been shown in this form.
How strong they are was set by the three example pairs of the original's denoiser tutorial, whose wrong maps have mean
Dice 0.23, 0.75 and 0.85: most kinds here leave 0.7 to 0.9 of a whole brain's groups, all of them together about half.
Everything works on arrays of small numbers (tissue groups, 0 = background) on a grid of cubic voxels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from synthseg.errors import LabelError

CORRUPTIONS = ("erased", "added", "moved", "eroded", "dilated", "half", "speckled", "all")


def corrupt(groups: np.ndarray, kind: str, spacing_mm: float, *, rng: torch.Generator) -> np.ndarray:
    """A wrong version of a map of groups.

    Args:
        groups: [X, Y, Z] integers, X grows to the right.
        kind: ``erased`` (six balls of 16 to 32 mm radius become background), ``added`` (six such balls of a random
            group about the brain's rim), ``moved`` (six balls of 20 to 32 mm put down 16 to 40 mm away), ``eroded`` and
            ``dilated`` (the whole foreground, by 4 mm; what is new takes the nearest group), ``half`` (one half of one
            hemisphere missing, front or back), ``speckled`` (a fifth of the foreground in patches of random groups,
            about 6 mm wide), ``all`` (all but eroded, dilated and half, one after the other).
        spacing_mm: voxel size.
    Returns: a new array of the same dtype.
    Raises: LabelError for another kind or an empty map.
    """
    if kind not in CORRUPTIONS:
        raise LabelError("corruption of a label map", found=repr(kind), fix=f"use one of {', '.join(CORRUPTIONS)}")
    if not groups.any():
        raise LabelError("label map to corrupt", found="nothing but background", fix="give one with a brain in it")
    result = groups.copy()
    for each in ("erased", "added", "moved", "speckled") if kind == "all" else (kind,):
        result = _KINDS[each](result, spacing_mm, rng)
    return result


def _erased(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:
    for centre in _places(groups > 0, 6, rng):
        groups[_ball(groups.shape, centre, _between(16, 32, rng) / spacing_mm)] = 0
    return groups


def _added(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    rim = (distance_transform_edt(groups == 0, sampling=spacing_mm) <= 10) & (groups == 0)
    present = np.unique(groups[groups > 0])
    for centre in _places(rim, 6, rng):
        ball = _ball(groups.shape, centre, _between(16, 32, rng) / spacing_mm)
        groups[ball] = present[int(torch.randint(len(present), (1,), generator=rng))]
    return groups


def _moved(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:
    for centre in _places(groups > 0, 6, rng):
        ball = np.argwhere(_ball(groups.shape, centre, _between(20, 32, rng) / spacing_mm))
        way = torch.randn(3, generator=rng, dtype=torch.float64).numpy()
        step = np.rint(way / np.linalg.norm(way) * _between(16, 40, rng) / spacing_mm).astype(int)
        target = ball + step
        inside = ((target >= 0) & (target < groups.shape)).all(axis=1)
        values = groups[tuple(ball.T)]
        groups[tuple(ball.T)] = 0
        groups[tuple(target[inside].T)] = values[inside]
    return groups


def _eroded(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:  # noqa: ARG001
    from scipy.ndimage import distance_transform_edt

    groups[distance_transform_edt(groups > 0, sampling=spacing_mm) <= 4] = 0
    return groups


def _dilated(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:  # noqa: ARG001
    from scipy.ndimage import distance_transform_edt

    away, nearest = distance_transform_edt(groups == 0, sampling=spacing_mm, return_indices=True)
    return np.where(away <= 4, groups[tuple(nearest)], groups)


def _half(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:  # noqa: ARG001
    side, end = torch.rand(2, generator=rng).numpy() < 0.5
    x, y = (round(float(used.mean())) for used in np.nonzero(groups)[:2])
    groups[slice(None, x) if side else slice(x, None), slice(None, y) if end else slice(y, None)] = 0
    return groups


def _speckled(groups: np.ndarray, spacing_mm: float, rng: torch.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    def smooth() -> np.ndarray:
        drawn = torch.randn(groups.shape, generator=rng).numpy()
        return np.asarray(gaussian_filter(drawn, 3 / spacing_mm))

    where, what = smooth(), smooth()
    inside = groups > 0
    wrong = inside & (where > np.quantile(where[inside], 0.8))
    choices = np.concatenate([[0], np.unique(groups[inside])])
    ranks = what[wrong].argsort().argsort()
    groups[wrong] = choices[ranks * len(choices) // max(len(ranks), 1)]
    return groups


def _places(mask: np.ndarray, count: int, rng: torch.Generator) -> np.ndarray:
    voxels = np.argwhere(mask)
    return voxels[torch.randint(len(voxels), (count,), generator=rng).numpy()]


def _ball(shape: tuple[int, ...], centre: np.ndarray, radius_vox: float) -> np.ndarray:
    offsets = np.ogrid[tuple(slice(n) for n in shape)]
    squared = sum((axis - c) ** 2 for axis, c in zip(offsets, centre, strict=True))
    return np.asarray(squared <= radius_vox**2)


def _between(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=rng))


_KINDS: dict[str, Callable[[np.ndarray, float, torch.Generator], np.ndarray]] = {
    "erased": _erased,
    "added": _added,
    "moved": _moved,
    "eroded": _eroded,
    "dilated": _dilated,
    "half": _half,
    "speckled": _speckled,
}
assert set(CORRUPTIONS) == {*_KINDS, "all"}
