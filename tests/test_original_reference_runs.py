"""What surrounds the numpy reference's networks, and whole runs of it, against the specification and closed forms."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import original_reference as reference
import original_reference_after as after
import original_reference_labels as labels
import original_reference_networks as networks
from keras_files import phantom, write_family


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("models"), features=2)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of 64 x 80 x 72 voxels, 1 mm, in LAS order."""
    path = tmp_path_factory.mktemp("scan") / "head.nii.gz"
    image = (1000 * phantom(2)[0][10:74, :, 8:]).astype(np.int16)
    nib.save(nib.Nifti1Image(image[::-1], np.diag([-1.0, 1, 1, 1])), path)
    return path


# -- smoothing, flips, quality window (6.4, 11.2, 11.7)


def test_smoothing_kernel_is_the_published_one_and_loses_mass_at_the_border() -> None:
    np.testing.assert_allclose(after.smoothing_kernel(), [0.10650698, 0.78698604, 0.10650698], atol=5e-9)
    impulse = np.zeros((1, 5, 5, 5))
    impulse[0, 2, 2, 0] = 1
    side, centre = 0.10650698, 0.78698604
    new = after.smooth(impulse)[0]
    np.testing.assert_allclose(new[2, 2, :3], [centre**3, centre**2 * side, 0], atol=1e-7)
    np.testing.assert_allclose(new[1, 3, 1], side**3, atol=1e-7)
    np.testing.assert_allclose(new.sum(), 1 - side, atol=1e-7)


def test_flip_average_of_a_mirrored_answer_is_that_answer() -> None:
    table = labels.Table()
    p = np.random.default_rng(0).random((33, 4, 3, 2))
    np.testing.assert_array_equal(after.flip_average(p, p[table.flip][:, ::-1], table.flip), p)


def test_quality_window_ignores_channel_24() -> None:
    channels = np.zeros((32, 32, 32), int)
    channels[4:8, 4:8, 4:8] = 16
    channels[20:30, 20:30, 20:30] = 24
    window = after.qc_window(channels, 16)
    assert (window == 16).sum() == 4**3
    assert not (window == 24).any()


def test_quality_window_places_its_content_as_published() -> None:
    channels = np.zeros((32, 32, 32), int)
    channels[2:9, 10:20, 0:32] = 1
    expected = np.zeros((16, 16, 16), int)
    expected[5:12, 3:13, 0:16] = 1
    np.testing.assert_array_equal(after.qc_window(channels, 16), expected)
    corner = np.zeros((32, 32, 32), int)
    corner[0, 0, 0] = 1
    np.testing.assert_array_equal(np.argwhere(after.qc_window(corner, 16)), [[8, 8, 8]])


def test_quality_scores_are_clipped_and_rounded() -> None:
    raw = np.array([9, -0.2, 0.013949, 0.5, 1.7, 0, 1, 0.25, 0.99996], np.float32)
    assert [after.printed(s) for s in after.qc_scores(raw)] == [
        "0.0",
        "0.0139",
        "0.5",
        "1.0",
        "0.0",
        "1.0",
        "0.25",
        "1.0",
    ]


# -- clean-up, volumes, tables (6.5-6.9)


def _posteriors(shape: tuple[int, ...], boxes: list[tuple[tuple[slice, ...], int, float]]) -> np.ndarray:
    """Background 1 but in the boxes, where (channel, p) takes p."""
    p = np.zeros((*shape, 33), np.float32)
    p[..., 0] = 1
    for box, channel, value in boxes:
        p[(*box, channel)] = value
        p[(*box, 0)] = 1 - value
    return p


def _cube(x: int, size: int) -> tuple[slice, ...]:
    return (slice(x, x + size), slice(2, 2 + size), slice(2, 2 + size))


