"""DICOM SEG: a segmentation as an object of the study that its scan came from, for viewers and archives of hospitals.

Each structure is a segment with a code (``seg_codes.py``). Every pixel of the source series takes the label at
its position (nearest voxel): exact where the label map lies on the series' grid, as a converted series' does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthseg.cohort.archives import unpack
from synthseg.cohort.convert import source_note
from synthseg.cohort.dicom import looks_like_dicom, read_headers
from synthseg.cohort.seg_codes import ALGORITHM, CATEGORY, REGION, Segment, code_of
from synthseg.cohort.series import POSITION_MM
from synthseg.cohort.sidecars import color_rows
from synthseg.cohort.texts import read_json
from synthseg.errors import SynthsegError, UsageError, VolumeError
from synthseg.files import atomic_file
from synthseg.reading import exists
from synthseg.volumes import read_volume, strip_extension

if TYPE_CHECKING:
    from synthseg.cohort.work import Job

# What a source must say for an object to belong to it, and what DICOM lets be empty, as anonymised series have it.
NEEDED = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID", "Rows", "Columns"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"),
)
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
# What else is read: highdicom copies all it finds of the patient and the study, comments and histories too.
ALSO = (
    *("Modality", "SeriesNumber", "InstanceNumber", "EchoTime", "NumberOfFrames", "SliceThickness"),
    *("SpacingBetweenSlices", "PositionReferenceIndicator", "IssuerOfPatientID", "StudyDescription", "ImageType"),
    *("Manufacturer", "ManufacturerModelName", "PhotometricInterpretation", "SamplesPerPixel"),
)
SERIES_NUMBER_OFFSET = 9000  # far from the scanner's own


def require_highdicom() -> None:
    """Raises: UsageError where the packages are missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        fix = "pip install 'synthseg[dicom]'"
        raise UsageError("DICOM SEG", found=f"no package to write it with ({error.name})", fix=fix) from error


def write_for(job: Job) -> None:
    """Write the DICOM SEG of a finished scan that was converted from DICOM; of others, nothing. For ``Settings.after``.

    It lies beside the label map: ``NAME.dcm`` for ``NAME.nii.gz``. The job's files must hold a colour table.

    Raises: as :func:`write_dicom_seg`; SynthsegError where the source series is gone.
    """
    if not exists(source_note(job.source)):
        return
    labels, target = seg_file(job)
    names = list(read_json(job.files["record"], any_name=True)["volumes_mm3"])
    rows = color_rows(job.files["color_table"], names)
    with source_files(job.source) as files:
        write_dicom_seg(labels, [Segment(row.value, row.name, row.color) for row in rows], files, target)


def seg_file(job: Job) -> tuple[Path, Path]:
    """The label map that a job's DICOM SEG is made of, and the DICOM SEG."""
    labels = job.files["labels"] if "labels" in job.files else job.files["labels_1mm"]
    return labels, labels.with_name(f"{strip_extension(labels)}.dcm")


@contextmanager
def source_files(converted: Path) -> Iterator[list[Path]]:
    """The DICOM files that a scan was converted from, unpacked for the while where they are in a zip.

    Raises: SynthsegError where they are gone, or the note that names them is damaged.
    """
    note = source_note(converted)
    said = read_json(note, any_name=True)
    try:
        files, series = [Path(file) for file in said["files"]], str(said["series"])
        archive = Path(said["archive"]) if "archive" in said else None
    except (KeyError, TypeError) as error:
        raise SynthsegError(note, found="no list of source files", fix="convert the series again") from error
    if archive is None:
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            where = missing[0] if missing else "none is named"
            raise SynthsegError(note, found=f"source files that are gone ({where})", fix="put them back")
        yield files
        return
    if not archive.is_file():
        raise SynthsegError(note, found=f"a source archive that is gone ({archive})", fix="put it back")
    with tempfile.TemporaryDirectory(dir=converted.parent, prefix=".unzipped-") as place:
        unpacked = [path for path in unpack(archive, Path(place)) if looks_like_dicom(path)]
        yield [header.path for header in read_headers(unpacked)[0] if header.series == series]


def write_dicom_seg(labels: Path, structures: Sequence[Segment], files: Sequence[Path], target: Path) -> Path:
    """Write a label map as a DICOM Segmentation of a series.

    Args:
        labels: a label map in the space of the series, on any grid.
        structures: what the values mean; those that no pixel has are left out, background (0) too.
        files: of the source series.
        target: the file to write.
    Raises: UsageError without highdicom; VolumeError for a series of which DICOM says too little or of several frames a
        file, or a label map without any structure on it.
    """
    require_highdicom()
    sources = _read_sources(files)
    frames = labels_on_series(labels, sources)
    present = set(np.unique(frames).tolist()) - {0}
    segments = [structure for structure in structures if structure.value in present]
    if not segments:
        raise VolumeError(labels, found="no structure within the series", fix="check that both are of one scan")
    lookup = np.zeros(int(frames.max()) + 1, np.uint8 if len(segments) < 256 else np.uint16)
    for number, segment in enumerate(segments, start=1):
        lookup[segment.value] = number
    made = _object(sources, lookup[frames], segments)
    with atomic_file(target) as file:
        made.save_as(file)
    return target


