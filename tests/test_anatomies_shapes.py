"""Shapes that no map shows: deformations and edits of label maps that follow the labels."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as pieces_of
from scipy.ndimage import map_coordinates

from shapes_helpers import ADULT, FETA, fetal_brain, sided, volumes
from synthseg.anatomies.shapes import KINDS, ShapeSpec, edit, spec_with, vary
from synthseg.anatomies.shapes.callosum import distance_from_midline, find_callosum
from synthseg.anatomies.shapes.field import CoarseGrid, LabelReader, composed, largest_slope, smooth_noise
from synthseg.anatomies.shapes.growth import grow
from synthseg.anatomies.shapes.roles import ROLES, ShapeRoles
from synthseg.anatomies.shapes.solver import velocity_of
from synthseg.errors import ConfigError, LabelError, UsageError
from synthseg.labels import builtin_protocols, load_protocol

SPACING = (1.6, 1.6, 1.6)
STRUCTURE = {
    "ventricles": (4,),
    "cerebellum": (5,),
    "cortex": (2,),
    "atrophy": (2, 3),
    "external-csf": tuple(range(1, 8)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def changed(kind: str, severity: float) -> np.ndarray:
    return edit(fetal_brain(), SPACING, FETA, kind, severity, seeded())[0]


@pytest.mark.parametrize("name", builtin_protocols())
def test_every_value_of_a_protocol_plays_exactly_one_role(name: str) -> None:
    protocol = load_protocol(name)
    roles = ShapeRoles.of(protocol)
    played = [value for role in ROLES for value in roles.values[role]]
    assert sorted(played) == sorted(value for value in protocol.values.tolist() if value)


def test_roles_of_the_adult_protocol_are_what_its_labels_say() -> None:
    values = ShapeRoles.of(ADULT).values
    assert set(values["ventricle"]) >= {4, 5, 14, 43, 44, 136, 163}
    assert values["fourth"] == (15,)
    assert set(values["outside"]) >= {502, 506, 507, 511, 515}
    assert set(values["cortex"]) == {3, 42}
    assert set(values["cerebellum"]) == {7, 8, 46, 47}
    assert {85, 30, 28, 17} <= set(values["nuclei"])


@pytest.mark.parametrize(
    ("kind", "severities"),
    [
        ("ventricles", (0.5, 1.6, 4.0)),
        ("cerebellum", (0.4, 0.7, 2.0)),
        ("cortex", (0.7, 1.25)),
        ("atrophy", (0.8, 0.9)),
        ("external-csf", (0.8, 1.3)),
    ],
)
def test_the_measured_volume_is_the_severity_times_the_volume_before(kind: str, severities: tuple[float, ...]) -> None:
    before = np.isin(fetal_brain(), STRUCTURE[kind]).sum()
    for severity in severities:
        ratio = np.isin(changed(kind, severity), STRUCTURE[kind]).sum() / before
        assert ratio == pytest.approx(severity, rel=0.07)


@pytest.mark.parametrize("severity", [0.5, 4.0])
def test_tissue_that_does_not_yield_keeps_its_volume_and_the_outline_stays_near(severity: float) -> None:
    before, after = volumes(fetal_brain()), volumes(changed("ventricles", severity))
    for value in (5, 6, 7):  # cerebellum, deep grey matter, brainstem: moved, and at most squeezed by the grid's cells
        assert after[value] == pytest.approx(before[value], rel=0.15)
    inside = fetal_brain() != 0
    near = np.abs(distance_outside(inside)) > 17.0
    np.testing.assert_array_equal(changed("ventricles", severity)[near], fetal_brain()[near])


def distance_outside(inside: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~inside, sampling=SPACING))


@settings(max_examples=4)
@given(seed=st.integers(0, 2**31 - 1))
def test_versions_lose_no_label_and_leave_no_specks(seed: int) -> None:
    before = fetal_brain()
    kept = before.copy()
    after, draw = vary(before, SPACING, FETA, ShapeSpec(most=2), seeded(seed))
    np.testing.assert_array_equal(before, kept)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert draw.edits
    assert set(np.unique(before)) == set(np.unique(after))
    assert (after != before).any()
    for value in np.unique(after):
        pieces, count = pieces_of(after == value, structure=np.ones((3, 3, 3)))
        assert count == 1 or np.bincount(pieces.ravel())[1:].min() * 1.6**3 >= 5
    again, same = vary(before, SPACING, FETA, ShapeSpec(most=2), seeded(seed))
    np.testing.assert_array_equal(after, again)
    assert draw == same


def test_a_growth_never_folds_space() -> None:
    roles = ShapeRoles.of(FETA)
    grown = grow(fetal_brain(), SPACING, roles, KINDS["ventricles"].growth, 3.0, rng=seeded())
    slopes = [np.gradient(part, *grown.grid.spacing_mm) for part in grown.displacement_mm]
    jacobian = np.array(slopes).transpose(2, 3, 4, 0, 1) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0


def test_the_flow_gains_exactly_what_its_source_says_and_never_leaves_its_domain() -> None:
    domain = np.zeros((14, 15, 16))
    domain[2:12, 3:13, 2:14] = 1
    source = np.zeros(domain.shape)
    source[5:8, 6:9, 5:8] = 1.0
    source[2:12, 3:13, 11:14] = -27 / 300
    velocity = velocity_of(source, domain, np.array([1.0, 1.5, 2.0]), tolerance=1e-6)
    assert (velocity[:, domain == 0] == 0).all()
    # A closed surface around the source: what crosses it (means of neighbouring cells) is what the source makes.
    low, high = 4, 9
    out = 0.0
    for axis, step in enumerate((1.0, 1.5, 2.0)):
        area = 3.0 / step
        box = [slice(low, high)] * 3
        box[1] = slice(5, 10)
        for side, at in ((1, box[axis].stop - 1), (-1, box[axis].start)):
            face = list(box)
            face[axis] = at
            next_face = list(box)
            next_face[axis] = at + side
            out += side * area * float((velocity[axis][tuple(face)] + velocity[axis][tuple(next_face)]).sum()) / 2
    assert out == pytest.approx(27 * 3.0, rel=0.05)


def test_reading_at_whole_voxels_is_exact_and_between_them_the_larger_share_wins() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (6, 7, 8))
    reader = LabelReader(labels)
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in labels.shape], indexing="ij")
    np.testing.assert_array_equal(reader.at(grid), labels)
    places = [axis + np.float32(shift) for axis, shift in zip(grid, (0.3, -0.2, 0.45), strict=True)]
    shares = np.stack([map_coordinates((labels == v).astype(float), places, order=1, mode="nearest") for v in range(5)])
    found = reader.at(places)
    best = shares.max(axis=0)
    assert (np.take_along_axis(shares, found[None], axis=0)[0] >= best - 2e-4).all()


def test_coarse_cells_are_means_and_refining_keeps_straight_lines() -> None:
    grid = CoarseGrid((9, 8, 7), (0.8, 0.8, 1.6), 1.6)
    assert grid.factor == (2, 2, 1)
    line = np.arange(9.0)[:, None, None] * np.ones((9, 8, 7))
    fine = grid.refine(np.arange(5.0)[:, None, None] * 2 + 0.5 + np.zeros(grid.shape))
    np.testing.assert_allclose(fine[1:8], line[1:8], atol=1e-5)
    np.testing.assert_allclose(grid.means(line)[:4], 0.5 + 2 * np.arange(4.0)[:, None, None] * np.ones((4, 4, 7)))


def test_composing_a_shift_adds_up_and_slopes_are_measured() -> None:
    step = np.full((3, 6, 6, 6), 0.5, dtype=np.float32)
    np.testing.assert_allclose(composed(composed(0 * step, step, np.ones(3)), step, np.ones(3)), -1.0)
    ramp = np.zeros((3, 6, 6, 6), dtype=np.float32)
    ramp[0] = 0.3 * np.arange(6)[:, None, None]
    assert largest_slope(ramp, np.array([2.0, 1.0, 1.0])) == pytest.approx(0.15)


def test_the_midline_of_a_tilted_head_is_found() -> None:
    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in (40, 44, 36)], indexing="ij")
    tilt = np.deg2rad(8)
    across = np.cos(tilt) * (axes[0] - 3) - np.sin(tilt) * axes[1]
    along = np.sin(tilt) * (axes[0] - 3) + np.cos(tilt) * axes[1]
    brain = (across / 12) ** 2 + (along / 17) ** 2 + (axes[2] / 13) ** 2 < 1
    error = distance_from_midline(brain, (1.0, 1.0, 1.0)) - across
    assert np.abs(error[brain]).max() < 1.5


def test_the_callosum_is_the_bridge_above_the_ventricles() -> None:
    labels = fetal_brain()
    found = find_callosum(labels, SPACING, ShapeRoles.of(FETA))
    x, _, z = (at - n / 2 for at, n in zip(np.nonzero(found), labels.shape, strict=True))
    assert found.any()
    assert (labels[found] == 3).all()
    assert (np.abs(x) <= 4).all()
    assert (z >= 0).all()


@pytest.mark.parametrize("severity", [0.0, 0.3, 0.7])
def test_a_share_of_the_callosum_is_left_and_the_rest_is_fluid(severity: float) -> None:
    labels = fetal_brain()
    bridge = find_callosum(labels, SPACING, ShapeRoles.of(FETA))
    after, made = edit(labels, SPACING, FETA, "callosum", severity, seeded())
    assert made.reached == pytest.approx(severity, abs=0.1)
    assert np.isin(after[bridge & (after != 3)], (1, 4)).all()
    np.testing.assert_array_equal(after[~bridge & (labels != 3)], labels[~bridge & (labels != 3)])


def test_a_callosum_with_a_label_of_its_own_is_taken_as_it_is() -> None:
    labels = fetal_brain()
    bridge = find_callosum(labels, SPACING, ShapeRoles.of(FETA))
    row = dataclasses.replace(FETA.by_value(3), value=8, partner=8, name="corpus callosum", generation_class=8)
    named = dataclasses.replace(FETA, labels=(*FETA.labels, row))
    marked = np.where(bridge, 8, labels)
    np.testing.assert_array_equal(find_callosum(marked, SPACING, ShapeRoles.of(named)), bridge)
    assert 8 not in edit(marked, SPACING, named, "callosum", 0.0, seeded())[0]


def test_the_head_is_scaled_as_a_whole_and_stays_within_the_map() -> None:
    labels = fetal_brain()
    before, after = volumes(labels), volumes(edit(labels, SPACING, FETA, "size", 0.7, seeded())[0])
    for value in range(1, 8):
        assert after[value] == pytest.approx(0.7 * before[value], rel=0.2)  # of 200 voxels and more
    with pytest.raises(ConfigError, match="severity of size"):
        edit(labels, SPACING, FETA, "size", 3.0, seeded())
    _, draw = vary(labels, SPACING, FETA, ShapeSpec(**only("size", (3.0, 3.0))), seeded())
    assert draw.edits[0].reached < 3


def test_sided_labels_stay_on_their_sides() -> None:
    labels = sided(fetal_brain())
    for place, value in (((17, 27, 35), 30), ((30, 27, 35), 62), ((18, 35, 33), 26), ((29, 36, 33), 58)):
        labels[place] = value  # single voxels, which a deformation can lose between the voxels
    after, _ = edit(labels, SPACING, ADULT, "ventricles", 2.0, seeded())
    assert set(np.unique(after)) == set(np.unique(labels))
    middle = labels.shape[0] / 2
    for left in (4, 2, 3):
        right = ADULT.by_value(left).partner
        assert (np.nonzero(after == left)[0] < middle + 4).all()
        assert (np.nonzero(after == right)[0] > middle - 5).all()
    assert np.isin(after, (4, 43)).sum() / np.isin(labels, (4, 43)).sum() == pytest.approx(2, rel=0.07)


def test_a_map_much_smaller_than_the_unevenness_is_changed_like_any_other() -> None:
    labels = np.full((8, 8, 8), 3, dtype=np.int32)
    labels[3:5, 3:5, 3:5] = 4
    for seed in range(4):
        after, made = edit(labels, SPACING, FETA, "ventricles", 1.5, seeded(seed))
        assert np.count_nonzero(after == 4) == 12
        assert made.reached == 1.5


@pytest.mark.parametrize("shape", [(1, 20, 20), (4, 5, 6), (30, 40, 35)])
def test_smooth_noise_is_centred_and_of_unit_spread_or_none_at_all(shape: tuple[int, int, int]) -> None:
    noise = smooth_noise(shape, np.array([6.0, 6.0, 6.0]), seeded())
    assert noise.shape == shape
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    np.testing.assert_array_equal(smooth_noise((1, 1, 1), np.ones(3), seeded()), 0)


@pytest.mark.parametrize("at", [slice(24, 25), slice(23, 26)])
def test_a_slab_that_fills_its_map_stays_one_when_it_is_scaled(at: slice) -> None:
    slab = fetal_brain()[at]
    after, made = edit(slab, SPACING, FETA, "size", 0.8, seeded())
    assert after.any(axis=(1, 2)).all()  # the outermost slices reach half a voxel beyond their centres
    assert made.reached == pytest.approx(0.8 ** (2 / 3), rel=0.05)


def test_what_a_map_cannot_reach_is_told_as_it_is() -> None:
    voxel = np.zeros((24, 24, 24), dtype=np.int32)
    voxel[12, 12, 12] = 4
    with pytest.raises(ConfigError, match=r"found 1\.5\. Fix: leave .*too coarse.*2\.00"):
        edit(voxel, SPACING, FETA, "ventricles", 1.5, seeded())
    with pytest.raises(ConfigError, match="nothing in it gives way"):
        edit(np.full((8, 8, 8), 4), SPACING, FETA, "external-csf", 1.2, seeded())


def test_bad_input_is_refused_with_what_to_do() -> None:
    labels = fetal_brain()
    with pytest.raises(UsageError, match=r"'ventricle'.*ventricles, cerebellum"):
        edit(labels, SPACING, FETA, "ventricle", 2.0, seeded())
    with pytest.raises(ConfigError, match=r"severity of ventricles: found 40\..*0\.2 to 6"):
        edit(labels, SPACING, FETA, "ventricles", 40.0, seeded())
    with pytest.raises(ConfigError, match=r"external-csf: found 0\.5\..*nearer to 1: 0\.6\d is what the other tissues"):
        edit(labels, SPACING, FETA, "external-csf", 0.5, seeded())
    with pytest.raises(LabelError, match="9"):
        edit(np.where(labels == 2, 9, labels), SPACING, FETA, "cortex", 0.8, seeded())
    with pytest.raises(LabelError, match="without any brain"):
        vary(0 * labels, SPACING, FETA, ShapeSpec(), seeded())
    with pytest.raises(LabelError, match="without ventricles"):
        edit(np.where(labels == 4, 3, labels), SPACING, FETA, "ventricles", 2.0, seeded())
    with pytest.raises(ConfigError, match=r"ventricles: found \(0\.0, 2\.0\)"):
        ShapeSpec(ventricles=(0.0, 2.0))
    with pytest.raises(ConfigError, match="for every kind"):
        spec_with((), ShapeSpec())


def only(kind: str, given: tuple[float, float]) -> dict[str, tuple[float, float]]:
    keys = [name.replace("-", "_") for name in KINDS]
    return dict.fromkeys(keys, (1.0, 1.0)) | {kind: given}
