"""Surroundings by geometry: what changes, what must not, and how far shells reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from fetal_helpers import fetal_head
from synthseg.anatomies.ribbon import with_ribbon
from synthseg.anatomies.smooth import depth_in_hull, distance_to, smooth_between, smooth_field
from synthseg.anatomies.surroundings import KINDS, SurroundingsSpec, surround, with_margin
from synthseg.errors import ConfigError, LabelError, ShapeError

SPACING = (2.0, 2.0, 2.0)
SPEC = SurroundingsSpec(margin_mm=20.0, closing_mm=8.0)
HEAD = fetal_head()


def in_place(found: np.ndarray, start: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The part of a new map that covers the given one; background where the new one does not reach."""
    whole = np.zeros(shape, dtype=int)
    low = [max(s, 0) for s in start]
    high = [min(s + n, m) for s, n, m in zip(start, found.shape, shape, strict=True)]
    inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    whole[inner] = found[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
    return whole


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), fluid=st.booleans())
def test_labelled_voxels_keep_their_labels_whatever_is_drawn(seed: int, kind: Any, fluid: bool) -> None:
    found = surround(HEAD, SPACING, SPEC, np.random.default_rng(seed), kind=kind, fluid=fluid, cortex=False)
    back = in_place(found.labels, found.start, HEAD.shape)
    assert np.array_equal(back[HEAD > 0], HEAD[HEAD > 0])
    assert set(np.unique(found.labels)) <= {*range(8), 10, 11, 12, 13}
    assert (found.kind, found.fluid) == (kind, fluid)
    for value in (2, 3, 4, 5, 6, 7):  # tissue is neither lost nor made
        assert (found.labels == value).sum() == (value == HEAD).sum()
    if not fluid:
        assert (found.labels == 1).sum() == (HEAD == 1).sum()
    if kind == "none":
        assert found.labels.max() <= 7


def test_the_same_generator_state_gives_the_same_map_and_another_one_another() -> None:
    one, again, other = (surround(HEAD, SPACING, SPEC, np.random.default_rng(seed), kind="womb") for seed in (1, 1, 2))
    assert np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.labels, other.labels)


def test_a_womb_fills_the_field_of_view_and_versions_differ_in_what_touches_the_head() -> None:
    touching = set()
    for seed in range(8):
        found = surround(
            HEAD, SPACING, SPEC, np.random.default_rng(seed), kind="womb", fluid=False, cortex=False
        ).labels
        assert (found[0] >= 10).mean() + (found[-1] >= 10).mean() > 0.5
        near = (distance_transform_edt(~np.isin(found, range(1, 8))) <= 1) & (found >= 10)
        touching.add(np.bincount(found[near]).argmax())
    assert len(touching) > 1


@pytest.mark.parametrize("reach", [4.0, 12.0])
def test_a_halo_ends_where_its_spec_says(reach: float) -> None:
    spec = SurroundingsSpec(margin_mm=24.0, closing_mm=8.0, halo_mm=(reach, reach), skull_mm=(1.0, 1.0))
    found = surround(HEAD, SPACING, spec, np.random.default_rng(0), kind="halo", fluid=False, cortex=False).labels
    distance = distance_transform_edt(~((found > 0) & (found < 8)), sampling=SPACING)
    assert (found[distance > reach] == 0).all()
    assert (found[(distance > 0) & (distance < reach)] > 0).mean() > 0.3  # regions of air are among them


def test_a_box_shows_everything_within_its_sides_only() -> None:
    spec = SurroundingsSpec(margin_mm=24.0, closing_mm=8.0, halo_mm=(6.0, 6.0))
    found = surround(HEAD, SPACING, spec, np.random.default_rng(0), kind="box", fluid=False, cortex=False).labels
    head = np.argwhere((found > 0) & (found < 8))
    outside = np.ones(found.shape, dtype=bool)
    outside[tuple(slice(a - 3, b + 4) for a, b in zip(head.min(0), head.max(0), strict=True))] = False
    assert (found[outside] == 0).all()
    assert (found[~outside] > 0).mean() > 0.7


def test_more_fluid_closes_sulci_and_a_wider_rim_holds_a_narrower_one() -> None:
    bare = fetal_head(fluid=False)
    bare[14:16, :, 16:] = 0  # a fissure
    rims = {}
    for rim in (-4.0, 0.0, 4.0):
        spec = SurroundingsSpec(margin_mm=20.0, closing_mm=8.0, fluid_mm=(rim, rim))
        rims[rim] = surround(bare, SPACING, spec, np.random.default_rng(0), kind="none", fluid=True, cortex=False)
    fluid = {rim: found.labels == 1 for rim, found in rims.items()}
    assert (fluid[-4.0] <= fluid[0.0]).all()
    assert (fluid[0.0] <= fluid[4.0]).all()
    assert fluid[-4.0].sum() < fluid[0.0].sum() < fluid[4.0].sum()
    start = rims[0.0].start
    assert in_place(fluid[0.0], start, bare.shape)[14:16, 15:19, 18:20].all()  # the fissure's depth
    brain = np.isin(rims[4.0].labels, (2, 3, 4, 5, 6, 7))
    assert distance_transform_edt(~brain, sampling=SPACING)[fluid[4.0]].max() <= 8.0 + 4.0


def test_anisotropic_voxels_get_shells_in_millimetres() -> None:
    flat = HEAD[:, :, ::2]
    spec = SurroundingsSpec(margin_mm=24.0, closing_mm=8.0, halo_mm=(8.0, 8.0), skull_mm=(9.0, 9.0))
    found = surround(
        flat, (2.0, 2.0, 4.0), spec, np.random.default_rng(0), kind="halo", fluid=False, cortex=False
    ).labels
    distance = distance_transform_edt(~((found > 0) & (found < 8)), sampling=(2.0, 2.0, 4.0))
    assert np.array_equal((found >= 10), (distance > 0) & (distance <= 8.0))


