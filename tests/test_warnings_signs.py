"""The numbers that warnings are read of: against closed forms, scipy's rotations, phantoms whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from inference_helpers import band_model, phantom, phantom_affine
from synthseg.inference import Segmenter
from synthseg.inference.configuration import CENTRES, LEAST_STRUCTURES, fit_centres
from synthseg.inference.passes import Stopwatch, run_networks
from synthseg.inference.scan_checks import evidence_of
from synthseg.inference.scan_findings import Evidence
from synthseg.inference.signs import content_window, flatness, image_signs, roughness
from synthseg.inference.want import Want
from synthseg.volumes import Volume
from warnings_helpers import prepared_of

seeds = st.integers(0, 2**32 - 1)
Centres = dict[int, tuple[float, float, float]]


def placed(points: np.ndarray) -> Centres:
    return {value: (float(x), float(y), float(z)) for value, (x, y, z) in zip(CENTRES, points, strict=True)}


@given(seed=seeds, scale=st.floats(0.1, 1e4), offset=st.floats(-1e3, 1e3))
def test_white_noise_is_as_rough_as_can_be_whatever_its_scale(seed: int, scale: float, offset: float) -> None:
    noise = np.random.default_rng(seed).normal(size=(24, 24, 24))
    assert roughness(offset + scale * noise) == pytest.approx(1, abs=0.06)  # 3 sd of 13,824 voxels' mean


def test_the_roughness_of_a_ramp_is_that_of_its_closed_form() -> None:
    n = 20
    ramp = np.broadcast_to(np.arange(n, dtype=float)[:, None, None], (n, n, n))
    assert roughness(ramp) == 0  # along the other axes nothing changes
    cosines = np.cos(2 * np.pi * np.arange(n) / n)
    waves = cosines[:, None, None] * cosines[None, :, None] * cosines[None, None, :]
    padded = np.pad(waves, ((0, 1), (0, 1), (0, 1)), mode="wrap")[:, :n, :n]  # whole periods of neighbours along x
    step = np.mean(np.square(np.diff(padded, axis=0))) / (2 * waves.var())
    assert step == pytest.approx(1 - np.cos(2 * np.pi / n))
    assert roughness(waves) < 0.06
    assert roughness(np.full((5, 5, 5), 7.0)) == 0


@given(seed=seeds)
def test_scans_are_not_flat_and_label_maps_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert flatness(rng.normal(size=(9, 10, 11)), 0.0) == 0
    blocks = np.kron(rng.permutation(27).reshape(3, 3, 3) + 1, np.ones((4, 4, 4)))
    # of 12 voxels in a row 9 of 11 pairs of neighbours lie within a block
    assert flatness(blocks, 0.0) == pytest.approx(9 / 11)


def test_neighbours_of_the_background_value_do_not_count() -> None:
    data = np.zeros((20, 20, 20))
    assert flatness(data, 0.0) == 0
    data[4, 4, 4] = 1
    assert flatness(data, 0.0) == 0
    data[5, 4, 4] = 1  # 1 equal pair of 1 + 10 around two voxels
    assert flatness(data, 0.0) == pytest.approx(1 / 11)


@given(
    pads=st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 3), value=st.sampled_from([0.0, -1024.0, 7.0])
)
def test_the_content_is_what_was_there_before_padding(pads: tuple[tuple[int, int], ...], value: float) -> None:
    data = np.random.default_rng(0).normal(size=(5, 6, 7))
    window = content_window(np.pad(data, pads, constant_values=value))
    assert window.start == tuple(before for before, _ in pads)
    assert window.shape == data.shape


@given(seed=seeds, size=st.floats(1, 1e3))
def test_turned_and_scaled_heads_fit_and_their_turn_is_told(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed)
    points = size * turn.apply(np.array(list(CENTRES.values()))) + rng.normal(0, 100, 3)
    fit = fit_centres(placed(points))
    assert fit is not None
    assert fit.misfit == pytest.approx(0, abs=1e-6)
    assert fit.turned_deg == pytest.approx(np.degrees(turn.magnitude()), abs=1e-3)


@pytest.mark.parametrize("axes", [(1, 1, -1), (1, -1, 1)], ids=["upside down", "back to front"])
def test_structures_left_where_they_were_in_a_turned_head_do_not_fit(axes: tuple[int, int, int]) -> None:
    points = np.array(list(CENTRES.values())) * axes  # mirrored: no turn undoes that
    fit = fit_centres(placed(points))
    assert fit is not None
    assert fit.misfit > 0.3


def test_left_and_right_labels_keep_their_sides_in_the_fit() -> None:
    mirrored = placed(np.array(list(CENTRES.values())) * (-1, 1, 1))
    fit = fit_centres(mirrored)
    assert fit is not None
    assert fit.misfit > 0.3  # as no network labels a head: those by where it is


def test_too_few_structures_or_all_in_one_place_say_nothing() -> None:
    few = dict(list(placed(np.array(list(CENTRES.values()))).items())[: LEAST_STRUCTURES - 1])
    assert fit_centres(few) is None
    assert fit_centres(placed(np.zeros((len(CENTRES), 3)))) is None


# -- of a segmentation

TIP_MM2 = 250.0  # what surrounds the ellipsoid is 0 and counts as no image: its tips touch where the image ends


def evidence(data: np.ndarray, affine: np.ndarray) -> Evidence:
    segmenter = Segmenter(band_model(), "fast")
    prepared = segmenter.prepare(Volume(data, affine))
    answers = run_networks(segmenter.placement, prepared, None, Want(), segmenter.config, Stopwatch())
    return evidence_of(answers.prepared, answers.posteriors, segmenter.model, segmenter.config)


def test_centres_and_areas_of_a_phantom_are_those_of_its_shapes() -> None:
    found = evidence(phantom(), phantom_affine())
    x, y, z = found.brain.centres_mm[17]  # a ball around (-12, 6, 0), as voxels from -36, -40, -32 on count
    assert (x, y, z) == pytest.approx((-12.5, 5.5, -0.5), abs=0.6)
    assert found.brain.centres_mm[53][0] == pytest.approx(13.5, abs=0.6)
    assert max(found.brain.touching_mm2.values()) < TIP_MM2
    assert found.brain.brightness[17][0] == pytest.approx(0.75, abs=0.03)
    assert found.brain.rim == 0


@pytest.mark.parametrize(("side", "axis", "end"), [("top", 2, -1), ("bottom", 2, 0), ("left", 0, 0), ("front", 1, -1)])
def test_the_area_of_a_cut_is_that_of_the_ellipse_it_makes(side: str, axis: int, end: int) -> None:
    data, affine, lost = phantom(), phantom_affine(), 18
    kept = [slice(None)] * 3
    kept[axis] = slice(lost, None) if end == 0 else slice(None, -lost)
    affine[:3, 3] += affine[:3, axis] * (lost if end == 0 else 0)
    found = evidence(np.ascontiguousarray(data[tuple(kept)]), affine).brain.touching_mm2
    face = data[tuple(kept)].take(end, axis)
    expected = float(np.count_nonzero((face > 0) & (face != 500) & (face != 1000)))  # those are brain stem and CSF
    assert found[side] == pytest.approx(expected, rel=0.2)
    assert all(area < TIP_MM2 for name, area in found.items() if name != side)


def test_a_cut_that_was_padded_afterwards_is_found_as_well() -> None:
    data = phantom()
    data[:, :, 40:] = 0  # a field of view that ends, within a larger file
    touching = evidence(data, phantom_affine()).brain.touching_mm2
    assert touching["top"] > 1000


def test_the_signs_of_a_scan_are_read_of_its_own_voxels() -> None:
    data = np.random.default_rng(0).normal(100, 10, (40, 44, 48))
    data[:, :, :8] = 0
    signs = image_signs(prepared_of(data, spacing_mm=2.0))
    assert signs.spacing_mm == (2, 2, 2)
    assert signs.content.start == (0, 0, 8)
    assert signs.lowest == 0
    assert not signs.hounsfield
    assert signs.high == pytest.approx(np.percentile(data[data != 0], 99), rel=0.05)
