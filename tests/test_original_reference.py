"""The numpy reference meets the specification's own vectors; its networks agree with torch's operations."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import original_reference_grid as grid
import original_reference_labels as labels
import original_reference_networks as networks
from keras_files import encoder_shapes, parameters, phantom, qc_encoder, unet, unet_shapes, write_keras

# -- labels (1.3-1.7)


def test_label_tables_have_the_published_counts_and_involutions() -> None:
    for v1, count in ((True, 32), (False, 33)):
        table = labels.Table(v1)
        assert len(table.values) == len(table.names) == len(table.flip) == count
        assert (np.diff(table.values) > 0).all()
        np.testing.assert_array_equal(table.flip[table.flip], np.arange(count))
        names = np.array([name.replace("left", "right") for name in table.names])
        np.testing.assert_array_equal(names[table.flip], names)  # a partner is the same structure
        np.testing.assert_array_equal(np.unique(table.topology), np.arange(24))
        np.testing.assert_array_equal(np.unique(table.groups), np.arange(9))
    assert len(labels.PARCELS) == 69
    assert (np.diff(labels.PARCEL_VALUES) > 0).all()


def test_csf_is_exempt_from_clean_up_and_background_to_quality() -> None:
    table = labels.Table()
    csf = list(table.values).index(24)
    assert (csf, table.topology[csf], table.groups[csf]) == (16, 0, 0)
    np.testing.assert_array_equal(table.values[table.topology == 14], [41, 42, 43, 44])
    np.testing.assert_array_equal(table.values[table.groups == 1], [2, 11, 26, 28, 41, 50, 58, 60])


# -- networks (4)


@pytest.mark.parametrize(
    ("architecture", "counts"),
    [
        ({"n_out": 32}, (13_242_824, 13_240_616)),
        ({"n_out": 33}, (13_242_849, 13_240_641)),
        ({"n_out": 5}, (13_242_149, 13_239_941)),
        ({"features": 16, "n_in": 5, "n_out": 5, "kernel": 5, "skips_dropped": 2}, (27_086_501, 27_085_029)),
        ({"n_in": 6}, (13_246_089, 13_243_881)),
        ({"n_in": 3, "n_out": 69}, (13_245_045, 13_242_837)),
    ],
)
def test_written_networks_have_the_published_parameter_counts(architecture, counts) -> None:
    shapes = unet_shapes("unet", **architecture)
    assert parameters(shapes) == counts
    weighted = [layer for layer in shapes.values() if layer]
    assert (len(weighted), sum(map(len, weighted))) == (28, 74)


def test_quality_network_has_the_published_parameter_count() -> None:
    weighted = [layer for layer in encoder_shapes().values() if layer]
    assert parameters(encoder_shapes()) == (12_450_663, 12_449_943)
    assert (len(weighted), sum(map(len, weighted))) == (18, 44)


def _tensors(network) -> dict[str, list[np.ndarray]]:
    return {name: list(layer.values()) for name, layer in network.items() if layer}


def _torch_conv(x: torch.Tensor, kernel: np.ndarray, bias: np.ndarray) -> torch.Tensor:
    weight = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).double()
    return F.conv3d(x, weight, torch.from_numpy(bias).double(), padding=kernel.shape[0] // 2)


def _torch_norm(x: torch.Tensor, gamma, beta, mean, variance) -> torch.Tensor:
    gamma, beta, mean, variance = (torch.from_numpy(t).double() for t in (gamma, beta, mean, variance))
    return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)


def _torch_unet(x: torch.Tensor, w, levels: int, skips_dropped: int) -> torch.Tensor:
    skips = []
    for level in range(levels):
        for i in range(2):
            x = F.elu(_torch_conv(x, *w[f"n_conv_downarm_{level}_{i}"]))
        skips.append(x)
        x = _torch_norm(x, *w[f"n_bn_down_{level}"])
        x = F.max_pool3d(x, 2) if level < levels - 1 else x
    for up in range(levels - 1):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        if up < levels - 1 - skips_dropped:
            x = torch.cat([skips[levels - 2 - up], x], 1)
        for i in range(2):
            x = F.elu(_torch_conv(x, *w[f"n_conv_uparm_{levels + up}_{i}"]))
        x = _torch_norm(x, *w[f"n_bn_up_{up}"])
    return _torch_conv(x, *w["n_likelihood"]).softmax(1)


@pytest.mark.parametrize(("kernel", "skips_dropped", "n_in"), [(3, 0, 1), (5, 2, 5)])
def test_unet_agrees_with_torch(kernel: int, skips_dropped: int, n_in: int) -> None:
    levels = 4
    network = unet("n", features=2, levels=levels, n_in=n_in, n_out=4, kernel=kernel, skips_dropped=skips_dropped)
    w = _tensors(network)
    x = np.random.default_rng(0).random((n_in, 8, 16, 24))
    expected = _torch_unet(torch.from_numpy(x)[None], w, levels, skips_dropped)[0].numpy()
    assert expected.std() > 0.05  # a network that says something
    np.testing.assert_allclose(networks.unet(x, w, "n", np.float64), expected, atol=1e-12)
    np.testing.assert_allclose(networks.unet(x, w, "n", np.float32), expected, atol=2e-5)


def test_encoder_agrees_with_torch() -> None:
    w = _tensors(qc_encoder("n", features=2, levels=2, kernel=5))
    x = np.eye(9)[np.random.default_rng(0).integers(0, 9, (8, 12, 16))].transpose(3, 0, 1, 2)
    y = torch.from_numpy(x)[None]
    for level in range(2):
        shortcut = F.relu(_torch_conv(y, *w[f"n_expand_down_merge_{level}"]))
        y = _torch_conv(F.relu(_torch_conv(y, *w[f"n_conv_downarm_{level}_0"])), *w[f"n_conv_downarm_{level}_1"])
        y = F.max_pool3d(_torch_norm(F.relu(shortcut + y), *w[f"n_bn_down_{level}"]), 2)
    for i in range(2):
        y = F.relu(_torch_conv(y, *w[f"n_final_conv_{i}"]))
    np.testing.assert_allclose(networks.encoder(x, w, "n", np.float64), y.mean((2, 3, 4))[0], atol=1e-12)


def test_every_channel_of_a_random_network_wins_somewhere() -> None:
    image, _ = phantom(2)
    posteriors = networks.unet(image[None], _tensors(unet("n", features=3, n_out=12, seed=3)), "n")
    counts = np.bincount(posteriors.argmax(0).ravel(), minlength=12)
    assert counts.min() > 0
    assert counts.max() < 0.9 * image.size


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"text": "str", "split": True},
        {"layout": "model_weights", "suffix": "_1", "extra": {"random_spatial_deformation_1": {}}},
        {"variable_suffix": "_1"},
    ],
)
def test_every_layout_holds_the_same_tensors(tmp_path: Path, options) -> None:
    network = unet("n", features=1, levels=2, n_out=3)
    read = networks.read_keras(write_keras(tmp_path / "n.h5", {"n": network}, **options))
    expected = _tensors(network)
    assert set(read) == set(expected)
    for name, tensors in expected.items():
        for found, tensor in zip(read[name], tensors, strict=True):
            np.testing.assert_array_equal(found, tensor)


# -- preprocessing (6.3, 11.2, 11.3)


@pytest.mark.parametrize(
    ("zoom", "n", "expected", "shift"),
    [
        (2.0, 6, [0, *np.arange(0.25, 5, 0.5), 5], -0.5),
        (0.7, 10, [0.22928, 1.64286, 3.07143, 4.5, 5.92857, 7.35714, 8.77072], 0.15),
    ],
)
def test_ramps_resample_to_the_published_values(zoom: float, n: int, expected: list[float], shift: float) -> None:
    ramp = np.broadcast_to(np.arange(n, dtype=float)[:, None, None], (n, 4, 5))
    new, affine = grid.resample(ramp, np.diag([zoom, 1, 1, 1]))
    assert new.shape == (len(expected), 4, 5)
    np.testing.assert_allclose(new, np.broadcast_to(np.array(expected)[:, None, None], new.shape), atol=1e-5)
    np.testing.assert_allclose(affine, [[1, 0, 0, shift], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


def test_an_unchanged_axis_is_filtered_all_the_same() -> None:
    impulse = np.zeros((8, 9, 4))
    impulse[:, 4] = 1
    new, _ = grid.resample(impulse, np.diag([1, 1, 2.0, 1]))
    np.testing.assert_allclose(new[4, 3:6, 4], [3.352e-4, 0.99933, 3.352e-4], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(new[4, [0, 1, 2, 6, 7, 8], 4], 0)


def test_a_floating_point_range_gives_one_sample_too_many() -> None:
    assert len(grid.positions(181, 0.7)) == 128
    assert len(grid.positions(180, 0.7)) == 126


@pytest.mark.parametrize(("zoom", "expected"), [(1.04, False), (0.96, False), (1.06, True), (0.94, True)])
def test_within_five_per_cent_of_a_millimetre_nothing_is_resampled(zoom: float, expected: bool) -> None:
    assert grid.needs_resampling(np.array([1, zoom, 1])) is expected


@given(
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    tilt=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
)
def test_alignment_agrees_with_nibabel_and_is_undone(axes, signs, tilt) -> None:
    a, b, c = tilt
    oblique = np.eye(3) + np.array([[0, a, b], [-a, 0, c], [-b, -c, 0]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag(signs) @ np.eye(3)[:, axes]
    voxels = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    how = grid.orientation(affine)
    aligned = grid.align(voxels, how)
    np.testing.assert_array_equal(aligned, nib.as_closest_canonical(nib.Nifti1Image(voxels, affine)).get_fdata())
    np.testing.assert_array_equal(grid.unalign(aligned, how), voxels)


def test_two_world_axes_that_claim_one_voxel_axis_are_told_apart() -> None:
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, :3] = np.linalg.inv([[1, 0.9, 0], [0.5, 0.8, 0], [0, 0, 1]])  # x and y both prefer voxel axis 0
    assert grid.orientation(affine).axes == (0, 1, 2)


def test_crop_and_padding_lie_where_published() -> None:
    assert grid.center_crop_box((181, 217, 181), (160, 192, 160)) == (slice(10, 170), slice(12, 204), slice(10, 170))
    shape, box = grid.pad_box((181, 217, 181))
    assert shape == (192, 224, 192)
    assert box == (slice(5, 186), slice(3, 220), slice(5, 186))
    assert grid.pad_box((40, 129, 128))[0] == (128, 160, 128)
    assert grid.pad_box((40, 70, 64), (64, 64, 64))[0] == (64, 96, 64)
    assert grid.crop_sizes([150]) == (160, 160, 160)


def test_intensities_between_percentiles_span_zero_to_one() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001.0)).reshape(7, 11, 13)
    new = grid.normalise(values)
    np.testing.assert_allclose(new, ((values - 5) / 990).clip(0, 1), atol=1e-12)
    np.testing.assert_array_equal(grid.normalise(np.full((2, 3, 4), 7.0)), 0)
    np.testing.assert_array_equal(grid.normalise(values, ct=True) == 1, values >= 80)


@pytest.mark.parametrize("shape", [(20, 20, 3), (20, 20, 9), (20, 20), (20, 20, 20, 12)])
def test_what_the_original_cannot_process_is_refused(tmp_path: Path, shape) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ValueError, match="-D"):
        grid.read(tmp_path / "x.nii")


def test_every_file_format_is_read_with_its_voxel_size(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((12, 13, 14)).astype(np.float32)
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 6], [0, 1, 0, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels[..., None], affine), tmp_path / "x.nii.gz")
    nib.save(nib.MGHImage(voxels, affine), tmp_path / "x.mgz")
    np.savez(tmp_path / "x.npz", vol_data=voxels)
    for name, zooms, expected in [
        ("x.nii.gz", [1.5, 1, 2], affine),
        ("x.mgz", [1.5, 1, 2], affine),
        ("x.npz", [1, 1, 1], np.eye(4)),
    ]:
        image = grid.read(tmp_path / name)
        np.testing.assert_array_equal(image.voxels, voxels)
        np.testing.assert_allclose(image.zooms, zooms, rtol=1e-6)
        np.testing.assert_allclose(image.affine, expected, atol=1e-6)


def test_a_volume_too_thin_after_reorientation_is_refused(tmp_path: Path) -> None:
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # first axis runs to superior
    nib.save(nib.Nifti1Image(np.zeros((9, 20, 20), np.float32), affine), tmp_path / "x.nii")
    with pytest.raises(ValueError, match="S axis of 9"):
        grid.prepare(tmp_path / "x.nii")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sums_over_a_view_follow_its_flips(axis: int) -> None:
    """Why volumes are added up in the scan's own direction, whatever the order of its axes."""
    posteriors = np.random.default_rng(axis).random((24, 20, 22, 33), dtype=np.float32)
    space = (0, 1, 2)
    flipped = np.flip(posteriors, axis)
    assert (flipped.sum(space) == np.ascontiguousarray(flipped).sum(space)).all()
    assert (flipped.sum(space) != posteriors.sum(space)).any()
    assert (posteriors.swapaxes(0, 2).sum(space) == posteriors.sum(space)).all()
