"""Reading: every format, every oddity noted, every unusable file refused in words."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg.errors import VolumeError
from synthseg.volumes import Volume, is_volume_path, read_volume, strip_extension
from volume_files import AFFINE, SHAPE, notes_of, patch, save, set_pixdim

# Formats


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "A.NII.GZ"])
def test_images_are_read_in_their_own_axis_order(tmp_path: Path, head: np.ndarray, name: str) -> None:
    kind = nib.MGHImage if "mg" in name else nib.Nifti1Image
    nib.save(kind(head, AFFINE), tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, head)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.affine.dtype == np.float64
    np.testing.assert_allclose(volume.spacing_mm, [1, 1.5, 2], atol=1e-6)
    assert volume.path == tmp_path / name
    assert volume.notes == ()
    labels = read_volume(tmp_path / name, labels=True)
    assert labels.data.dtype == np.int32
    assert np.array_equal(labels.data, head)


def test_nifti_2_is_read(tmp_path: Path, head: np.ndarray) -> None:
    nib.save(nib.Nifti2Image(head, AFFINE), tmp_path / "a.nii")
    assert np.array_equal(read_volume(tmp_path / "a.nii").data, head)


@pytest.mark.parametrize("name", ["a.nii", "a.mgh", "a.npz"])
def test_data_are_in_memory_and_in_native_byte_order(tmp_path: Path, head: np.ndarray, name: str) -> None:
    data = head.astype(">f4")
    if name == "a.nii":
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(">f4")
        nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / name)
        assert (tmp_path / name).read_bytes()[:4] == b"\0\0\x01\x5c"  # 348, big-endian
    elif name == "a.mgh":
        nib.save(nib.MGHImage(data, AFFINE), tmp_path / name)
    else:
        np.savez(tmp_path / name, vol_data=data, affine=AFFINE)
    for labels in (False, True):
        volume = read_volume(tmp_path / name, labels=labels)
        assert volume.data.dtype.isnative
        assert type(volume.data) is np.ndarray  # not a np.memmap: the file may go away
        assert np.array_equal(volume.data, head)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
        assert volume.notes == ()


def test_npz_is_read_with_or_without_an_affine(tmp_path: Path, head: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", vol_data=head, affine=AFFINE, other=np.zeros((4, 4, 4)))
    volume = read_volume(tmp_path / "a.npz")
    assert np.array_equal(volume.data, head)
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.notes == ()
    np.savez_compressed(tmp_path / "b.npz", scan=head.astype(np.float64), age=3)
    volume = read_volume(tmp_path / "b.npz")
    assert np.array_equal(volume.affine, np.eye(4))
    assert "'scan'" in volume.notes[0]
    assert "no affine" in volume.notes[1]


def test_values_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    stored = np.linspace(0, 65535, int(np.prod(SHAPE))).reshape(SHAPE).astype(np.uint16)
    path = save(tmp_path / "a.nii", stored, scl_slope=1000.0, scl_inter=-5.0)
    # sums and products in 16 bits would overflow
    np.testing.assert_allclose(read_volume(path).data, stored.astype(np.float64) * 1000 - 5, rtol=1e-6)


def test_a_scaled_label_map_is_whole_again(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    path = save(tmp_path / "a.nii", labels, scl_slope=10.0, scl_inter=3.0)
    assert np.array_equal(read_volume(path, labels=True).data, labels.astype(int) * 10 + 3)
    patch(path, scl_slope=0.3)
    with pytest.raises(VolumeError, match=r"a\.nii: found label values that are not whole numbers, e\.g\."):
        read_volume(path, labels=True)


def test_label_maps_may_hold_one_value_images_may_not(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.full(SHAPE, 3, np.uint8))
    assert (read_volume(path, labels=True).data == 3).all()
    with pytest.raises(VolumeError, match=r"a\.nii: found a constant image: every voxel is 3"):
        read_volume(path)


# What is mended and noted


def test_trailing_axes_of_one_are_dropped(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head[..., None, None])
    volume = read_volume(path)
    assert volume.data.shape == SHAPE
    assert np.array_equal(volume.data, head)
    assert "Trailing axes" in volume.notes[0]


def test_few_slices_are_noted(tmp_path: Path, head: np.ndarray) -> None:
    assert "Few slices" in notes_of(save(tmp_path / "a.nii", head[:, :4]))
    assert "Few slices" not in notes_of(save(tmp_path / "b.nii", head))


def test_voxels_that_are_not_finite_become_zero(tmp_path: Path, head: np.ndarray) -> None:
    data = head.astype(np.float32)
    data[0] = np.nan
    data[1, 0, 0] = np.inf
    volume = read_volume(save(tmp_path / "a.nii", data))
    assert np.isfinite(volume.data).all()
    assert (volume.data[0] == 0).all()
    assert np.array_equal(volume.data[2:], head[2:])
    assert volume.notes[0].startswith(f"{13 * 14 + 1} voxels (8.4 %) were NaN or infinite")


def test_sform_and_qform_at_odds_are_noted(tmp_path: Path, head: np.ndarray) -> None:
    image = nib.Nifti1Image(head, AFFINE)
    image.set_sform(AFFINE, code=1)
    other = AFFINE.copy()
    other[:3, 3] += [0, 3, 4]
    image.set_qform(other, code=1, update_affine=False)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.notes == ("sform and qform disagree by up to 5.0 mm: the sform is used.",)


def test_a_damaged_qform_does_no_harm_beside_an_sform(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, qform_code=1, sform_code=1, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    assert "qform is damaged" in notes_of(path)


def test_an_uncoded_orientation_is_called_a_guess(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, sform_code=0, qform_code=0)
    volume = read_volume(path)
    assert "orientation is a guess" in volume.notes[0]
    assert nib.aff2axcodes(volume.affine) == ("L", "A", "S")  # what the note says
    centre = volume.affine @ [5.5, 6, 6.5, 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 1.5, 2), (-1, 1.5, 2), (np.nan, 1.5, 2)])
def test_impossible_voxel_sizes_are_taken_from_the_sform(
    tmp_path: Path, head: np.ndarray, sizes: tuple[float, ...]
) -> None:
    path = save(tmp_path / "a.nii", head, sform_code=1, qform_code=0)
    set_pixdim(path, *sizes)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing_mm, [1, 1.5, 2])
    assert "those of the sform are used" in " ".join(volume.notes)


def test_voxel_sizes_at_odds_with_the_sform_are_noted(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, sform_code=1, qform_code=0)
    set_pixdim(path, 1, 1, 1)
    assert "(pixdim) are 1 x 1 x 1, the sform's 1 x 1.5 x 2" in notes_of(path)


def test_voxel_sizes_of_zero_without_an_sform_are_refused(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, sform_code=0, qform_code=1)
    set_pixdim(path, 1, 0, 2)
    with pytest.raises(VolumeError, match=r"a\.nii: found voxel sizes 1 x 0 x 2 in the header, and no sform.*Fix: set"):
        read_volume(path)


@pytest.mark.parametrize(("unit", "code", "factor"), [("metre", 1, 1e3), ("micron", 3, 1e-3)])
def test_other_units_are_converted_to_mm(tmp_path: Path, head: np.ndarray, unit: str, code: int, factor: float) -> None:
    affine = np.diag([1 / factor, 1 / factor, 1 / factor, 1]) @ AFFINE
    path = save(tmp_path / "a.nii", head, affine, xyzt_units=code)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
    assert volume.notes == (f"The header's unit is the {unit}: converted to mm.",)


def test_mgh_without_orientation_is_called_a_guess(tmp_path: Path, head: np.ndarray) -> None:
    path = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(head, AFFINE), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[28:30] = b"\0\0"
    path.write_bytes(gzip.compress(bytes(raw)))
    assert "holds no orientation" in notes_of(path)


def test_nibabels_complaints_are_notes_and_not_prints(
    tmp_path: Path, head: np.ndarray, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.nii", head, qform_code=77)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    pixdim = header["pixdim"].copy()
    pixdim[0] = 5
    patch(path, pixdim=pixdim, bitpix=7)
    with caplog.at_level(logging.DEBUG):
        volume = read_volume(path)
    assert any("mended on reading: pixdim[0]" in note for note in volume.notes)
    assert any("bitpix" in note for note in volume.notes)
    assert capfd.readouterr().err == ""
    assert not nib.imageglobals.logger.filters  # left as it was


# Names, and real files


def test_volume_names_are_judged_by_their_end() -> None:
    assert is_volume_path("in.nii/scan.MGZ")
    assert not is_volume_path("in.nii/notes.txt")
    assert not is_volume_path("/data/.hidden.nii.gz")
    assert not is_volume_path("nii.gz")
    assert strip_extension("/in/sub-01.v2_T1w.nii.gz") == "sub-01.v2_T1w"
    assert strip_extension("SCAN.NII") == "SCAN"
    assert strip_extension("table.csv") == "table.csv"


def test_real_oddities_are_read_or_refused_in_words(shared: Path) -> None:
    folder = shared / "data" / "validation" / "oddities"
    with pytest.raises(VolumeError, match=r"epi_4d_oblique\.nii\.gz: found a 4D image of shape \(128, 96, 24, 2\)"):
        read_volume(folder / "epi_4d_oblique.nii.gz")
    volume = read_volume(folder / "t1_lpi_trailing_axis.nii.gz")
    assert volume.shape == (161, 191, 151)
    assert volume.notes == ("Trailing axes of size 1 were dropped: the file's shape is (161, 191, 151, 1).",)
    for name in ("colin27_2mm_t1_head", "epi_template_2mm", "pet_template_2mm"):
        volume = read_volume(folder / f"{name}.nii.gz")
        assert isinstance(volume, Volume)
        image = nib.load(folder / f"{name}.nii.gz")
        np.testing.assert_allclose(volume.data, image.get_fdata(), rtol=1e-6)  # type: ignore[attr-defined]
        assert volume.notes == ()
