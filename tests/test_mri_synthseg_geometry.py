"""On which grid the results of mri_synthseg lie (reference 6.3 and 6.7)."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import coarse_scan, phantom, phantom_affine, save_scan
from mri_synthseg_helpers import Run, labels_of, rows_of

VALUES = np.array([0, 2, 16, 17, 24, 41, 53])  # of the small protocol's channels


pytestmark = pytest.mark.usefixtures("no_originals")


@pytest.mark.usefixtures("small")
def test_labels_keep_the_scans_own_axes(tmp_path, run_mri: Run):
    straight = save_scan(tmp_path / "ras.nii", phantom())
    image = nib.load(straight)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(turned, tmp_path / "turned.nii")
    for name in ("ras", "turned"):
        assert run_mri("--i", tmp_path / f"{name}.nii", "--o", tmp_path / f"{name}_seg.nii")[0] == 0
    seg = nib.load(tmp_path / "turned_seg.nii")
    np.testing.assert_allclose(seg.affine, turned.affine)
    back = nib.as_closest_canonical(seg)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), labels_of(tmp_path / "ras_seg.nii"))


@pytest.mark.usefixtures("small")
def test_the_grid_of_a_turned_scan_begins_at_its_own_first_voxel(tmp_path, run_mri: Run):
    # 45 voxels of 1.7 mm are 76.5 mm: 77 of 1 mm, which must begin where the scan's own first voxel begins.
    spacing = (1.7, 1.7, 1.7)
    image = nib.Nifti1Image(phantom((76.5, 78.2, 64.6), spacing), phantom_affine(spacing))
    turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    nib.save(turned, tmp_path / "a.nii")
    outputs = ("--o", tmp_path / "s.nii", "--resample", tmp_path / "r.nii", "--post", tmp_path / "p.nii")
    assert run_mri("--i", tmp_path / "a.nii", *outputs)[0] == 0
    seg, resampled = nib.load(tmp_path / "s.nii"), nib.load(tmp_path / "r.nii")
    assert seg.shape == resampled.shape == tuple(np.ceil(np.array(turned.shape) * 1.7 - 1e-4).astype(int))
    np.testing.assert_allclose(seg.affine, resampled.affine)
    edge = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(seg.affine @ edge, turned.affine @ edge, atol=1e-4)
    np.testing.assert_allclose(seg.header.get_zooms(), 1)
    posteriors = np.asanyarray(nib.load(tmp_path / "p.nii").dataobj)
    np.testing.assert_array_equal(VALUES[posteriors.argmax(-1)], np.asanyarray(seg.dataobj))


@pytest.mark.usefixtures("small")
def test_keepgeom_gives_labels_and_posteriors_on_the_scans_grid(tmp_path, run_mri: Run):
    scan = nib.load(coarse_scan(tmp_path / "a.nii"))
    arguments = ("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii", "--post", tmp_path / "p.nii", "--keepgeom")
    assert run_mri(*arguments)[0] == 0
    seg, posteriors = nib.load(tmp_path / "s.nii"), nib.load(tmp_path / "p.nii")
    assert seg.shape == posteriors.shape[:3] == scan.shape
    np.testing.assert_allclose(seg.affine, scan.affine)
    np.testing.assert_allclose(posteriors.affine, scan.affine)
    np.testing.assert_array_equal(VALUES[np.asanyarray(posteriors.dataobj).argmax(-1)], labels_of(tmp_path / "s.nii"))


@pytest.mark.usefixtures("small")
def test_crop_analyses_the_middle_and_pastes_it_back(tmp_path, run_mri: Run):
    data = np.zeros((130, 90, 96), np.float32)
    data[29:101, 5:85, :64] = phantom()
    save_scan(tmp_path / "a.nii", data)
    outputs = ("--post", tmp_path / "p.nii", "--vol", tmp_path / "v.csv")
    assert run_mri("--i", tmp_path / "a.nii", "--o", tmp_path / "whole.nii")[0] == 0
    # 60 is rounded up to 64, 200 is more than there is
    arguments = ("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii", "--crop", 60, 200, 64, *outputs)
    assert run_mri(*arguments)[0] == 0
    labels, whole = labels_of(tmp_path / "s.nii"), labels_of(tmp_path / "whole.nii")
    middle = (slice(33, 97), slice(None), slice(16, 80))
    outside = np.ones(labels.shape, bool)
    outside[middle] = False
    assert labels.shape == whole.shape
    assert not labels[outside].any()
    assert whole[outside].any()
    assert np.mean(labels[middle] == whole[middle]) > 0.999
    posteriors = np.asanyarray(nib.load(tmp_path / "p.nii").dataobj)
    assert (posteriors[outside] == np.eye(7)[0]).all()
    np.testing.assert_allclose(posteriors.sum(-1), 1, atol=1e-5)
    total = float(rows_of(tmp_path / "v.csv")[1][1])
    np.testing.assert_allclose(total, posteriors[..., 1:].sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.usefixtures("small")
def test_crop_with_keepgeom_is_on_the_scans_grid(tmp_path, run_mri: Run):
    scan = nib.load(coarse_scan(tmp_path / "a.nii"))
    arguments = ("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii", "--post", tmp_path / "p.nii")
    assert run_mri(*arguments, "--crop", 64, "--keepgeom")[0] == 0
    posteriors = np.asanyarray(nib.load(tmp_path / "p.nii").dataobj)
    assert labels_of(tmp_path / "s.nii").shape == scan.shape == posteriors.shape[:3]
    assert labels_of(tmp_path / "s.nii").any()
    np.testing.assert_allclose(posteriors.sum(-1), 1, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_of_several_channels_the_first_is_taken(tmp_path, run_mri: Run):
    save_scan(tmp_path / "one.nii", phantom())
    save_scan(tmp_path / "two.nii", np.stack([phantom(), np.zeros_like(phantom())], -1))
    for name in ("one", "two"):
        code, _, err = run_mri("--i", tmp_path / f"{name}.nii", "--o", tmp_path / f"{name}_s.nii")
        assert code == 0, err
    assert "first of its 2 channels" in err
    np.testing.assert_array_equal(labels_of(tmp_path / "two_s.nii"), labels_of(tmp_path / "one_s.nii"))
