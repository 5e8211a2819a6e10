"""Who a scan is of: nothing of it in converted files, records and pages; and in DICOM SEG what belongs there."""

from __future__ import annotations

import gzip
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary

from dicom_files import make_series, noise
from inference_helpers import coarse_scan, phantom, phantom_affine, save_random_weights
from report_helpers import text_of
from synthseg.cohort.dicom_seg import MAY_BE_EMPTY
from synthseg.cohort.inputs import gather
from synthseg.cohort.technical import TEXTS, technical
from synthseg.files import atomic_file, require_writable
from synthseg.locks import lock_beside

Command = Callable[..., tuple[int, str, str]]
KEPT = frozenset({"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription"})
DATE, TIME, AGE = "19370528", "073113", "087Y"


def mark_everything(files: list[Path]) -> None:
    """Give every text, name, date and time of the standard a value that can be found again, in every file."""
    kinds = {**dict.fromkeys(("LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE"), ""), "DA": DATE, "TM": TIME, "AS": AGE}
    kinds["DT"] = DATE + TIME
    for path in files:
        data = pydicom.dcmread(path)
        for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
            skip = tag >> 16 in (0, 2, 4, 0x28, 0x5400, 0x6000, 0x7FE0) or keyword in KEPT or not keyword
            if kind in kinds and not skip:
                setattr(data, keyword, kinds[kind] or f"Zz{tag:08X}")
        data.save_as(path, enforce_file_format=True)


def marks_in(content: bytes) -> set[str]:
    """Keywords of the marked texts that are in some bytes, dates and times too."""
    texts = {str(DicomDictionary[int(tag, 16)][4]) for tag in re.findall(rb"Zz([0-9A-F]{8})", content)}
    times = {word for word in (DATE, "1937-05-28", TIME, "73113", "07:31:13", AGE) if word.encode() in content}
    return texts | times


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_all_texts_of_a_series_only_the_devices_model_and_software_are_in_the_converted_files(
    tmp_path: Path,
) -> None:
    files = make_series(tmp_path / "visit", noise(14, 8, 8), PatientSex="F")
    mark_everything(files)
    found = gather([tmp_path / "visit"], tmp_path / "work")
    marks: set[str] = set()
    for path in (tmp_path / "work").iterdir():
        content = path.read_bytes()
        marks |= marks_in(gzip.decompress(content) if path.suffix == ".gz" else content) | marks_in(path.name.encode())
    assert marks == {"ManufacturerModelName", "SoftwareVersions"}
    assert marks_in("".join(found.notes + tuple(scan.origin for scan in found.scans)).encode()) == set()


@given(
    names=st.lists(st.sampled_from(["PatientName", "InstitutionName", "EchoTime", "AcquisitionTime", *sorted(TEXTS)])),
    value=st.one_of(
        st.text(),
        st.integers(),
        st.lists(st.floats(allow_nan=False)),
        st.lists(st.text(min_size=1), min_size=1),
        st.none(),
    ),
)
def test_of_a_sidecar_texts_are_kept_by_a_list_and_else_numbers_only(names: list[str], value: object) -> None:
    kept = technical(dict.fromkeys([*names, "PatientWeight"], value))
    numbers = isinstance(value, int) or (isinstance(value, list) and all(isinstance(one, float) for one in value))
    assert set(kept) == {name for name in names if name in TEXTS or numbers}


def test_texts_in_a_scans_header_come_into_no_result(tmp_path: Path, command: Command) -> None:
    scan = tmp_path / "s.nii.gz"
    image = nib.Nifti1Image(phantom(spacing_mm=(2.0, 2.0, 2.0)), phantom_affine((2.0, 2.0, 2.0)))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET comment"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(2, b"SECRET in DICOM"))
    nib.save(image, scan)
    assert b"SECRET" in gzip.decompress(scan.read_bytes())
    weights = save_random_weights(tmp_path / "w.safetensors")
    out = tmp_path / "out"
    code, said, err = command(
        "segment", scan, "-o", out, "--weights", weights, "--posteriors", "--resampled", "--report", "--fast"
    )
    assert (code, "SECRET" in said + err) == (0, False)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        assert b"SECRET" not in (gzip.decompress(content) if path.suffix == ".gz" else content), path.name


