"""Which scans mri_synthseg does, where results go: files, folders, lists (reference 6.2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.cli.original.jobs import Plan, output_name, plan
from synthseg.cli.original.parser import Options
from synthseg.errors import UsageError
from synthseg.volumes.volume import VOLUME_EXTENSIONS

KINDS = ("labels", "posteriors", "resampled")


def planned(i: object, o: object, **more: object) -> Plan:
    return plan(Options(i=str(i), o=str(o), **{flag: str(value) for flag, value in more.items()}))


def touch(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def write_list(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
    return path


# One file


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mgz", "a.npz", "sub-1_T1w.v2.nii.gz", "a.NII.GZ"])
def test_a_file_into_a_folder_keeps_its_name_and_extension(tmp_path, name):
    (scan,) = touch(tmp_path / name)
    out = tmp_path / "out"
    (job,) = planned(scan, out / "seg", post=out / "post", resample=out / "res").jobs
    extension = next(e for e in VOLUME_EXTENSIONS if name.lower().endswith(e))
    stem, extension = name[: -len(extension)], name[-len(extension) :]
    assert job.files == {
        "labels": out / "seg" / f"{stem}_synthseg{extension}",
        "posteriors": out / "post" / f"{stem}_posteriors{extension}",
        "resampled": out / "res" / f"{stem}_resampled{extension}",
    }


def test_a_file_to_a_file_is_taken_as_it_is_also_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a.nii")
    found = planned("a.nii", "seg.mgz", vol="v.csv")
    assert found.jobs[0].files == {"labels": Path("seg.mgz")}
    assert found.tables == {"volumes": Path("v.csv")}
    assert set(found.places) == {Path()}


def test_folders_with_an_extension_inside_their_name_are_folders(tmp_path):
    # The original took any path with ".nii" in it for a file.
    (scan,) = touch(tmp_path / "study.nii.d" / "a.nii.gz")
    (job,) = planned(scan.parent, tmp_path / "out.nii.results").jobs
    assert job.files["labels"] == tmp_path / "out.nii.results" / "a_synthseg.nii.gz"
    (job,) = planned(scan, tmp_path / "my.mgz.folder").jobs
    assert job.files["labels"] == tmp_path / "my.mgz.folder" / "a_synthseg.nii.gz"


def test_an_input_folder_with_the_name_of_an_image_is_still_a_folder(tmp_path):
    touch(tmp_path / "x.nii" / "a.nii")
    (job,) = planned(tmp_path / "x.nii", tmp_path / "out").jobs
    assert job.scan == tmp_path / "x.nii" / "a.nii"


def test_a_table_gets_its_extension_with_a_note(tmp_path):
    (scan,) = touch(tmp_path / "a.nii")
    found = planned(scan, tmp_path / "out", vol=tmp_path / "volumes", qc=tmp_path / "qc.CSV")
    assert found.tables == {"volumes": tmp_path / "volumes.csv", "quality": tmp_path / "qc.CSV"}
    assert len(found.notes) == 1
    assert ".csv was added" in found.notes[0]


# A folder


def test_a_folder_is_its_own_images_sorted_hidden_ones_left_out(tmp_path):
    source = tmp_path / "in"
    touch(*(source / n for n in ("c.nii", "a.nii.gz", "b.mgz", "d.npz", ".hidden.nii", "notes.txt", "x.mgh", "nii")))
    (source / "sub.nii").mkdir()
    touch(source / "sub.nii" / "deep.nii")
    found = planned(source, tmp_path / "out", vol=tmp_path / "v.csv")
    assert [job.scan.name for job in found.jobs] == ["a.nii.gz", "b.mgz", "c.nii", "d.npz"]
    assert [job.files["labels"].name for job in found.jobs] == [
        "a_synthseg.nii.gz",
        "b_synthseg.mgz",
        "c_synthseg.nii",
        "d_synthseg.npz",
    ]


def test_a_folder_done_again_into_itself_leaves_its_results_out(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii")
    first = planned(tmp_path, tmp_path, post=tmp_path)
    touch(*(path for job in first.jobs for path in job.files.values()))
    again = planned(tmp_path, tmp_path, post=tmp_path)
    assert again.jobs == first.jobs
    assert any("left out 4" in note for note in again.notes)
    assert [job.scan for job in planned(tmp_path, tmp_path).jobs] == [job.scan for job in first.jobs]  # also without


def test_scans_that_look_like_results_elsewhere_are_scans(tmp_path):
    touch(tmp_path / "in" / "a_synthseg.nii")
    assert len(planned(tmp_path / "in", tmp_path / "out").jobs) == 1


# Lists


def test_lists_go_line_by_line_and_blank_lines_do_not_count(tmp_path):
    scans = write_list(tmp_path / "i.txt", "", "x/a.nii.gz", "  ", "y/a.nii.gz ")
    found = planned(
        scans,
        write_list(tmp_path / "o.txt", "1.nii.gz", "", "2.mgz"),
        vol=write_list(tmp_path / "v.txt", "1.csv", "2.csv"),
    )
    assert found.of_lists
    assert found.tables == {}
    assert [job.scan for job in found.jobs] == [Path("x/a.nii.gz"), Path("y/a.nii.gz")]
    assert [job.files for job in found.jobs] == [
        {"labels": Path("1.nii.gz"), "volumes": Path("1.csv")},
        {"labels": Path("2.mgz"), "volumes": Path("2.csv")},
    ]


# What is refused, before any work


def refused(found: str, subject: str, *arguments: object, **more: object) -> None:
    with pytest.raises(UsageError) as caught:
        planned(*arguments, **more)
    assert found in caught.value.found
    assert subject in caught.value.subject
    assert caught.value.fix


def test_missing_and_empty_inputs_are_refused(tmp_path):
    (tmp_path / "empty.nii").mkdir()
    touch(tmp_path / "only_mgh" / "lh.area.mgh")
    write_list(tmp_path / "blank.txt", "", " ")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    out = tmp_path / "out"
    refused("no such file", "gone.nii", tmp_path / "gone.nii", out)
    refused("no such file", "gone.txt", tmp_path / "gone.txt", out)
    refused("a folder without scans", "empty.nii", tmp_path / "empty.nii", out)
    refused("a folder without scans", "only_mgh", tmp_path / "only_mgh", out)
    refused("an empty list", "blank.txt", tmp_path / "blank.txt", out)
    refused("no readable text file", "binary.txt", tmp_path / "binary.txt", out)
    refused("extension is none of an image", "--i", *touch(tmp_path / "a.img"), out)
    assert not out.exists()


def test_an_unset_variable_is_not_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path / "a.nii")
    monkeypatch.chdir(tmp_path)
    refused("an empty name", "--i", "", tmp_path / "out")
    refused("an empty name", "--i", " ", tmp_path / "out")


def test_paths_that_no_system_takes_are_refused_in_words(tmp_path):
    out = tmp_path / "out"
    (scan,) = touch(tmp_path / "a.nii")
    refused("a path that cannot be used", "a" * 300, "a" * 300 + ".nii", out)
    (tmp_path / "wide.txt").write_bytes("a.nii".encode("utf-16-le"))  # Windows, "Unicode" without its mark
    refused("zero bytes", "wide.txt", tmp_path / "wide.txt", write_list(tmp_path / "o.txt", "s.nii"))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    refused("a path that cannot be used", "", scan, tmp_path / "circle" / "s.nii")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    refused("Permission denied", "closed", tmp_path / "closed" / "a.nii", tmp_path / "out")


def test_names_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "~$a.nii")
    (job,) = planned("~$a.nii", "~nobody_of_this_name_here/s.nii").jobs
    assert (job.scan, job.files["labels"]) == (Path("~$a.nii"), Path("~nobody_of_this_name_here/s.nii"))


def test_places_are_told_with_the_flags_that_they_come_from(tmp_path):
    (scan,) = touch(tmp_path / "a.nii")
    found = planned(scan, tmp_path / "o", post=tmp_path / "o", vol=tmp_path / "v.csv")
    assert found.places == {tmp_path / "o": ["--o", "--post"], tmp_path: ["--vol"]}


def test_outputs_of_another_kind_are_refused(tmp_path):
    folder, scan = tmp_path / "in", *touch(tmp_path / "in" / "a.nii")
    listed = write_list(tmp_path / "i.txt", scan)
    (tmp_path / "dir.nii").mkdir()
    (plain,) = touch(tmp_path / "plain")
    refused("the name of a file", "--o", folder, tmp_path / "seg.nii.gz")
    refused("the name of a file", "--post", folder, tmp_path, post=tmp_path / "list.txt")
    refused("a file where a folder is meant", "--o", folder, plain)
    refused("a list", "--o", scan, tmp_path / "o.txt")
    refused("a list", "--vol", scan, tmp_path / "o", vol=tmp_path / "v.txt")
    refused("a folder", "--vol", scan, tmp_path / "o", vol=folder)
    refused("a folder with the name of an image", "--o", scan, tmp_path / "dir.nii")
    refused("no list", "--o", listed, tmp_path / "out")
    refused("no list", "--qc", listed, write_list(tmp_path / "o.txt", "s.nii"), qc=tmp_path / "q.csv")
    refused("an empty name", "--vol", scan, tmp_path / "o", vol="")


def test_lists_of_other_lengths_and_without_extensions_are_refused(tmp_path):
    listed = write_list(tmp_path / "i.txt", "a.nii", "b.nii")
    refused("1 line(s) for 2 scan(s)", "o.txt", listed, write_list(tmp_path / "o.txt", "1.nii"))
    refused("extension is none of an image", "o.txt", listed, write_list(tmp_path / "o.txt", "1.nii", "seg2"))


def test_no_output_replaces_a_scan_or_another_output(tmp_path):
    scan, other = touch(tmp_path / "a.nii", tmp_path / "b.nii")
    refused("would replace a scan", "a.nii", scan, tmp_path / "." / "a.nii")
    refused("would replace a scan", "a.nii", scan, tmp_path / "s.nii", post=scan)
    refused("one file for", "s.nii", scan, tmp_path / "s.nii", resample=tmp_path / "s.nii")
    refused("the same file as --vol", "--qc", scan, tmp_path / "o", vol=tmp_path / "t.csv", qc=tmp_path / "t.csv")
    listed = write_list(tmp_path / "i.txt", scan, other)
    refused("would replace a scan", "b.nii", listed, write_list(tmp_path / "o.txt", other, tmp_path / "s.nii"))
    refused("one file for", "s.nii", listed, write_list(tmp_path / "o.txt", tmp_path / "s.nii", tmp_path / "s.nii"))
    link = tmp_path / "link.nii"
    link.symlink_to(scan)
    refused("would replace a scan", "link.nii", scan, link)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(stem=NAMES.filter(lambda name: not name.startswith(".")), extension=st.sampled_from(VOLUME_EXTENSIONS))
def test_output_names_differ_from_every_scan_and_from_each_other(stem, extension):
    scan = Path(f"{stem}{extension}")
    names = [output_name(scan, kind) for kind in KINDS]
    assert len({scan.name, *names}) == 4
    assert all(name.endswith(extension) and name.startswith(stem) for name in names)
    assert names[0] == f"{stem}_synthseg{extension}"
