"""Which DICOM series of a study is taken, and why the others are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
import pydicom
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_files import CAPTURE, SAGITTAL, make_series, noise
from synthseg.cohort.dicom import dicom_files, read_headers
from synthseg.cohort.series import MR_CLASS, Header, Series, group, impossible, pick, unfit


def read(folder: Path) -> list[Series]:
    headers, others = read_headers(dicom_files(folder))
    assert others == []
    return group(headers)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"description": "AAHead_Scout"}, "localiser"),
        ({"description": "3-plane LOC"}, "localiser"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localiser"),
        ({"description": "ep2d_diff_4scan_trace_p2"}, "diffusion"),
        ({"description": "Ax DWI b1000"}, "diffusion"),
        ({"DiffusionBValue": 1000.0}, "diffusion"),
        ({"image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")}, "diffusion"),
        ({"description": "rest_bold"}, "functional"),
        ({"image_type": ("DERIVED", "SECONDARY", "MIP")}, "projection"),
        ({"description": "Cor MIP 20/3"}, "projection"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}, "phase"),
        ({"description": "gre_field_mapping field_map"}, "field map"),
    ],
)
def test_a_series_that_is_no_anatomical_scan_is_named_as_what_it_is(
    tmp_path: Path, made: dict[str, object], reason: str
) -> None:
    make_series(tmp_path, noise(), **made)  # type: ignore[arg-type]
    (series,) = read(tmp_path)
    assert impossible(series) == ""
    assert reason in unfit(series)


def test_geometry_alone_gives_away_localisers_slabs_and_time_series(tmp_path: Path) -> None:
    planes = noise(slices=9)
    make_series(tmp_path / "a", noise(slices=5), number=1)
    make_series(tmp_path / "b", planes, number=2, gap=2.0)
    repeated = make_series(tmp_path / "c", noise(slices=12), number=3, gap=6.0)
    for path in repeated:  # a second volume at the same places
        again = pydicom.dcmread(path)
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = f"{again.SOPInstanceUID[:48]}.9"
        again.save_as(path.with_name(f"again-{path.name}"))
    turned = make_series(tmp_path / "d", noise(slices=16), number=4)
    for path in turned[8:]:
        one = pydicom.dcmread(path)
        one.ImageOrientationPatient = list(SAGITTAL)
        one.save_as(path)
    few, slab, times, planes3 = (unfit(series) for series in read(tmp_path))
    assert few == "only 5 slice(s)"
    assert slab == "its slices cover 18 mm only"
    assert "2 images at each position" in times
    assert "not parallel" in planes3


def test_what_is_no_mr_or_ct_image_is_impossible(tmp_path: Path) -> None:
    make_series(tmp_path, noise(), number=1, modality="PT")
    make_series(tmp_path, noise(), number=2, modality="MR", sop_class=CAPTURE)
    pet, capture = read(tmp_path)
    assert "PT" in impossible(pet)
    assert "not stored as MR or CT images" in impossible(capture)


def test_an_ordinary_scan_is_fit_whatever_its_vendor_calls_it(tmp_path: Path) -> None:
    names = ("t1_mprage_sag_p2_iso", "Ax T2 FLAIR FS ASSET", "3D SPGR FA 20", "FSE PD AXIAL OBL", "")
    for number, name in enumerate(names):
        make_series(tmp_path, noise(), number=number, description=name, image_type=("ORIGINAL", "PRIMARY", "MPR"))
    assert [unfit(series) for series in read(tmp_path)] == [""] * 5


def test_two_echoes_at_each_position_are_no_time_series(tmp_path: Path) -> None:
    first = make_series(tmp_path, noise(slices=14), EchoTime=20.0)
    for path in first:
        again = pydicom.dcmread(path)
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = f"{again.SOPInstanceUID[:48]}.9"
        again.EchoTime = 80.0
        again.save_as(path.with_name(f"again-{path.name}"))
    (series,) = read(tmp_path)
    assert (series.echoes, series.n_images, unfit(series)) == (2, 28, "")


def stack(number: int, gap: float, slices: int, **more: object) -> Series:
    return Series(
        tuple(
            Header(
                path=Path(f"{number}-{index}"),
                study="1",
                series=str(number),
                sop_class=MR_CLASS,
                modality="MR",
                number=number,
                orientations=((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
                positions=((0.0, 0.0, index * gap),),
                spacing_mm=(1.0, 1.0),
                thickness_mm=gap,
                **more,  # type: ignore[arg-type]
            )
            for index in range(slices)
        )
    )


def test_the_best_series_is_original_whole_and_fine() -> None:
    fine = stack(9, 1.0, 170)
    thick, derived = stack(2, 5.0, 30), stack(1, 0.5, 320, image_type=("DERIVED", "SECONDARY", "MPR"))
    slab, agent = stack(3, 1.0, 70), stack(4, 1.0, 170, contrast_agent=True)
    angiogram = stack(5, 0.5, 320, description="TOF_3D_multi-slab")
    assert pick([thick, derived, slab, agent, angiogram, fine]) is fine
    assert pick([thick, derived, slab, angiogram]) is thick  # a whole head in thick slices before a slab


@given(st.permutations(range(6)))
def test_the_choice_does_not_depend_on_the_order_in_which_files_are_found(order: list[int]) -> None:
    series = [stack(1 + i, 2.0 + i // 2, 65) for i in range(6)]
    assert pick([series[i] for i in order]) is series[0]
    headers = [header for i in order for header in reversed(series[i].headers[:3])]
    assert [one.first.number for one in group(headers)] == [1, 2, 3, 4, 5, 6]


def test_spacing_and_cover_are_those_of_the_positions_not_of_the_thickness() -> None:
    series = stack(1, 7.0, 20)
    assert series.spacing_mm == (1.0, 1.0, 7.0)
    assert series.cover_mm == pytest.approx(140.0)
    np.testing.assert_allclose(series.offsets_mm, np.arange(20) * 7.0)


def test_an_image_that_was_exported_twice_counts_once(tmp_path: Path) -> None:
    files = make_series(tmp_path / "a", noise(slices=10))
    (tmp_path / "b").mkdir()
    for path in files:
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    (series,) = read(tmp_path)
    assert len(series.files) == 10
    assert unfit(series) == "its slices cover 50 mm only"


def test_damaged_and_other_files_beside_a_series_are_passed_over(tmp_path: Path) -> None:
    make_series(tmp_path, noise(slices=10))
    (tmp_path / "notes.txt").write_text("x" * 300)
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    headers, others = read_headers(dicom_files(tmp_path))
    assert len(headers) == 10
    assert [path.name for path in others] == ["broken.dcm"]


def test_old_files_without_a_mark_are_read_too(tmp_path: Path) -> None:
    for index, path in enumerate(make_series(tmp_path / "marked", noise(slices=9))):
        data = path.read_bytes()[132:]
        (tmp_path / f"IM{index:04d}").write_bytes(data)
    shutil.rmtree(tmp_path / "marked")
    (series,) = read(tmp_path)
    assert len(series.offsets_mm) == 9


def test_a_multi_frame_file_is_a_series_by_itself(tmp_path: Path) -> None:
    (file,) = make_series(tmp_path, noise(slices=1), sop_class="1.2.840.10008.5.1.4.1.1.4.1")
    data = pydicom.dcmread(file)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    data.NumberOfFrames = 40
    data.PixelData = data.PixelData * 40
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3.0
    plane.ImageOrientationPatient = list(SAGITTAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(40):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [-60.0 + 3.5 * index, 0.0, 0.0]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(file)
    (series,) = read(tmp_path)
    assert series.spacing_mm == pytest.approx((0.5, 0.25, 3.5))
    assert (series.n_images, len(series.offsets_mm), series.cover_mm) == (40, 40, pytest.approx(140.0))
    assert (impossible(series), unfit(series)) == ("", "")
