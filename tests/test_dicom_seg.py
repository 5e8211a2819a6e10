"""DICOM SEG: opened again with pydicom, every label is at its pixel, under the code of its structure."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("dcm2niix")
import pydicom
from pydicom.sr.codedict import Collection, codes

from dicom_files import AXIAL, CORONAL, SAGITTAL, make_series, noise, voxel_to_ras
from synthseg.cohort.dicom_seg import Segment, source_files, write_dicom_seg, write_for
from synthseg.cohort.inputs import gather
from synthseg.cohort.seg_codes import ALGORITHM, CATEGORY, CONCEPTS, REGION, SIDES, code_of
from synthseg.cohort.work import Job
from synthseg.errors import SynthsegError, VolumeError
from synthseg.labels import load_protocol

OBLIQUE = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)
STRUCTURES = (
    Segment(0, "background", "#000000"),
    Segment(17, "left hippocampus", "#dcd814"),
    Segment(53, "right hippocampus", "#dcd814"),
    Segment(16, "brain-stem", "#779fb0"),
    Segment(1005, "ctx-lh-cuneus", "#dc1464"),
    Segment(99, "never there", "#ffffff"),
)


def labels_like(scan: Path, path: Path) -> np.ndarray:
    """A label map on a scan's grid, drawn at random."""
    image: Any = nib.load(scan)
    values = np.random.default_rng(0).choice([0, 17, 53, 16, 1005], size=image.shape, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    nib.save(nib.Nifti1Image(values.astype(np.int32), image.affine), path)
    return values


def labels_by_slice(seg: Any) -> dict[tuple[float, ...], np.ndarray]:
    """Position of a slice -> [rows, columns] label values, read from the object's own frames and segments."""
    names = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    values = {segment.name: segment.value for segment in STRUCTURES}
    found: dict[tuple[float, ...], np.ndarray] = {}
    for frame, about in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = tuple(float(x) for x in about.PlanePositionSequence[0].ImagePositionPatient)
        named = about if "SegmentIdentificationSequence" in about else seg.SharedFunctionalGroupsSequence[0]
        number = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        plane = found.setdefault(position, np.zeros(frame.shape, int))
        assert not (plane[frame > 0] > 0).any()  # no pixel is in two segments
        plane[frame > 0] = values[names[number]]
    return found


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_every_pixel_has_the_label_of_its_place(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    origin, spacing, gap = (-31.0, 7.5, 12.0), (1.5, 0.75), 4.5
    files = make_series(
        tmp_path / "in", noise(slices=16), orientation=orientation, origin=origin, spacing=spacing, gap=gap
    )
    (scan,) = gather([tmp_path / "in"], tmp_path / "work").scans
    values = labels_like(scan.path, tmp_path / "labels.nii.gz")
    write_dicom_seg(tmp_path / "labels.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm")
    found = labels_by_slice(pydicom.dcmread(tmp_path / "seg.dcm"))
    assert len(found) == 16
    affine = voxel_to_ras(orientation, origin, spacing, gap)
    to_voxels = np.linalg.inv(nib.load(scan.path).affine)
    normal = np.cross(orientation[:3], orientation[3:])
    for position, plane in found.items():
        index = round(float(np.dot(np.array(position) - origin, normal)) / gap)
        rows, columns = np.indices(plane.shape).reshape(2, -1)
        places = affine @ np.stack([rows, columns, 0 * rows + index, 1 + 0 * rows])
        x, y, z, _ = np.rint(to_voxels @ places).astype(int)
        np.testing.assert_array_equal(plane.ravel(), values[x, y, z])


def test_the_object_belongs_to_the_study_of_its_scan_and_names_its_segments(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", noise(slices=16), number=7)
    (scan,) = gather([tmp_path / "in"], tmp_path / "work").scans
    labels_like(scan.path, tmp_path / "labels.nii.gz")
    seg = pydicom.dcmread(write_dicom_seg(tmp_path / "labels.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm"))
    source = pydicom.dcmread(files[0])
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert (seg.Modality, seg.SegmentationType, seg.SeriesNumber) == ("SEG", "BINARY", 9007)
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert seg[name].value == source[name].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    named = {one.SegmentLabel: one for one in seg.SegmentSequence}
    assert list(named) == ["left hippocampus", "right hippocampus", "brain-stem", "ctx-lh-cuneus"]
    kind = named["right hippocampus"].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in named["brain-stem"].SegmentedPropertyTypeCodeSequence[0]
    parcel = named["ctx-lh-cuneus"].SegmentedPropertyTypeCodeSequence[0]
    assert (parcel.CodeValue, parcel.CodingSchemeDesignator) == ("1005", "99FREESURFER")


def test_codes_are_those_of_the_standards_own_tables() -> None:
    brain, scheme = Collection("CID7140"), Collection("CID7150")
    known = {getattr(brain, name) for name in brain.dir()} | {codes.SCT.CerebrospinalFluid}
    by_value = {(code.value, code.scheme_designator): code.meaning for code in known}
    for value, designator, meaning in CONCEPTS.values():
        assert by_value[value, designator].lower() == meaning.lower()
    assert CATEGORY[0] in {getattr(scheme, name).value for name in scheme.dir()}
    assert ALGORITHM[:2] == (codes.cid7162.ArtificialIntelligence.value, "DCM")
    assert REGION[0] == codes.SCT.Brain.value
    assert [side[0] for side in SIDES.values()] == [codes.SCT.Left.value, codes.SCT.Right.value]


def test_every_structure_of_the_original_has_a_code_that_is_not_private() -> None:
    protocol = load_protocol("synthseg-2.0")
    coded = {(x.name, code_of(Segment(x.value, x.name, "#000000"))) for x in protocol.labels if x.value != 0}
    assert {code.concept[1] for _, code in coded} == {"SCT", "DCM"}
    assert all((code.side is not None) == bool(re.match("left|right", name)) for name, code in coded)
    assert len({(code.concept, code.side) for _, code in coded}) == len(coded)


def test_labels_on_another_grid_go_to_the_nearest_pixel(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", noise(slices=16), gap=4.0)
    affine = voxel_to_ras(AXIAL, (-20.0, -30.0, -40.0), (1.0, 1.0), 4.0)
    low, high = sorted([(affine @ [0, 0, 0, 1])[:3], (affine @ [19, 21, 15, 1])[:3]], key=lambda p: p[2])
    corner = np.minimum(low, high) - 1
    fine = np.zeros((48, 48, 130), np.int32)
    fine[:, :, 65:] = 17  # above a plane in mm
    grid = np.diag([0.5, 0.5, 0.5, 1.0])
    grid[:3, 3] = corner
    nib.save(nib.Nifti1Image(fine, grid), tmp_path / "fine.nii.gz")
    seg = pydicom.dcmread(write_dicom_seg(tmp_path / "fine.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm"))
    for position, plane in labels_by_slice(seg).items():
        assert (plane == 17).all() == (position[2] > corner[2] + 64.5 * 0.5)


def test_a_label_map_of_another_place_is_refused(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", noise(slices=10))
    far = np.eye(4)
    far[:3, 3] = 1000
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 17, np.int32), far), tmp_path / "far.nii.gz")
    with pytest.raises(VolumeError, match=r"far\.nii\.gz: found no structure within the series"):
        write_dicom_seg(tmp_path / "far.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def job_of(scan: Path, out: Path) -> Job:
    """A finished scan: label map, colour table and record."""
    files = {
        kind: out / name for kind, name in (("labels", "a.nii.gz"), ("color_table", "a.txt"), ("record", "a.json"))
    }
    out.mkdir()
    labels_like(scan, files["labels"])
    rows = [f"{s.value} {s.name.replace(' ', '-')} 1 2 3 0" for s in STRUCTURES]
    files["color_table"].write_text("\n".join(rows))
    files["record"].write_text('{"volumes_mm3": {"left hippocampus": 1, "right hippocampus": 1}}')
    return Job(scan, "a", files)


def test_a_scan_from_a_zip_gets_its_object_and_one_whose_series_is_gone_says_so(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", noise(slices=16))
    with zipfile.ZipFile(tmp_path / "visit.zip", "w") as zipped:
        for path in files:
            zipped.write(path, path.name)
    (scan,) = gather([tmp_path / "visit.zip"], tmp_path / "work").scans
    job = job_of(scan.path, tmp_path / "out")
    write_for(job)
    labels = {one.SegmentLabel for one in pydicom.dcmread(tmp_path / "out" / "a.dcm").SegmentSequence}
    assert labels == {"left hippocampus", "right hippocampus", "brain-stem", "ctx-lh-cuneus"}
    with source_files(scan.path) as found:
        assert len(found) == 16
    (tmp_path / "visit.zip").unlink()
    with pytest.raises(SynthsegError, match=r"_source\.json: found a source archive that is gone"):
        write_for(job)


def test_an_anonymised_series_of_two_echoes_gets_one_frame_a_place(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", noise(slices=16))
    (scan,) = gather([tmp_path / "in"], tmp_path / "work").scans
    labels_like(scan.path, tmp_path / "labels.nii.gz")
    for path in list(files):
        data = pydicom.dcmread(path)
        del data.PatientID, data.PatientName, data.AccessionNumber, data.StudyID
        data.EchoTime = 10
        data.save_as(path)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        data.EchoTime = 80
        data.save_as(path.with_suffix(".second"))
        files.append(path.with_suffix(".second"))
    seg = pydicom.dcmread(write_dicom_seg(tmp_path / "labels.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm"))
    assert len(labels_by_slice(seg)) == 16
    for path in files:
        data = pydicom.dcmread(path)
        del data.FrameOfReferenceUID
        data.save_as(path)
    with pytest.raises(VolumeError, match="no FrameOfReferenceUID"):
        write_dicom_seg(tmp_path / "labels.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm")


def test_a_scan_that_was_never_dicom_gets_none(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    write_for(job_of(tmp_path / "scan.nii.gz", tmp_path / "out"))
    assert list((tmp_path / "out").glob("*.dcm")) == []


def test_a_real_series_gets_its_labels_back_voxel_by_voxel(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "validation" / "dicom" / "pd_axial"
    (scan,) = gather([folder], tmp_path / "work").scans
    values = labels_like(scan.path, tmp_path / "labels.nii.gz")
    files = sorted(folder.glob("*.dcm"))
    found = labels_by_slice(
        pydicom.dcmread(write_dicom_seg(tmp_path / "labels.nii.gz", STRUCTURES, files, tmp_path / "seg.dcm"))
    )
    assert sum(int((plane == 17).sum()) for plane in found.values()) == int((values == 17).sum())
    lowest = found[min(found, key=lambda position: position[2])]
    np.testing.assert_array_equal(lowest, values[:, ::-1, 0].T)  # dcm2niix turns rows around