def test_default_clean_up_keeps_one_component_per_class_but_csf() -> None:
    boxes = [((slice(2, 26), slice(1, 2), slice(2, 3)), 16, 0.9)]  # a csf bar joins everything to one foreground
    boxes += [(_cube(2, 3), 7, 0.9), (_cube(10, 2), 7, 0.8), (_cube(16, 2), 26, 0.3), (_cube(20, 2), 27, 0.2)]
    boxes += [((slice(24, 26), slice(6, 9), slice(6, 9)), 8, 0.9)]  # apart from the foreground's largest component
    p = _posteriors((28, 10, 10), boxes)
    box = (slice(1, 27), slice(1, 9), slice(0, 10))
    cleaned = after.clean_default(p, labels.Table().topology, box)
    assert cleaned.shape == (26, 8, 10, 33)
    whole = np.zeros_like(p)
    whole[box] = cleaned
    np.testing.assert_allclose(whole[(*_cube(2, 3), 7)], 0.9)
    assert not whole[(*_cube(10, 2), 7)].any()  # the smaller thalamus
    np.testing.assert_allclose(whole[(*_cube(16, 2), 26)], 0.3, rtol=1e-6)
    assert not whole[(*_cube(20, 2), 27)].any()  # never above 0.25
    assert not whole[24:26, 6:9, 6:9, 1:].any()
    np.testing.assert_allclose(whole[2:26, 1, 2, 16], 0.9)


def test_fast_clean_up_thresholds_each_channel_but_keeps_components() -> None:
    boxes = [(_cube(2, 3), 7, 0.9), ((slice(2, 5), slice(5, 6), slice(2, 5)), 3, 0.19)]
    boxes += [((slice(5, 12), slice(2, 3), slice(2, 3)), 16, 0.5), (_cube(12, 2), 7, 0.3)]
    p = _posteriors((16, 8, 8), boxes)
    p[2:5, 5, 2:5, 4] = 0.21
    cleaned = after.clean_fast(p, (slice(0, 16), slice(0, 8), slice(0, 8)))
    np.testing.assert_allclose(cleaned[(*_cube(12, 2), 7)], 0.3, rtol=1e-6)  # joined to the rest by csf
    assert not cleaned[..., 3].any()
    np.testing.assert_allclose(cleaned[2:5, 5, 2:5, 4], 0.21 / (0.21 + 0.81), rtol=1e-6)


def test_a_voxel_that_clean_up_empties_is_not_a_number() -> None:
    p = _posteriors((16, 8, 8), [(_cube(2, 3), 7, 1.0), (_cube(10, 2), 7, 1.0)])
    cleaned = after.clean_fast(p, (slice(0, 16), slice(0, 8), slice(0, 8)))
    assert np.isnan(cleaned[_cube(10, 2)]).all()
    assert np.isfinite(cleaned[:9]).all()


def test_equal_components_resolve_to_the_first_and_corners_do_not_connect() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[3, 3, 3] = True
    np.testing.assert_array_equal(np.argwhere(after.largest_component(mask)), [[0, 0, 0]])
    assert not after.largest_component(np.zeros((2, 2, 2), bool)).any()


def test_parcels_replace_the_cortex_only_and_volumes_share_its_volume() -> None:
    segmentation = np.array([3, 42, 2, 0])[:, None, None]
    parcel_p = np.zeros((4, 1, 1, 69), np.float32)
    parcel_p[..., 0] = 0.8
    parcel_p[:, 0, 0, [1, 35]] = [[0.05, 0.15], [0.05, 0.15], [0.1, 0.1], [0, 0.2]]
    new, normalised = after.parcels(segmentation, parcel_p, (slice(0, 4), slice(0, 1), slice(0, 1)))
    assert new.ravel().tolist() == [2001, 2001, 2, 0]  # the hemisphere is not enforced
    np.testing.assert_allclose(normalised[0, 0, 0, [0, 1, 35]], [0, 0.25, 0.75])
    np.testing.assert_allclose(normalised[3, 0, 0, [0, 35]], [1 / 1.2, 0.2 / 1.2])
    table = labels.Table()
    p = (segmentation[..., None] == table.values).astype(np.float32)
    v = after.volumes_double(p, np.array([1, 1, 2.0]), table, parcel_posteriors=normalised)
    assert len(v) == 1 + 32 + 68
    assert v[0] == 6
    np.testing.assert_allclose(v[33:].sum(), 4, atol=2e-3)
    left, right = 0.5 + 0.1 / 1.2, 1.5 + 0.3 / 1.2
    np.testing.assert_allclose(v[[33, 67]], [4 * left / (left + right), 4 * right / (left + right)], atol=1e-3)


def test_single_precision_volumes_stop_growing_where_a_running_sum_does() -> None:
    table = labels.Table()
    p = np.zeros((2, 1, 1, 33), np.float32)
    p[:, 0, 0, 1] = [2**24, 1]
    assert after.volumes_single(p, np.ones(3), table)[1] == 2**24
    assert after.volumes_double(p, np.ones(3), table)[1] == 2**24 + 1


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_single_precision_sums_are_those_of_numpy_over_channels_last(seed: int) -> None:
    p = np.random.default_rng(seed).random((9, 10, 11, 33), np.float32)
    expected = np.sum(p[..., 1:], axis=(0, 1, 2))
    np.testing.assert_array_equal(after._sequential_sums(p), expected)


