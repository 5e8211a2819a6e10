"""DICOM series made for tests: real attributes, small images, any orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, CT, CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
STUDY = generate_uid(entropy_srcs=["a study of the tests"])


def voxel_to_ras(
    orientation: tuple[float, ...], origin: tuple[float, ...], spacing: tuple[float, float], gap: float
) -> np.ndarray:
    """[4, 4]: (row, column, slice) to mm RAS, straight from DICOM PS3.3 C.7.6.2.1.1."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = along_column * spacing[0]
    affine[:3, 1] = along_row * spacing[1]
    affine[:3, 2] = np.cross(along_row, along_column) * gap
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def make_series(
    folder: Path,
    pixels: np.ndarray,
    *,
    number: int = 1,
    description: str = "t1 mprage",
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "M", "ND"),
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, ...] = (-20.0, -30.0, -40.0),
    spacing: tuple[float, float] = (1.0, 1.0),
    gap: float = 5.0,
    modality: str = "MR",
    sop_class: str = MR,
    study: str = STUDY,
    order: np.ndarray | None = None,
    **more: object,
) -> list[Path]:
    """Write a series of [slices, rows, columns] pixels, one file a slice, named at random; ``more`` are attributes.

    An attribute that is a list of as many values as slices is given one a slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    files = []
    for index in range(len(pixels)) if order is None else order:
        data = _image(pixels[index])
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, f"{study[:60]}.1"
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
        data.Modality, data.SeriesNumber, data.SeriesDescription = modality, number, description
        data.ImageType = list(image_type)
        data.ImageOrientationPatient = list(orientation)
        data.ImagePositionPatient = [round(float(x), 6) for x in np.array(origin) + index * gap * normal]
        data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = list(spacing), gap, gap
        data.InstanceNumber = int(index) + 1
        for name, value in more.items():
            each = isinstance(value, list) and len(value) == len(pixels)
            setattr(data, name, value[index] if each else value)
        path = folder / f"{data.SOPInstanceUID}.dcm"
        data.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def _image(pixels: np.ndarray) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance = generate_uid()
    meta.MediaStorageSOPInstanceUID = instance
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPInstanceUID = instance
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "Doe^Jane", "SECRET-17", "19700101", "F"
    data.StudyDate = data.SeriesDate = data.StudyTime = data.SeriesTime = data.StudyID = data.AccessionNumber = ""
    data.ReferringPhysicianName = data.PositionReferenceIndicator = ""
    data.Manufacturer, data.PatientPosition = "SIEMENS", "HFS"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    return data


def noise(slices: int = 24, rows: int = 20, columns: int = 22, seed: int = 0) -> np.ndarray:
    """[slices, rows, columns] uint16, no two alike to tell voxels apart."""
    count = slices * rows * columns
    return np.random.default_rng(seed).permutation(count).reshape(slices, rows, columns).astype(np.uint16)