def _object(sources: Sequence[Any], pixels: np.ndarray, segments: Sequence[Segment]) -> Any:
    """The object itself. ``pixels`` [slices, rows, columns] are positions in ``segments`` + 1."""
    import highdicom as hd

    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(s, n) for n, s in enumerate(segments, start=1)],
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + SERIES_NUMBER_OFFSET,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="synthseg",
        manufacturer_model_name="synthseg",
        software_versions=version("synthseg"),
        device_serial_number="0",
        series_description="Brain segmentation (synthseg)",
        content_label="SYNTHSEG",
        content_description="Contrast-agnostic brain segmentation",
        omit_empty_frames=True,
    )


def labels_on_series(labels: Path, sources: Sequence[Any]) -> np.ndarray:
    """The label at every pixel's position, [slices, rows, columns] int32, in the order of ``sources``.

    ``sources`` are pydicom data sets with ``ImagePositionPatient``, ``ImageOrientationPatient`` and ``PixelSpacing``.
    Pixels outside of the label map are 0.

    Source: DICOM PS3.3 C.7.6.2.1.1, Equation C.7.6.2.1-1; LPS to RAS by the signs of the first two axes.
    """
    volume = read_volume(labels, labels=True)
    to_voxels = np.linalg.inv(volume.affine)
    shape = np.array(volume.data.shape)
    frames = []
    for source in sources:
        rows, columns = int(source.Rows), int(source.Columns)
        pixels = np.stack([*np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")], -1).reshape(-1, 2)
        plane = to_voxels @ _pixel_affine(source)
        found = np.rint(np.c_[pixels, np.ones(len(pixels))] @ plane.T[:, :3]).astype(np.int64)
        inside = ((found >= 0) & (found < shape)).all(1)
        frame = np.zeros(len(pixels), np.int32)
        frame[inside] = volume.data[tuple(found[inside].T)]
        frames.append(frame.reshape(rows, columns))
    return np.stack(frames)


def _pixel_affine(source: Any) -> np.ndarray:
    """[4, 3]: (row, column, 1) to mm RAS."""
    orientation = np.array([float(v) for v in source.ImageOrientationPatient])
    between_rows, between_columns = (float(v) for v in source.PixelSpacing)
    affine = np.zeros((4, 3))
    affine[:3, 0] = orientation[3:] * between_rows  # along a column the row changes
    affine[:3, 1] = orientation[:3] * between_columns
    affine[:3, 2] = [float(v) for v in source.ImagePositionPatient]
    affine[:2] *= -1
    affine[3, 2] = 1
    return affine


def _read_sources(files: Sequence[Path]) -> list[Any]:
    """The headers, in the order of the slices; of several echoes at one place, the first."""
    import pydicom

    sources = []
    for path in files:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*NEEDED, *MAY_BE_EMPTY, *ALSO])
        lacking = [name for name in NEEDED if data.get(name) in (None, "")]
        if lacking:
            what = "several frames in one file" if "NumberOfFrames" in data else f"no {lacking[0]}"
            raise VolumeError(path, found=f"a series with {what}", fix="DICOM SEG needs one file a slice; use NIfTI")
        for name in MAY_BE_EMPTY:
            if name not in data:
                setattr(data, name, "")
        sources.append(data)
    normal = np.cross(*np.array([float(v) for v in sources[0].ImageOrientationPatient]).reshape(2, 3))
    placed = [(float(np.dot([float(v) for v in one.ImagePositionPatient], normal)), one) for one in sources]
    placed.sort(key=lambda pair: (pair[0], float(pair[1].get("EchoTime") or 0)))
    kept: list[tuple[float, Any]] = []
    for offset, one in placed:
        if not kept or offset - kept[-1][0] > POSITION_MM:
            kept.append((offset, one))
    return [one for _, one in kept]


def _description(segment: Segment, number: int) -> Any:
    import highdicom as hd
    from highdicom.sr import CodedConcept

    code = code_of(segment)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:64],
        segmented_property_category=CodedConcept(*CATEGORY),
        segmented_property_type=CodedConcept(*code.concept),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="synthseg", family=CodedConcept(*ALGORITHM), version=version("synthseg")
        ),
        tracking_id=segment.name[:64],
        tracking_uid=hd.UID(),
        anatomic_regions=[CodedConcept(*REGION)],
        display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
    )
    if code.side is not None:
        property_type = described.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(*code.side)]
    return described
