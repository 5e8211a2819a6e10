"""Ages: from BIDS tables, JSON sidecars and DICOM headers, in every unit; nothing that cannot be read ends anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.cohort.ages import age_of
from synthseg.inference.age import Age


def dataset(folder: Path, table: str, *, units: str | None = None, session: str = "") -> Path:
    """A scan of sub-01 in a dataset with this participants.tsv."""
    (folder / "participants.tsv").write_text(table, encoding="utf-8")
    if units is not None:
        (folder / "participants.json").write_text(json.dumps({"age": {"Units": units}}))
    scan = folder / "sub-01" / session / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    return scan


@pytest.mark.parametrize(
    ("cell", "units", "years"),
    [
        ("9", None, 9),
        ("34.5", "years", 34.5),
        ("89+", None, 89),
        ("6", "months", 0.5),
        ("52.18", "weeks", 1),
        ("730.5", "days", 2),
        (" 41 ", "y", 41),
    ],
)
def test_a_participants_age_is_read_in_its_unit(tmp_path: Path, cell: str, units: str | None, years: float) -> None:
    table = f"participant_id\tsex\tAge\nsub-02\tF\t70\nsub-01\tM\t{cell}\n"
    age = age_of(dataset(tmp_path, table, units=units))
    assert age is not None
    assert age.years == pytest.approx(years, rel=1e-3)
    assert age.source == "participants.tsv"


@pytest.mark.parametrize("cell", ["n/a", "", "old", "-3", "1e9", "1000", "nan", "inf", "P9Y"])
def test_what_is_no_age_is_not_known(tmp_path: Path, cell: str) -> None:
    assert age_of(dataset(tmp_path, f"participant_id\tage\nsub-01\t{cell}\n")) is None


@pytest.mark.parametrize(
    "table", ["", "participant_id\nsub-01\n", "name\tage\n01\t9\n", "participant_id\tage\nsub-02\t9\n"]
)
def test_tables_without_the_participant_or_the_column_say_nothing(tmp_path: Path, table: str) -> None:
    assert age_of(dataset(tmp_path, table)) is None


def test_the_age_at_a_session_goes_before_the_participants(tmp_path: Path) -> None:
    scan = dataset(tmp_path, "participant_id\tage\nsub-01\t30\n", session="ses-b")
    (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\nses-a\t10\nses-b\t12\n")
    assert age_of(scan) == Age(12.0, "sessions.tsv")  # without the subject, who may be named


@pytest.mark.parametrize(
    ("units", "years"),
    [
        ("decimal years", 30),
        ("whole years", 30),
        ("in months", 2.5),
        ("(months)", 2.5),
        ("Age in Months", 2.5),
        ("number of weeks", 0.575),
        ("postnatal days", 0.0821),
        ("mo.", 2.5),
        ("gestational weeks", None),
        ("years and months", None),
        ("AU", None),
    ],
)
def test_a_unit_is_read_by_its_words(tmp_path: Path, units: str, years: float | None) -> None:
    age = age_of(dataset(tmp_path, "participant_id\tage\nsub-01\t30\n", units=units))
    assert (age and pytest.approx(age.years, rel=1e-2)) == years


@pytest.mark.parametrize(("session", "years"), [("ses-01", 8), ("ses-02", 40), ("ses-03", None), ("", None)])
@pytest.mark.parametrize("order", [1, -1])
def test_of_several_rows_of_a_participant_the_sessions_is_read(
    tmp_path: Path, session: str, years: float | None, order: int
) -> None:
    rows = ["sub-01\tses-01\t8\n", "sub-01\tses-02\t40\n"][::order]
    age = age_of(dataset(tmp_path, "participant_id\tsession_id\tage\n" + "".join(rows), session=session))
    assert (age and age.years) == years


def test_several_rows_of_one_age_are_that_age(tmp_path: Path) -> None:
    age = age_of(dataset(tmp_path, "participant_id\tage\nsub-01\t8\nsub-01\t8\n"))
    assert age == Age(8.0, "participants.tsv")


def test_one_source_that_cannot_be_read_does_not_hide_the_next(tmp_path: Path) -> None:
    table = "participant_id\tage\t" + "x" * 200_000 + "\nsub-01\t8\n"
    scan = dataset(tmp_path, table)
    assert age_of(scan) is None  # a cell that no csv reader takes
    scan.with_name(scan.name.replace(".nii.gz", ".json")).write_text('{"PatientAge": "009Y"}')
    assert age_of(scan) == Age(9.0, scan.name.replace(".nii.gz", ".json"))


def test_a_table_that_changed_is_read_again(tmp_path: Path) -> None:
    scan = dataset(tmp_path, "participant_id\tage\nsub-01\t30\n")
    assert age_of(scan) == Age(30.0, "participants.tsv")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t31\n")
    os.utime(tmp_path / "participants.tsv", ns=(1, 1))
    assert age_of(scan) == Age(31.0, "participants.tsv")


@pytest.mark.parametrize(("said", "years"), [("034Y", 34), ("018M", 1.5), ("003W", 0.0575), ("010D", 0.0274), (7, 7)])
def test_a_sidecar_says_it_as_dicom_does(tmp_path: Path, said: object, years: float) -> None:
    (tmp_path / "scan.json").write_text(json.dumps({"PatientAge": said}))
    age = age_of(tmp_path / "scan.nii.gz")
    assert age is not None
    assert age.years == pytest.approx(years, rel=1e-2)
    assert age.source == "scan.json"


@given(text=st.one_of(st.text(max_size=40), st.just("[" * 100_000)))
def test_a_damaged_sidecar_ends_nothing(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("scan")
    (folder / "scan.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert age_of(folder / "scan.nii.gz") is None


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({"PatientAge": "008Y"}, 8),
        ({"PatientAge": "000Y", "PatientBirthDate": "20180301", "StudyDate": "20200901"}, 2.5),
        ({"PatientAge": "000Y"}, None),
        ({"PatientAge": "000D"}, 0),
        ({"PatientBirthDate": "20180301", "StudyDate": "20200901"}, 2.5),
        ({"PatientBirthDate": "20250301", "StudyDate": "20200901"}, None),
        ({"PatientBirthDate": "unknown"}, None),
    ],
)
def test_the_dicom_files_behind_a_converted_scan_are_asked(tmp_path: Path, tags: dict[str, str], years: float) -> None:
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    header.SOPInstanceUID = "1.2.3"
    header.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    (tmp_path / "scan_source.json").write_text(json.dumps({"files": [str(tmp_path / "one.dcm")]}))
    age = age_of(tmp_path / "scan.nii.gz")
    assert (None if age is None else age.years) == (None if years is None else pytest.approx(years, abs=0.01))
    (tmp_path / "one.dcm").write_bytes(b"no DICOM")
    assert age_of(tmp_path / "scan.nii.gz") is None


def test_a_scan_that_nothing_is_known_of_has_no_age(tmp_path: Path) -> None:
    assert age_of(tmp_path / "scan.nii.gz") is None
