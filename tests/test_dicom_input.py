"""DICOM folders and zips, globs, lists and datasets become scans that can be read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")
import pydicom

from dicom_files import AXIAL, CORONAL, CT, SAGITTAL, make_series, noise, voxel_to_ras
from synthseg.cohort import archives
from synthseg.cohort.archives import unpack
from synthseg.cohort.inputs import Inputs, gather
from synthseg.errors import UsageError, VolumeError
from synthseg.volumes import read_volume

OBLIQUE = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)


def assert_same_voxels(scan: Path, pixels: np.ndarray, affine: np.ndarray) -> None:
    """Every DICOM pixel is found in the file at its own position in mm."""
    volume = read_volume(scan)
    slices, rows, columns = np.indices(pixels.shape).reshape(3, -1)
    places = (affine @ np.stack([rows, columns, slices, np.ones(len(rows))]))[:3]
    voxels = (np.linalg.inv(volume.affine) @ np.vstack([places, np.ones(len(rows))]))[:3]
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-3)
    np.testing.assert_array_equal(volume.data[tuple(np.rint(voxels).astype(int))], pixels[slices, rows, columns])


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_every_voxel_of_a_converted_series_is_where_dicom_says_it_is(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    pixels, origin, spacing, gap = noise(slices=16), (-31.0, 7.5, 12.0), (1.5, 0.75), 4.5
    order = np.random.default_rng(1).permutation(16)
    make_series(
        tmp_path / "head", pixels, orientation=orientation, origin=origin, spacing=spacing, gap=gap, order=order
    )
    found = gather([tmp_path / "head"], tmp_path / "work")
    (scan,) = found.scans
    assert_same_voxels(scan.path, pixels, voxel_to_ras(orientation, origin, spacing, gap))


def test_hounsfield_units_come_through(tmp_path: Path) -> None:
    pixels = noise(slices=16) % 3000
    more = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "RescaleType": "HU"}
    make_series(tmp_path / "ct", pixels, modality="CT", sop_class=CT, description="Head 5.0 H31s", **more)
    (scan,) = gather([tmp_path / "ct"], tmp_path / "work").scans
    assert (read_volume(scan.path).data.min(), read_volume(scan.path).data.max()) == (
        int(pixels.min()) - 1024,
        int(pixels.max()) - 1024,
    )


def test_slices_whose_positions_were_rounded_begin_and_end_where_dicom_says(tmp_path: Path) -> None:
    pixels, gap = noise(slices=30), 4.54
    files = make_series(tmp_path / "in", pixels, gap=gap)
    for path in files:
        one = pydicom.dcmread(path)
        one.ImagePositionPatient = [-20.0, -30.0, round(float(one.ImagePositionPatient[2]) + 40, 0) - 40]
        one.save_as(path)
    (scan,) = gather([tmp_path / "in"], tmp_path / "work").scans
    volume = read_volume(scan.path)
    ends = sorted(float((volume.affine @ [0, 0, k, 1])[2]) for k in (0, 29))
    np.testing.assert_allclose(ends, [-40.0, round(29 * gap) - 40.0], atol=1e-4)
    assert volume.spacing_mm[2] == pytest.approx(132 / 29)
    assert sorted(volume.data.ravel()) == sorted(pixels.ravel())


def study(folder: Path) -> Path:
    """A localiser, a thick T2, a fine T1 and its reformat."""
    make_series(folder / "1", noise(slices=3), number=1, description="localizer")
    make_series(folder / "2", noise(slices=24), number=2, description="t2_tse_tra", gap=5.0)
    make_series(folder / "3", noise(slices=60, rows=12), number=3, description="t1_mprage", gap=2.0)
    derived = ("DERIVED", "SECONDARY", "MPR")
    make_series(
        folder / "4", noise(slices=60, rows=12), number=4, description="t1_mpr_tra", gap=2.0, image_type=derived
    )
    return folder


def test_of_a_study_the_best_series_is_taken_and_the_others_are_accounted_for(tmp_path: Path) -> None:
    found = gather([study(tmp_path / "visit 1")], tmp_path / "work")
    (scan,) = found.scans
    assert scan.path.name.startswith("visit-1-s003-")
    assert "took series 3 't1_mprage'" in found.notes[0]
    reasons = {one.path.name: one.why for one in found.left_out}
    assert reasons["series 1 'localizer'"] == "a localiser"
    assert reasons["series 2 't2_tse_tra'"].startswith("series 3 't1_mprage' is better")
    assert set(reasons) == {"series 1 'localizer'", "series 2 't2_tse_tra'", "series 4 't1_mpr_tra'"}
    assert found.table().count("\n") == 4


def test_a_series_that_is_asked_for_is_taken_whatever_it_is(tmp_path: Path) -> None:
    folder = study(tmp_path / "visit")

    def names(asked: str) -> list[str]:
        return [scan.path.name.split("-")[1] for scan in gather([folder], tmp_path / "w", series=asked).scans]

    assert names("2") == ["s002"]
    assert names("T2_TSE") == ["s002"]
    assert names("all") == ["s001", "s002", "s003", "s004"]
    with pytest.raises(UsageError, match="no series to segment"):
        names("17")


def test_nothing_of_the_patient_is_in_the_converted_files_or_their_names(tmp_path: Path) -> None:
    make_series(tmp_path / "visit", noise())
    work = tmp_path / "work"
    gather([tmp_path / "visit"], work)
    files = [path for path in work.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".gz", ".json"}
    for path in files:
        content = path.read_bytes() if path.suffix == ".json" else nib.load(path).header.binaryblock
        assert not any(word in content + path.name.encode() for word in (b"Doe", b"SECRET", b"19700101"))


def test_a_second_run_finds_what_the_first_has_converted(tmp_path: Path) -> None:
    make_series(tmp_path / "visit", noise())
    (first,) = gather([tmp_path / "visit"], tmp_path / "work").scans
    before = first.path.stat().st_mtime_ns
    (second,) = gather([tmp_path / "visit"], tmp_path / "work").scans
    assert (second, second.path.stat().st_mtime_ns) == (first, before)


def test_a_zip_gives_the_same_scan_as_its_folder(tmp_path: Path) -> None:
    folder = study(tmp_path / "visit")
    with zipfile.ZipFile(tmp_path / "visit.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("visit/readme.txt", "x" * 500)
        for path in folder.rglob("*.dcm"):
            zipped.write(path, path.relative_to(tmp_path))
    (ours,) = gather([tmp_path / "visit.zip"], tmp_path / "a").scans
    (theirs,) = gather([folder], tmp_path / "b").scans
    assert ours.path.name == theirs.path.name
    np.testing.assert_array_equal(read_volume(ours.path).data, read_volume(theirs.path).data)
    assert [path for path in (tmp_path / "a").iterdir() if path.name.startswith(".")] == []  # unpacked files are gone


@pytest.mark.parametrize("name", ["../up.dcm", "a/../../up.dcm", "..\\up.dcm"])
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(VolumeError, match=r"bad\.zip: found an entry that leads outside"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")
    assert not (tmp_path / "up.dcm").exists()


@pytest.mark.parametrize("name", ["/IM0001", "C:\\x\\IM1", "MR: head 12:30/001.dcm", "T1 12:30.dcm", "a b/(1).dcm"])
def test_any_name_that_a_system_knows_is_unpacked_under_a_number(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"x")
        zipped.writestr(zipfile.ZipInfo("DICOM\\DICOMDIR"), b"an index, as Windows' programs name it")
    (file,) = unpack(tmp_path / "odd.zip", tmp_path / "out")
    assert file.parent == tmp_path / "out"
    assert file.name.startswith("000000")
    assert file.read_bytes() == b"x"


def test_links_bombs_and_damage_in_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(VolumeError, match="a link in it"):
        unpack(tmp_path / "link.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros.dcm", bytes(2**23))
    with pytest.raises(VolumeError, match="zip bomb"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_ZIP_BYTES", 1000)
    with pytest.raises(VolumeError, match="in all"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(VolumeError, match="cannot be unpacked"):
        unpack(tmp_path / "no.zip", tmp_path / "out")


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), path)
    return path


def paths(found: Inputs) -> list[Path]:
    return [scan.path for scan in found.scans]


def test_patterns_folders_and_lists_are_all_scans_once(tmp_path: Path) -> None:
    a, b, c = (nifti(tmp_path / name / "T1w.nii.gz") for name in ("s1", "s2", "deep/s3"))
    work = tmp_path / "work"
    assert paths(gather([f"{tmp_path}/s?/T1w.nii.gz"], work)) == [a, b]
    assert paths(gather([f"{tmp_path}/**/T1w.nii.gz"], work)) == [c, a, b]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{a}\n{tmp_path}/s2\n{tmp_path}/deep/*/T1w.nii.gz\n")
    found = gather([listed, a], work)
    assert paths(found) == [a, b, c]
    assert "named more than once" in found.notes[-1]
    with pytest.raises(UsageError, match="a pattern that no file"):
        gather([f"{tmp_path}/s?/T2w.nii.gz"], work)


def test_a_file_whose_name_looks_like_a_pattern_is_the_file(tmp_path: Path) -> None:
    odd = nifti(tmp_path / "scan[1].nii.gz")
    assert paths(gather([odd], tmp_path / "work")) == [odd]


def test_a_bids_dataset_gives_its_scans_with_their_entities(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    scan = nifti(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    nifti(tmp_path / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    found = gather([tmp_path], tmp_path / "work")
    assert paths(found) == [scan]
    assert found.scans[0].entities == {"sub": "01", "suffix": "T1w"}
    assert [one.path.name for one in found.left_out] == ["sub-01_FLAIR.nii.gz"]


def test_one_study_that_cannot_be_used_does_not_stop_the_others(tmp_path: Path) -> None:
    make_series(tmp_path / "all" / "a", noise(), study="1.2.3.1")
    make_series(tmp_path / "all" / "b", noise(slices=3), study="1.2.3.2", description="scout")
    found = gather([tmp_path / "all"], tmp_path / "work")
    assert len(found.scans) == 1
    assert ["scout" in one.why for one in found.failed] == [True]
    with pytest.raises(UsageError, match=r"no series to segment .*'scout': a localiser"):
        gather([tmp_path / "all" / "b"], tmp_path / "work")


def test_a_zip_of_damaged_or_other_files_does_not_stop_the_others(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "scan.nii.gz")
    damaged, other = tmp_path / "damaged.zip", tmp_path / "other.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a.dcm", noise().tobytes())
    content = bytearray(damaged.read_bytes())
    content[200:900] = np.random.default_rng(0).bytes(700)
    damaged.write_bytes(content)
    with zipfile.ZipFile(other, "w") as zipped:
        zipped.writestr("a.txt", "x")
    found = gather([damaged, other, tmp_path / "none.zip", scan], tmp_path / "work")
    assert paths(found) == [scan]
    told = [one.why for one in found.failed]
    for word, why in zip(("cannot be unpacked", "without DICOM", "no such file"), told, strict=True):
        assert word in why


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality"])
def test_a_series_that_does_not_say_where_it_lies_is_refused_however_it_is_named(tmp_path: Path, tag: str) -> None:
    files = make_series(tmp_path / "visit", noise(slices=9))
    for path in files:
        data = pydicom.dcmread(path)
        del data[tag]
        data.save_as(path)
    for given in (tmp_path / "visit", files[3]):
        with pytest.raises(UsageError, match=r"without (positions|the size)|modality unknown"):
            gather([given], tmp_path / "work")


def test_naming_every_file_of_a_series_is_naming_it_once(tmp_path: Path) -> None:
    found = gather(make_series(tmp_path / "visit", noise()), tmp_path / "work")
    assert (len(found.scans), len(found.notes)) == (1, 1)


def test_one_file_of_a_series_stands_for_it(tmp_path: Path) -> None:
    files = make_series(tmp_path / "visit", noise(), number=1)
    make_series(tmp_path / "visit", noise(), number=2)
    (scan,) = gather([files[3]], tmp_path / "work").scans
    assert scan.path.name.startswith("visit-s001-")


def test_an_old_clinical_series_is_read_as_it_lies_in_space(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "validation" / "dicom" / "pd_axial"
    (scan,) = gather([folder], tmp_path / "work").scans
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    volume = read_volume(scan.path)
    to_voxels = np.linalg.inv(volume.affine)
    for one in (slices[0], slices[7], slices[-1]):
        orientation = np.array(one.ImageOrientationPatient, dtype=float)
        affine = voxel_to_ras(
            tuple(orientation), tuple(map(float, one.ImagePositionPatient)), tuple(one.PixelSpacing), 1
        )
        rows, columns = np.indices(one.pixel_array.shape).reshape(2, -1)
        voxels = (to_voxels @ affine @ np.stack([rows, columns, 0 * rows, 1 + 0 * rows]))[:3]
        np.testing.assert_allclose(voxels, np.rint(voxels), atol=0.1)  # its header's positions are rounded
        np.testing.assert_array_equal(volume.data[tuple(np.rint(voxels).astype(int))], one.pixel_array.ravel())