def test_margins_reach_beyond_the_map_and_cut_what_is_far() -> None:
    labels = np.zeros((20, 9, 9), dtype=np.int32)
    labels[10, 0, 4] = 3
    data, start = with_margin(labels, (1.0, 1.0, 2.0), 4.0)
    assert data.shape == (9, 9, 5)
    assert start == (6, -4, 2)
    assert data[4, 4, 2] == 3
    assert data.sum() == 3


# The cortex


def slab(thickness: int) -> np.ndarray:
    """[30, 12, 12]: fluid, then a cortex of so many voxels, white matter, a ventricle, white matter, cortex, fluid."""
    labels = np.full((30, 12, 12), 3, dtype=np.int32)
    for side in (labels, labels[::-1]):
        side[:3] = 1
        side[3 : 3 + thickness] = 2
    labels[13:17] = 4
    return labels


@pytest.mark.parametrize(("wanted", "voxels"), [(0.5, 1), (1.0, 1), (2.2, 2), (3.0, 3), (4.9, 4)])
def test_a_thin_cortex_grows_inwards_to_the_wanted_thickness(wanted: float, voxels: int) -> None:
    found = with_ribbon(slab(1), (1.0, 1.0, 1.0), wanted, reach_mm=5.0)
    assert np.array_equal(found, slab(voxels))


def test_a_thick_cortex_and_what_is_far_from_any_stay() -> None:
    assert np.array_equal(with_ribbon(slab(4), (1.0, 1.0, 1.0), 3.0), slab(4))
    bare = np.where(slab(1) == 2, 3, slab(1))
    assert np.array_equal(with_ribbon(bare, (1.0, 1.0, 1.0), 3.0), bare)
    with_gap = slab(1)
    with_gap[3, 6, 6] = 3
    assert np.array_equal(with_ribbon(with_gap, (1.0, 1.0, 1.0), 2.0), slab(2))  # small gaps close


def test_white_matter_next_to_ventricles_is_guarded() -> None:
    found = with_ribbon(slab(1), (1.0, 1.0, 1.0), 20.0, reach_mm=50.0, guard_mm=3.0)
    assert (found[10:13] == 3).all()  # up to 3 mm from the ventricle's outermost centre
    assert (found[3:10] == 2).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_a_thicker_cortex_takes_white_matter_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = surround(HEAD, SPACING, SPEC, rng, kind="womb", fluid=False, cortex=True)
    back = in_place(found.labels, found.start, HEAD.shape)
    changed = (back != HEAD) & (HEAD > 0)
    assert set(HEAD[changed].tolist()) <= {3}
    assert set(back[changed].tolist()) <= {2}


# The fields


def test_smooth_fields_are_standardised_smooth_and_of_their_nodes_scale() -> None:
    rough, smooth = (smooth_field((40, 40, 40), (1, 1, 1), node, np.random.default_rng(0)) for node in (4.0, 16.0))
    for field in (rough, smooth):
        assert field.mean() == pytest.approx(0, abs=1e-4)
        assert field.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.5 * np.abs(np.diff(rough, axis=0)).mean()
    second = np.abs(np.diff(smooth, 2, axis=0)).mean((1, 2))  # linear between nodes: bends at nodes only
    assert (second > 1e-4).sum() <= 40 / 16 * 2 + 1
    coarse = smooth_field((20, 20, 20), (2, 2, 2), 16.0, np.random.default_rng(0))  # the same, in mm
    assert np.corrcoef(coarse.ravel(), smooth[::2, ::2, ::2].ravel())[0, 1] > 0.999


def test_smooth_thicknesses_lie_between_their_bounds_and_spread() -> None:
    values = smooth_between(2.0, 5.0, (60, 60, 60), (1, 1, 1), 6.0, np.random.default_rng(0))
    assert values.min() > 2
    assert values.max() < 5
    share = np.histogram(values, bins=3, range=(2, 5))[0] / values.size
    assert (np.abs(share - 1 / 3) < 0.06).all()


def test_depth_in_the_hull_is_the_closing_by_distance() -> None:
    mask = np.zeros((40, 40, 40), dtype=bool)
    mask[12:28, 12:28, 12:28] = True
    mask[19:21, :, 20:] = False  # a fissure two voxels wide
    depth = depth_in_hull(mask, (1, 1, 1), 6.0)
    grown = distance_transform_edt(~mask) <= 6.0
    assert np.array_equal(depth, distance_transform_edt(grown).astype(np.float32))
    assert (depth[mask] >= 6.0).all()
    assert (depth[19:21, 14:26, 20:24] >= 6.0).all()
    assert np.isinf(distance_to(np.zeros((3, 3, 3), dtype=bool), (1, 1, 1))).all()


# Refusals


def test_maps_without_a_brain_or_with_other_values_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(LabelError, match="no brain"):
        surround(np.where(HEAD == 1, 1, 0), SPACING, SPEC, rng)
    with pytest.raises(LabelError, match=r"\[10\]"):
        surround(np.where(HEAD == 0, 10, HEAD), SPACING, SPEC, rng)
    with pytest.raises(ShapeError, match="sizes"):
        surround(HEAD, (1.0, 1.0), SPEC, rng)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kinds", ()),
        ("kinds", ("womb", "sea")),
        ("fluid_probability", 1.5),
        ("halo_mm", (3.0, 1.0)),
        ("fluid_mm", (-11.0, 1.0)),
        ("margin_mm", 12.0),
        ("node_mm", 0.0),
    ],
)
def test_specs_out_of_range_name_the_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        SurroundingsSpec(**{key: value})  # type: ignore[arg-type]