def test_tables_have_the_published_shape() -> None:
    table = labels.Table()
    values = np.array([1500000.1, 14575.553, 0], np.float32)
    text = after.csv_text(["total intracranial", "csf", "x"], [("a.nii", values)])
    assert text == "subject,total intracranial,csf,x\r\na.nii,1500000.1,14575.553,0.0\r\n"
    assert after.csv_text(["a"], [], list_input=True) == ",a\r\n"
    columns = after.volume_columns(table, parc=True)
    assert columns[:3] == ["total intracranial", "left cerebral white matter", "left cerebral cortex"]
    assert columns[columns.index("csf") - 1 : columns.index("csf") + 2] == [
        "left amygdala",
        "csf",
        "left accumbens area",
    ]
    assert columns[32:34] == ["right ventral DC", "ctx-lh-bankssts"]
    assert len(columns) == 1 + 32 + 68
    assert len(after.volume_columns(labels.Table(True), v1=True)) == 31
    assert after.subject_name("a.b.nii.gz") == "a.b"
    assert after.subject_name("a.mgz") == "a.mgz"


# -- whole scans


def test_a_whole_run_is_pasted_back_to_the_scan(files: dict[str, Path], scan: Path) -> None:
    found = reference.run(scan, files, parc=True, qc=True, crop=[32, 64, 64], window=32)
    shape = nib.load(scan).shape
    assert found["segmentation"].shape == shape
    assert found["posteriors"].shape == (*shape, 33)
    assert found["prepared"].network_input.shape == (32, 64, 64)
    outside = np.ones(shape, bool)
    outside[16:48, 8:72, 4:68] = False
    assert not found["segmentation"][outside].any()
    assert (found["posteriors"][outside][:, 0] == 1).all()
    inside = found["segmentation"][~outside]
    assert len(np.unique(inside)) > 10
    assert not np.isin(inside, labels.CORTEX).any()
    (header, row) = csv.reader(io.StringIO(found["volumes_csv"], newline=""))
    assert len(header) == len(row) == 102
    assert row[0] == "head"
    soft = found["posteriors"][..., 1:].sum(dtype=float)
    np.testing.assert_allclose(float(row[1]), soft, rtol=1e-5)
    assert found["volumes"].dtype == np.float64
    assert len(found["qc_csv"].splitlines()[1].split(",")) == 9


def test_robust_and_version_1_runs_have_their_labels(files: dict[str, Path], scan: Path) -> None:
    robust = reference.run(scan, files, robust=True, crop=[32])
    assert robust["tissues"].max() <= 4
    assert set(np.unique(robust["segmentation"])) <= set(labels.Table().values)
    first = reference.run(scan, files, v1=True, crop=[32])
    assert first["network_posteriors"].shape[3] == 32
    assert "total intracranial" not in first["volumes_csv"]
    assert not (first["segmentation"] == 24).any()


def test_mirroring_a_scan_averages_the_same_two_passes(files: dict[str, Path]) -> None:
    x = phantom(2)[0][:32, 24:56, 24:56]
    table = labels.Table()
    weights = networks.read_keras(files["2.0"])
    one = reference.segment_default(x, weights, table, flip=True, dtype=np.float64)["posteriors"]
    mirrored = reference.segment_default(x[::-1], weights, table, flip=True, dtype=np.float64)["posteriors"]
    np.testing.assert_allclose(mirrored[:, ::-1][table.flip], one, atol=1e-12)


def test_a_coarse_scan_ends_on_a_millimetre_grid(files: dict[str, Path], tmp_path: Path) -> None:
    image = phantom(2)[0][::2, ::2, ::2]
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), tmp_path / "coarse.nii")
    found = reference.run(tmp_path / "coarse.nii", files, fast=True)
    assert found["segmentation"].shape == found["resampled"].shape == (80, 80, 80)
    np.testing.assert_allclose(found["affine"][:3, 3], -0.5)
    assert found["volumes"].dtype == np.float32
    assert found["volumes_csv"].splitlines()[1].startswith("coarse.nii,")
