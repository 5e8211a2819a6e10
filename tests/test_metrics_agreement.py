"""Our metrics against two packages that share no code with them: SimpleITK (C++) and MONAI (torch).

Where definitions coincide, so must the numbers; where they differ, the test says how (docs/evaluate.md lists it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import gaussian_filter

from synthseg.metrics import dice, separation, surface_dice, surface_distances, volume_similarity

itk: Any = pytest.importorskip("SimpleITK")
monai: Any = pytest.importorskip("monai.metrics")

# MONAI warns of what it calls itself, and of empty masks.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore:the .* is all 0")]
SINGLE = 2e-6  # relative: both packages give distances in single precision
SPACINGS = [(1.0, 1.0, 1.0), (0.5, 1.25, 3.0), (4.0, 0.75, 1.0)]  # exact in binary: no rounding decides a tolerance
SHAPE = (6, 5, 7)


def blobs(seed: int, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random shape and a disturbed copy of it; both touch the border of the volume."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((side, side + 3, side - 2)), 3)
    other = noise + 0.5 * gaussian_filter(rng.standard_normal(noise.shape), 2)
    return noise > 0.01, other > 0.01


def image(mask: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """A SimpleITK image with a margin of background: ITK sees no surface on the border of an image."""
    made = itk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).T)
    made.SetSpacing(spacing)
    made.SetDirection(np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]).ravel())  # oblique: must not matter
    return made


def contour(mask: np.ndarray, spacing: tuple[float, ...]) -> Any:
    return itk.LabelContour(image(mask, spacing), fullyConnected=False)


def itk_directed(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distances from each surface voxel of ``a`` to the surface of ``b``."""
    there = itk.SignedMaurerDistanceMap(contour(b, spacing), squaredDistance=False, useImageSpacing=True)
    on_surface = itk.GetArrayFromImage(contour(a, spacing)).astype(bool)
    return np.maximum(itk.GetArrayFromImage(there)[on_surface].astype(np.float64), 0)


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


def of_monai(metric: str, a: np.ndarray, b: np.ndarray, **options: Any) -> float:
    return float(getattr(monai, f"compute_{metric}")(batch(a), batch(b), include_background=True, **options))


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_that_of_simpleitk_and_monai(seed: int) -> None:
    a, b = blobs(seed)
    ours, similarity = (float(f(a, b, [1])[0]) for f in (dice, volume_similarity))
    measures = itk.LabelOverlapMeasuresImageFilter()
    measures.Execute(image(a, (1, 1, 1)), image(b, (1, 1, 1)))
    assert ours == pytest.approx(measures.GetDiceCoefficient(), rel=1e-12)
    assert ours == pytest.approx(of_monai("dice", a, b), rel=SINGLE)
    assert similarity == pytest.approx(1 - abs(measures.GetVolumeSimilarity()) / 2, rel=1e-12)  # there: signed, -2..2


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_are_those_of_simpleitk(seed: int, spacing: tuple[float, ...]) -> None:
    a, b = blobs(seed)
    ours = surface_distances(a, b, spacing)
    whole = itk.HausdorffDistanceImageFilter()
    whole.Execute(contour(a, spacing), contour(b, spacing))  # of contours: of masks it would measure their insides too
    assert ours.hausdorff == pytest.approx(whole.GetHausdorffDistance(), rel=SINGLE)
    assert ours.mean == pytest.approx(whole.GetAverageHausdorffDistance(), rel=SINGLE)
    pooled = np.concatenate([itk_directed(a, b, spacing), itk_directed(b, a, spacing)])
    assert ours.p95 == pytest.approx(np.percentile(pooled, 95), rel=SINGLE)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_are_those_of_monai(seed: int, spacing: tuple[float, ...]) -> None:
    a, b = blobs(seed)
    ours, apart = surface_distances(a, b, spacing), separation(a, b, spacing)
    assert ours.hausdorff == pytest.approx(of_monai("hausdorff_distance", a, b, spacing=spacing), rel=SINGLE)
    forth, back = (of_monai("average_surface_distance", *pair, spacing=spacing) for pair in ((a, b), (b, a)))
    assert ours.mean == pytest.approx((forth + back) / 2, rel=SINGLE)
    # MONAI's symmetric mean is over all surface voxels: the larger surface counts for more.
    n, m = len(apart.forth), len(apart.back)
    pooled = of_monai("average_surface_distance", a, b, spacing=spacing, symmetric=True)
    assert (n * forth + m * back) / (n + m) == pytest.approx(pooled, rel=SINGLE)
    # MONAI's 95th percentile is the larger of the two directions'; the pooled one lies between them.
    one_way = [
        of_monai("hausdorff_distance", *pair, spacing=spacing, percentile=95, directed=True)
        for pair in ((a, b), (b, a))
    ]
    assert np.percentile(apart.forth, 95) == pytest.approx(one_way[0], rel=SINGLE)
    assert np.percentile(apart.back, 95) == pytest.approx(one_way[1], rel=SINGLE)
    assert min(one_way) * (1 - SINGLE) <= ours.p95 <= max(one_way) * (1 + SINGLE)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 2.5])