def test_records_and_tables_hold_the_files_path_and_nothing_of_its_folder_is_on_pages(
    tmp_path: Path, command: Command
) -> None:
    """What the documents promise: records are for those who have the scans; pages may be given away."""
    home = tmp_path / "DOE^JANE 1937"
    scan = coarse_scan(home / "Doe_Jane.nii.gz")
    weights = save_random_weights(tmp_path / "w.safetensors")
    code, _, _ = command("segment", scan, "-o", home / "out", "--weights", weights, "--report", "--fast")
    assert code == 0
    assert "Doe_Jane" in (home / "out" / "Doe_Jane_synthseg.json").read_text()
    for page in (home / "out" / "report").iterdir():
        text = text_of(page.read_text()) + page.name
        assert not any(word in text for word in ("Doe_", "Jane", "DOE", "JANE", str(tmp_path)))


def test_hidden_names_stay_hidden_however_messages_spell_them(tmp_path: Path) -> None:
    from synthseg.errors import VolumeError
    from synthseg.report.identity import identify

    for name in ("Doe\nJane.nii.gz", "Doe\x1bJane.nii.gz", os.fsdecode(b"Doe\xe9Jane.nii.gz"), "Doe\u202eJane.nii.gz"):
        scan = tmp_path / name
        told = str(VolumeError(scan, found=f"trouble in {scan}", fix=f"look at {scan.name}"))
        scrubbed = identify(scan, "ab" * 32, 1, "hidden", set()).scrub(told)
        assert "Doe" not in scrubbed
        assert "Jane" not in scrubbed


def test_a_dicom_seg_is_its_patients_and_holds_nothing_else_of_the_source(tmp_path: Path) -> None:
    """It must belong to the patient and study it was made of; what the standard does not copy stays behind."""
    pytest.importorskip("highdicom")
    from synthseg.cohort.dicom_seg import write_dicom_seg
    from synthseg.cohort.seg_codes import Segment

    files = make_series(tmp_path / "visit", noise(14, 8, 8))
    for path in files:
        data = pydicom.dcmread(path)
        data.PatientName, data.PatientID = "Zz^Name", "ZzId"
        data.InstitutionName, data.OperatorsName, data.PatientAddress = "ZzHospital", "Zz^Operator", "ZzStreet"
        data.ImageComments = data.PatientComments = "ZzComment"
        data.save_as(path, enforce_file_format=True)
    (scan,) = gather([tmp_path / "visit"], tmp_path / "work").scans
    image = nib.load(scan.path)
    labels = np.zeros(image.shape, np.int16)
    labels[2:6, 2:6, 3:9] = 17
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "labels.nii.gz")
    made = write_dicom_seg(
        tmp_path / "labels.nii.gz", [Segment(17, "left hippocampus", "#123456")], files, tmp_path / "s.dcm"
    )
    data = pydicom.dcmread(made)
    assert (str(data.PatientName), data.PatientID) == ("Zz^Name", "ZzId")
    said = {element.keyword for element in data.iterall() if "Zz" in str(element.value)}
    assert said <= set(MAY_BE_EMPTY)


# --- what is written may be read by whom the umask lets


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022, 0o002])
def test_results_and_locks_have_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "new" / "a.txt") as file:
            file.write(b"1")
            (part,) = [path for path in (tmp_path / "new").iterdir() if path.name.endswith(".part")]
            assert stat.S_IMODE(part.stat().st_mode) == 0o666 & ~mask  # never more, not even for a moment
        with lock_beside(tmp_path / "t.tsv"):
            (lock,) = tmp_path.glob(".*.lock")
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666 & ~mask
        require_writable(tmp_path / "checked")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask
    assert not any((tmp_path / "checked").iterdir())


def test_a_run_writes_into_its_folder_only_and_as_the_umask_says(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, temporary = tmp_path / "data", tmp_path / "out", tmp_path / "temporary"
    coarse_scan(data / "s.nii.gz")
    weights = save_random_weights(data / "w.safetensors")
    make_series(data / "visit", noise(14, 64, 64))
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    mask = os.umask(0o077)
    try:
        code, _, err = command(
            "segment",
            data / "s.nii.gz",
            data / "visit",
            "-o",
            out,
            "--weights",
            weights,
            "--fast",
            "--report",
            "--volumes",
            out / "v.csv",
            "--series",
            "all",
            "--dicom-seg",
        )
    finally:
        os.umask(mask)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out", "temporary"}
    assert not any(temporary.iterdir())
    for path in out.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        assert not path.name.endswith((".part", ".lock"))
        assert path.is_dir() or not stat.S_IMODE(path.stat().st_mode) & 0o111, path


def test_a_link_in_place_of_a_result_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """In a shared folder somebody else may have put it there."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "theirs")
    with atomic_file(tmp_path / "a.txt") as file:
        file.write(b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "a.txt").read_bytes() == b"ours"
