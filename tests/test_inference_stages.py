"""Stages of the pipeline on their own, against references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inference_helpers import phantom_affine, small_protocol
from synthseg.errors import ConfigError, UsageError, VolumeError, WeightsError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.modes import MODES
from synthseg.inference.predict import pick_device
from synthseg.inference.prepare import (
    edge_aligned_grid,
    grid_of,
    looks_like_ct,
    prepare,
    whole_window,
    window_ct,
)
from synthseg.inference.structures import channels_of, find_structures
from synthseg.labels import Label, LabelProtocol, load_protocol
from synthseg.volumes import Volume, resample_to_spacing
from synthseg.volumes.standard import close_to_spacing, rescale

DEFAULT, FAST = InferenceConfig(), MODES["fast"]
FACES = ndimage.generate_binary_structure(3, 1)


# -- structures


def test_channels_of_the_published_protocol_are_those_of_the_reference():
    channels = channels_of(load_protocol("synthseg-2.0"))
    # reference 1.3, flip partner column
    partners = [0, *range(19, 29), 11, 12, 13, 29, 30, 16, 31, 32, *range(1, 11), 14, 15, 17, 18]
    assert channels.partners.tolist() == partners
    assert channels.values[[0, 16, 32]].tolist() == [0, 24, 60]
    assert channels.topology[16] == 0
    assert len(channels) == 33


def test_an_unknown_structure_is_named_with_the_known_ones():
    structures = channels_of(small_protocol()).structures
    assert [s.value for s in find_structures([" 53", "csf"], structures)] == [24, 53]
    with pytest.raises(UsageError, match=r"structure 'hipocampus': found no such label.*hippocampus"):
        find_structures(["hipocampus"], structures)


def test_a_protocol_whose_targets_have_no_row_cannot_describe_a_network():
    rows = small_protocol().labels
    shifted = tuple(replace(row, target=row.target + 100 if row.value == 24 else row.target) for row in rows)
    with pytest.raises(WeightsError, match=r"targets \[124\] without a row"):
        channels_of(LabelProtocol("odd", "", shifted))


def test_rows_may_come_in_any_order():
    rows: tuple[Label, ...] = small_protocol().labels
    turned = LabelProtocol("turned", "", (rows[0], *rows[:0:-1]))
    assert channels_of(turned).structures == channels_of(small_protocol()).structures
    np.testing.assert_array_equal(channels_of(turned).partners, [0, 5, 2, 6, 4, 1, 3])


# -- config


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"percentiles": (99, 1)}, "percentiles"),
        ({"foreground_threshold": 1.0}, "foreground_threshold"),
        ({"smoothing_sigma_vox": -1}, "smoothing_sigma_vox"),
        ({"ct_window": (80, 0)}, "ct_window"),
        ({"precision": "float8"}, "precision"),
        ({"parcel_smoothing_sigma_vox": 2}, "parcel_smoothing_sigma_vox"),
        ({"parcel_scaling": "none"}, "parcel_scaling"),
    ],
)
def test_a_setting_out_of_range_is_named(settings_, named):
    with pytest.raises(ConfigError, match=f"inference setting {named}: found"):
        InferenceConfig(**settings_)


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="device 'gpu': found an unknown name"):
        pick_device("gpu")
    with pytest.raises(UsageError, match=r"device 'cuda:63': found .* CUDA device"):
        pick_device("cuda:63")


# -- prepare


@settings(max_examples=30)
@given(shape=st.tuples(*[st.integers(1, 40)] * 3), multiple=st.sampled_from([1, 2, 16, 32]))
def test_padding_is_centred_and_reaches_the_next_multiple(shape, multiple):
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    window = whole_window(data.shape, multiple)
    padded, start = window.crop(data), window.start
    assert all(n % multiple == 0 and n - m < multiple for n, m in zip(padded.shape, shape, strict=True))
    inside = tuple(slice(-s, -s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(padded[inside], data)
    assert padded.sum() == pytest.approx(data.sum(), rel=1e-5)


def test_padding_of_the_references_example():
    window = whole_window((181, 217, 181), 32)  # reference 11.2
    assert window.shape == (192, 224, 192)
    assert window.start == (-5, -3, -5)


def test_rescale_maps_its_percentiles_to_0_and_1_and_clips():
    data = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    low, high = 10.0, 990.0  # 1st and 99th percentile of 0..1000
    np.testing.assert_allclose(
        rescale(data, (1, 99), subject="s"), np.clip((data - low) / (high - low), 0, 1), atol=1e-6
    )
    np.testing.assert_allclose(rescale(data, (0, 100), subject="s"), data / 1000, atol=1e-6)


def test_no_contrast_is_explained():
    data = np.zeros((50, 50, 50), np.float32)
    data[:5, :5, :5] = 1
    with pytest.raises(VolumeError, match=r"x.nii: found no contrast.*range 0 to 1.*crop it to the head"):
        rescale(data, (1, 99), subject="x.nii")


def test_close_spacing_is_within_five_percent():
    # reference 11.3: 1.04 and 0.96 are not resampled, 1.06 and 0.94 are
    assert close_to_spacing(np.array([1.04, 0.96, 1.05]), 1.0, 0.05)
    assert not close_to_spacing(np.array([1.0, 1.06, 1.0]), 1.0, 0.05)
    assert not close_to_spacing(np.array([0.94, 1.0, 1.0]), 1.0, 0.05)
    assert close_to_spacing(np.array([2.08, 2, 2]), 2.0, 0.05)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(2, 40)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.7, 0.9375, 1.2, 2.0, 5.0])] * 3),
)
def test_the_1mm_grid_is_that_of_resampling(shape, spacing):
    affine = phantom_affine(spacing)
    volume = Volume(np.zeros(shape, np.float32), affine)
    expected = resample_to_spacing(volume, 1.0, order=1)
    grid = edge_aligned_grid(grid_of(volume), 1.0)
    assert grid.shape == expected.data.shape
    np.testing.assert_allclose(grid.affine, expected.affine, atol=1e-9)


def test_prepared_voxels_keep_their_place_in_the_world():
    affine = phantom_affine() @ np.diag([-1.0, 1, -1, 1])
    data = np.zeros((70, 81, 66), np.float32)
    data[10, 20, 30] = 100
    data[40:60, 40:60, 40:60] = 50
    prepared = prepare(Volume(data, affine), spacing_mm=1.0, multiple=16, config=InferenceConfig(percentiles=(0, 100)))
    assert prepared.image.shape == (1, 1, 80, 96, 80)
    voxel = np.unravel_index(int(prepared.image.argmax()), prepared.padded.shape)
    np.testing.assert_allclose(prepared.padded.affine @ [*voxel, 1], affine @ [10, 20, 30, 1])


def head_ct(rng: np.random.Generator, outside: float = -1000.0) -> np.ndarray:
    """HU of a head: air, skin and skull, brain."""
    data = np.full((60, 60, 60), outside, dtype=np.float32)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 60)] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    data[radius < 0.85] = 900
    data[radius < 0.75] = rng.uniform(0, 60, int((radius < 0.75).sum()))
    return data


@pytest.mark.parametrize("outside", [-1000.0, -1024.0, -3024.0])
def test_hounsfield_units_are_recognised_and_clipped_aloud(outside):
    data = head_ct(np.random.default_rng(0), outside)
    clipped, notes = window_ct(data, DEFAULT)
    assert (clipped.min(), clipped.max()) == (0, 80)
    assert len(notes) == 1
    assert "recognised as CT" in notes[0]
    kept, notes = window_ct(data, replace(DEFAULT, ct=False))
    assert kept is data
    assert notes == []


def test_other_scans_are_never_taken_for_ct():
    rng = np.random.default_rng(0)
    magnitude = np.abs(rng.normal(0, 300, (40, 40, 40))).astype(np.float32)
    phase = rng.uniform(-4096, 4096, (40, 40, 40)).astype(np.float32)
    standardised = rng.normal(0, 1, (40, 40, 40)).astype(np.float32)
    stripped = np.where(head_ct(rng) > 80, 0, np.maximum(head_ct(rng), 0))
    for data in (magnitude, phase, standardised, stripped):
        assert not looks_like_ct(data)
    _, notes = window_ct(phase, DEFAULT)
    assert "if it is, use --ct" in notes[0]


def test_real_mr_is_not_taken_for_ct(shared):
    from synthseg.volumes import read_volume

    folder = shared / "data" / "validation"
    for name in ("t1/uih_t1_head.nii.gz", "contrasts/stroke_flair_brain.nii.gz", "ct/t1_older_adults_mni_1mm.nii.gz"):
        assert not looks_like_ct(read_volume(folder / name).data)