def test_surface_dice_is_that_of_monai(tolerance: float, spacing: tuple[float, ...]) -> None:
    a, b = blobs(3)
    theirs = of_monai("surface_dice", a, b, class_thresholds=[tolerance], spacing=spacing)
    assert surface_dice(a, b, spacing, tolerance) == pytest.approx(theirs, rel=SINGLE)


def by_area(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """MONAI's subvoxel surfaces are DeepMind's: pieces of surface between voxels, weighed with their areas."""
    return of_monai("surface_dice", a, b, class_thresholds=[tolerance], spacing=(1, 1, 1), use_subvoxels=True)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0])
def test_surface_dice_weighed_by_area_is_another_number_on_ragged_shapes(tolerance: float) -> None:
    a, b = blobs(4, side=40)
    assert 0.02 < by_area(a, b, tolerance) - surface_dice(a, b, (1, 1, 1), tolerance) < 0.1


@pytest.mark.parametrize(("shift", "tolerance", "all_near"), [(1, 1.0, True), (2, 2.0, True), (2, 1.9, False)])
def test_surface_dice_weighed_by_area_is_1_where_ours_is(shift: int, tolerance: float, all_near: bool) -> None:
    box = np.zeros((24, 20, 22), bool)
    box[4:14, 5:15, 6:16] = True
    moved = np.roll(box, shift, 0)
    assert (surface_dice(box, moved, (1, 1, 1), tolerance) == 1) is all_near
    assert (by_area(box, moved, tolerance) == 1) is all_near


@settings(max_examples=25)
@given(
    a=arrays.arrays(bool, SHAPE),
    b=arrays.arrays(bool, SHAPE),
    spacing=st.sampled_from(SPACINGS),
    place=st.integers(0, 5),
)
def test_ragged_masks_agree_with_both_packages(
    a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], place: int
) -> None:
    # Single voxels, holes, pieces at the border: what smooth shapes do not show.
    a[place, 0, 0] = b[0, 4, place] = True
    ours = surface_distances(a, b, spacing)
    pooled = np.concatenate([itk_directed(a, b, spacing), itk_directed(b, a, spacing)])
    assert ours.p95 == pytest.approx(np.percentile(pooled, 95), rel=SINGLE)
    assert ours.hausdorff == pytest.approx(pooled.max(), rel=SINGLE)
    assert ours.hausdorff == pytest.approx(of_monai("hausdorff_distance", a, b, spacing=spacing), rel=SINGLE)
    theirs = of_monai("surface_dice", a, b, class_thresholds=[1.25], spacing=spacing)
    assert surface_dice(a, b, spacing, 1.25) == pytest.approx(theirs, rel=SINGLE)


def test_what_is_absent_is_told_in_other_words_by_others() -> None:
    a, empty = blobs(0)[0], np.zeros_like(blobs(0)[0])
    assert surface_dice(a, empty, (1, 1, 1), 1) == of_monai("surface_dice", a, empty, class_thresholds=[1.0]) == 0
    assert np.isnan(of_monai("surface_dice", empty, empty, class_thresholds=[1.0]))
    assert of_monai("hausdorff_distance", a, empty) == np.inf == surface_distances(a, empty, (1, 1, 1)).hausdorff
    assert np.isnan(surface_distances(empty, empty, (1, 1, 1)).hausdorff)
    with pytest.raises(RuntimeError):  # SimpleITK has no answer
        itk.HausdorffDistanceImageFilter().Execute(image(empty, (1, 1, 1)), image(empty, (1, 1, 1)))
