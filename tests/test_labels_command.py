"""``synthseg labels``: what a person sees, on real files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from synthseg.cli.labels import labels_app
from synthseg.errors import OutputError, UsageError
from synthseg.labels import LabelProtocol, builtin_protocols, load_protocol


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    maps = tmp_path / "maps"
    maps.mkdir()
    for number, name in enumerate(["one.nii.gz", "two.nii.gz"], start=1):
        label_map = np.zeros((20, 12, 10), dtype=np.int16)
        label_map[2:6, 3:7, 2:6] = 2  # RAS: a low first index is left
        label_map[14:18, 3:7, 2:6] = 41
        label_map[9:11, 3 : 3 + number, 2:4] = 700
        nibabel.save(nibabel.Nifti1Image(label_map, np.diag([2.0, 2.0, 2.0, 1.0])), maps / name)
    (maps / "readme.txt").write_text("not a volume", encoding="utf-8")
    return maps


def test_inspect_prints_the_values_and_writes_a_table_that_loads(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "new" / "mine.tsv"
    result = CliRunner().invoke(labels_app, ["inspect", str(folder), "-o", str(table)])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    # 4 and 8 voxels of 8 mm3 are 0.032 and 0.064 ml, in both maps.
    assert ["700", "0.05", "0.03", "0.06", "2", "1", "neutral", "label", "700", "no", "partner", "found"] in lines
    assert any(line[:2] == ["2", "0.51"] and "41" in line and "left" in line for line in lines)
    protocol = load_protocol(table)
    assert protocol.name == "maps-labels"
    assert protocol.values.tolist() == [0, 700, 2, 41]
    assert protocol.sides == ("neutral", "neutral", "left", "right")


def test_an_edited_table_is_not_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.tsv"
    table.write_text("edited by hand", encoding="utf-8")
    result = CliRunner().invoke(labels_app, ["inspect", str(folder), "-o", str(table)])
    assert isinstance(result.exception, OutputError)
    assert "add --overwrite" in str(result.exception)
    assert table.read_text(encoding="utf-8") == "edited by hand"
    result = CliRunner().invoke(labels_app, ["inspect", str(folder), "-o", str(table), "--overwrite"])
    assert result.exit_code == 0
    assert len(load_protocol(table)) == 4


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(labels_app, ["inspect", str(tmp_path / "gone")])
    assert isinstance(result.exception, UsageError)
    assert "gone: found no such file or folder" in str(result.exception)


def test_list_names_every_builtin_table() -> None:
    result = CliRunner().invoke(labels_app, ["list"])
    lines = [line.split() for line in result.output.splitlines()]
    rows = {name: next(line for line in lines if name in line)[:2] for name in builtin_protocols()}
    assert rows["synthseg-generation"] == ["54", "33"]
    assert rows["desikan-killiany"] == ["69", "69"]


def test_show_prints_a_table_to_read_or_to_copy() -> None:
    runner = CliRunner()
    shown = [line.split() for line in runner.invoke(labels_app, ["show", "synthseg-2.0"]).output.splitlines()]
    assert ["49", "10", "22", "6", "49", "16", "6", "1", "right", "right", "thalamus"] in shown
    plain = runner.invoke(labels_app, ["show", "synthseg-2.0", "--plain"]).output
    assert LabelProtocol.from_table(plain, "copy") == load_protocol("synthseg-2.0")
