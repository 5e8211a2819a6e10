"""The tables of mri_synthseg are the original's to the byte (reference 6.9)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.cli.original.tables import OriginalTable, quality_cells, subject_of, volume_cells
from synthseg.errors import OutputError

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


def test_a_table_is_the_originals_to_the_byte(tmp_path):
    table = OriginalTable(tmp_path / "v.csv")
    numbers = {
        "total intracranial": np.float32(1512345.625),
        "left cerebral white matter": np.float32(14575.553),
        "csf": 0.0,
        "odd, name": np.float64(0.1),
    }
    table.add(subject_of(Path("in/sub-01.nii.gz")), volume_cells(numbers))
    table.add(subject_of(Path("in/sub-02.mgz")), volume_cells(dict.fromkeys(numbers, np.float32(2.5))))
    assert (tmp_path / "v.csv").read_bytes() == (
        b'subject,total intracranial,left cerebral white matter,csf,"odd, name"\r\n'
        b"sub-01,1512345.6,14575.553,0.0,0.1\r\n"
        b"sub-02.mgz,2.5,2.5,2.5,2.5\r\n"
    )


def test_the_table_of_a_listed_scan_begins_with_an_empty_cell(tmp_path):
    OriginalTable(tmp_path / "q.csv", of_list=True).add("a", quality_cells({"cerebellum": np.float32(0.01388)}))
    assert (tmp_path / "q.csv").read_bytes() == b",cerebellum\r\na,0.0139\r\n"


@pytest.mark.parametrize(
    ("name", "subject"),
    [("a.nii.gz", "a"), ("a.nii", "a.nii"), ("a.mgz", "a.mgz"), ("a.npz", "a.npz"), ("a.b.nii.gz", "a.b")],
)
def test_subjects_lose_nii_gz_only(name, subject):
    assert subject_of(Path("folder") / name) == subject


def test_an_old_table_stays_until_the_first_row_is_there(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("old")
    table = OriginalTable(path)
    assert path.read_text() == "old"
    table.add("a", {"x": "1"})
    assert path.read_bytes() == b"subject,x\r\na,1\r\n"


def test_a_row_that_could_not_be_written_comes_with_the_next(tmp_path):
    folder = tmp_path / "tables"
    folder.touch()  # a file where a folder is meant
    table = OriginalTable(folder / "v.csv")
    with pytest.raises(OutputError, match=r"v\.csv"):
        table.add("a", {"x": "1"})
    folder.unlink()
    table.add("b", {"x": "2"})
    assert (folder / "v.csv").read_bytes() == b"subject,x\r\na,1\r\nb,2\r\n"


@given(subjects=st.lists(NAMES, min_size=1, max_size=5))
def test_any_subject_comes_back_from_its_table(tmp_path_factory, subjects):
    path = tmp_path_factory.mktemp("tables") / "v.csv"
    table = OriginalTable(path)
    for subject in subjects:
        table.add(subject, {"x": "1.0"})
    with path.open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["subject", *subjects]
