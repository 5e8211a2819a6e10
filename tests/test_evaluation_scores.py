"""Scores of pairs and folders: values, grids, mapping, tables, failures, and the command's exit codes."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from synthseg import cli
from synthseg.cli.evaluate import register
from synthseg.errors import ConfigError, LabelError, OutputError, UsageError, VolumeError
from synthseg.evaluation import (
    EvaluationConfig,
    LabelMapping,
    ScoreRow,
    evaluate_folders,
    evaluate_pair,
    read_mapping,
    summarise,
    write_scores,
)

AFFINE = np.array([[1.5, 0, 0, -10], [0, 1, 0, 5], [0, 0, 2, 3], [0, 0, 0, 1.0]])
CLOSE = EvaluationConfig(surface=False)


def brain(shift: int = 0) -> np.ndarray:
    """Four structures in unequal places: left and right white matter (2, 41), a ventricle (4), and ignored (255)."""
    labels = np.zeros((14, 12, 11), dtype=np.int32)
    labels[1 + shift : 6 + shift, 2:9, 2:7] = 2
    labels[7 + shift : 11 + shift, 2:9, 2:7] = 41
    labels[3 + shift : 5 + shift, 4:7, 3:6] = 4
    return labels


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(labels.astype(np.int32), affine), path)
    return path


def by_label(rows: tuple[ScoreRow, ...]) -> dict[int, ScoreRow]:
    return {row.label: row for row in rows}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "p" / "s1_synthseg.nii.gz", brain(1)), save(tmp_path / "t" / "s1_aseg.mgz", brain())


def test_a_shifted_brain_has_the_scores_of_its_shift(pair: tuple[Path, Path]) -> None:
    result = evaluate_pair(*pair)
    rows = by_label(result.rows)
    assert result.scan == "s1_synthseg"
    assert result.notes == ()
    assert sorted(rows) == [2, 4, 41]
    right = rows[41]
    assert right.structure == "right cerebral white matter"
    assert right.dice == pytest.approx(3 / 4)  # 4 planes, of which 3 overlap
    assert right.sd95_mm == 1.5  # one voxel along the first axis
    assert right.volume_truth_mm3 == right.volume_predicted_mm3 == pytest.approx(4 * 7 * 5 * 1.5 * 2)


def test_a_prediction_on_another_grid_is_brought_to_the_truths_and_that_is_said(tmp_path: Path) -> None:
    truth = save(tmp_path / "t.nii.gz", brain())
    # The same labels stored from right to left, with axes exchanged, in half-size voxels and a wider field of view.
    fine = np.pad(brain().repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2), ((4, 2), (0, 6), (2, 2)))
    stored = fine[::-1].transpose(2, 0, 1)
    fine_affine = AFFINE.copy()
    fine_affine[:3, :3] /= 2
    first = -np.array([0.25, 0.25, 0.25]) - np.array([4, 0, 2]) * 0.5  # of the fine grid, in truth voxels
    fine_affine[:3, 3] = AFFINE[:3, :3] @ first + AFFINE[:3, 3]
    flip = np.array([[-1, 0, 0, fine.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    exchange = np.zeros((4, 4))  # stored axes (2, 0, 1) of the fine array
    exchange[2, 0] = exchange[0, 1] = exchange[1, 2] = exchange[3, 3] = 1
    predicted = save(tmp_path / "p.nii.gz", stored, fine_affine @ flip @ exchange)
    result = evaluate_pair(predicted, truth)
    assert {row.dice for row in result.rows} == {1.0}
    assert {row.sd95_mm for row in result.rows} == {0.0}
    assert len(result.notes) == 1
    assert "was brought on the truth's grid (14x12x11 voxels of 1.5x1x2 mm), nearest label" in result.notes[0]


def test_equal_shapes_with_other_affines_are_not_mistaken_for_one_grid(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 1.5  # the same array, one voxel to the right
    result = evaluate_pair(save(tmp_path / "p.nii", brain(), moved), save(tmp_path / "t.nii", brain()), CLOSE)
    assert by_label(result.rows)[41].dice == pytest.approx(3 / 4)
    assert "brought on the truth's grid" in result.notes[0]


def test_a_prediction_in_another_space_is_scored_zero_and_that_is_said(tmp_path: Path) -> None:
    far = AFFINE.copy()
    far[:3, 3] += 1000
    result = evaluate_pair(save(tmp_path / "p.nii", brain(), far), save(tmp_path / "t.nii", brain()))
    assert {row.dice for row in result.rows} == {0.0}
    assert {row.sd95_mm for row in result.rows} == {math.inf}
    assert "are both in the same space?" in result.notes[-1]


def test_only_labels_that_the_truth_has_are_scored_and_the_others_are_named(tmp_path: Path) -> None:
    predicted, truth = brain(), brain()
    predicted[0, 0, :5] = 24  # the truth does not label CSF
    truth[13, 11, :3] = 1001  # of no interest to the protocol
    result = evaluate_pair(save(tmp_path / "p.nii", predicted), save(tmp_path / "t.nii", truth), CLOSE)
    assert [row.label for row in result.rows] == [2, 4, 41]
    assert any("has values that synthseg-2.0 does not: 1001; counted as background" in note for note in result.notes)
    assert any("not scored, because the truth does not have them: 24" in note for note in result.notes)


def test_given_labels_are_scored_whatever_the_truth_has(tmp_path: Path) -> None:
    predicted, truth = brain(), brain()
    predicted[0, 0, :5] = 24
    paths = save(tmp_path / "p.nii", predicted), save(tmp_path / "t.nii", truth)
    rows = evaluate_pair(*paths, EvaluationConfig(values=(41, 24, 3, 999))).rows
    assert [row.label for row in rows] == [41, 24, 3, 999]
    assert (rows[1].dice, rows[1].sd95_mm, rows[1].volume_truth_mm3) == (0, math.inf, 0)
    assert math.isnan(rows[2].dice)
    assert math.isnan(rows[2].sd95_mm)
    assert rows[3].structure == "label 999"


def test_ignored_voxels_count_for_neither_map(tmp_path: Path) -> None:
    predicted, truth = brain(), brain()
    truth[:3] = 255
    predicted[0] = 2
    paths = save(tmp_path / "p.nii", predicted), save(tmp_path / "t.nii", truth)
    result = evaluate_pair(*paths, CLOSE)
    assert f"{3 * 12 * 11} voxels (21 %) have the value 255 in the truth: not scored, in neither map" in result.notes
    row = by_label(result.rows)[2]
    assert row.dice == 1
    assert row.volume_predicted_mm3 == row.volume_truth_mm3
    scored = evaluate_pair(*paths, replace(CLOSE, ignore_value=None))
    assert by_label(scored.rows)[2].dice < 1
    assert not any("not scored" in note for note in scored.notes)


def test_the_truth_can_be_converted_first(tmp_path: Path) -> None:
    other = np.select([brain() == 2, brain() == 41, brain() == 4], [44, 45, 51], 0)
    paths = save(tmp_path / "p.nii", brain()), save(tmp_path / "t.nii", other)
    mapping = LabelMapping({44: (2,), 45: (41,), 51: (4,)})
    rows = evaluate_pair(*paths, replace(CLOSE, mapping=mapping)).rows
    assert {row.label: row.dice for row in rows} == {2: 1, 4: 1, 41: 1}


def test_without_surfaces_no_distance_is_given(pair: tuple[Path, Path]) -> None:
    assert all(math.isnan(row.sd95_mm) for row in evaluate_pair(*pair, CLOSE).rows)


def test_what_cannot_be_scored_is_told(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    foreign = save(tmp_path / "f.nii", (brain() > 0) * 900)
    with pytest.raises(LabelError, match=r"f\.nii: found no label of synthseg-2\.0 in the truth, only 900.*mapping"):
        evaluate_pair(pair[0], foreign)
    with pytest.raises(VolumeError, match="gone"):
        evaluate_pair(tmp_path / "gone.nii.gz", pair[1])
    with pytest.raises(ConfigError, match="255, which is to be ignored"):
        EvaluationConfig(values=(2, 255))
    with pytest.raises(ConfigError, match=r"\[2, 2\].*distinct"):
        EvaluationConfig(values=(2, 2))


def test_a_broken_pair_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "p" / f"{name}_synthseg.nii.gz", brain())
        save(tmp_path / "t" / f"{name}_seg.nii.gz", brain())
    (tmp_path / "p" / "b_synthseg.nii.gz").write_bytes(b"broken")
    save(tmp_path / "p" / "lonely_synthseg.nii.gz", brain())
    seen: list[str] = []
    result = evaluate_folders(tmp_path / "p", tmp_path / "t", CLOSE, on_done=lambda o: seen.append(type(o).__name__))
    assert [pair.scan for pair in result.scores] == ["a_synthseg", "c_synthseg"]
    assert [failure.name for failure in result.failures] == ["lonely_synthseg.nii.gz", "b_synthseg"]
    assert "b_synthseg.nii.gz" in result.failures[1].reason
    assert sorted(seen) == ["Failure", "Failure", "PairScores", "PairScores"]
    with pytest.raises(LabelError, match="no built-in protocol"):
        evaluate_folders(tmp_path / "p", tmp_path / "t", EvaluationConfig(protocol="nonsense"))


def row(scan: str, label: int, dice: float, sd95: float = 1.0, volumes: tuple[float, float] = (1, 1)) -> ScoreRow:
    return ScoreRow(scan, label, f"s{label}", dice, sd95, *volumes)


def test_the_summary_weighs_every_scan_the_same() -> None:
    rows = [
        row("a", 2, 0.8),
        row("a", 3, 0.6, 3.0),
        row("b", 2, 0.0, math.inf, (0, 5)),
        row("b", 3, math.nan, math.nan),
    ]
    summary = summarise(rows)
    assert [(scan.scan, scan.n_structures) for scan in summary.scans] == [("a", 2), ("b", 1)]
    assert summary.dice == pytest.approx((0.7 + 0.0) / 2)  # not the mean over rows, 1.4 / 3
    first, second = summary.structures
    assert (first.label, first.n_scans, first.n_missing, first.sd95_mm) == (2, 2, 1, 1.0)
    assert first.dice == pytest.approx(0.4)
    assert (second.dice, second.n_scans, second.n_missing) == (0.6, 1, 0)
    assert math.isnan(summarise([]).dice)


@pytest.mark.parametrize(("name", "delimiter"), [("s.tsv", "\t"), ("deep/s.csv", ",")])
def test_the_table_can_be_read_back(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [row("a,b", 2, 1 / 3, math.inf, (1234567.5, 0)), row("c", 3, math.nan, math.nan)]
    path = write_scores(rows, tmp_path / name)
    with path.open(newline="") as file:
        read = list(csv.DictReader(file, delimiter=delimiter))
    assert list(read[0]) == [
        "scan",
        "label",
        "structure",
        "dice",
        "sd95_mm",
        "volume_predicted_mm3",
        "volume_truth_mm3",
    ]
    assert [line["scan"] for line in read] == ["a,b", "c"]
    assert float(read[0]["dice"]) == pytest.approx(1 / 3, rel=1e-7)
    assert float(read[0]["sd95_mm"]) == math.inf
    assert float(read[0]["volume_predicted_mm3"]) == 1234567.5
    assert math.isnan(float(read[1]["dice"]))
    assert list(path.parent.glob(".*")) == []


def test_a_table_of_another_kind_or_in_an_impossible_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"suffix '.xlsx'.*\*.tsv or \*.csv"):
        write_scores([], tmp_path / "s.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_scores([], tmp_path / "file" / "s.csv")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("COLUMNS", "160")
    app = typer.Typer()
    app.callback()(lambda: None)  # keeps the command's name in the command line
    register(app)
    monkeypatch.setattr(cli, "build_app", lambda: app)
    return app


def test_the_command_scores_prints_and_writes(app: typer.Typer, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.tsv"
    result = CliRunner().invoke(app, ["evaluate", *map(str, pair), "-o", str(out)])
    assert result.exit_code == 0, result.output
    for text in ("s1_synthseg: mean Dice", "right cerebral white matter", "0.750", "1.50", "3 scores written to"):
        assert text in result.output
    assert out.read_text().count("\n") == 4
    again = CliRunner().invoke(app, ["evaluate", *map(str, pair), "--labels", "41,2", "--no-surface"])
    assert again.exit_code == 0
    assert "SD95" not in again.output
    assert "left lateral ventricle" not in again.output


def test_the_command_converts_the_truth_and_narrows_it_by_a_pattern(app: typer.Typer, tmp_path: Path) -> None:
    save(tmp_path / "p" / "s_synthseg.nii", brain())
    save(tmp_path / "t" / "s_manual.nii", np.where(brain() > 0, 900, 0))
    save(tmp_path / "t" / "s_t1.nii", brain())
    (tmp_path / "m.csv").write_text("a_id,b_id\n900,2\n")
    folders = [str(tmp_path / "p"), str(tmp_path / "t")]
    ambiguous = CliRunner().invoke(app, ["evaluate", *folders])
    assert ambiguous.exit_code == 1
    assert "more than one truth fits: s_manual.nii, s_t1.nii" in ambiguous.output
    options = ["--truth-pattern", "*_manual.nii", "--mapping", str(tmp_path / "m.csv")]
    result = CliRunner().invoke(app, ["evaluate", *folders, *options])
    assert result.exit_code == 0, result.output
    assert "not scored, because the truth does not have them: 4, 41" in result.output


def test_the_command_exits_1_when_a_pair_fails_and_still_writes_the_rest(app: typer.Typer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "p" / f"{name}.nii.gz", brain())
        save(tmp_path / "t" / f"{name}.nii.gz", brain())
    (tmp_path / "t" / "b.nii.gz").write_bytes(b"broken")
    out = tmp_path / "s.csv"
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "p"), str(tmp_path / "t"), "-o", str(out)])
    assert result.exit_code == 1
    assert "1 could not be scored:" in result.output
    assert {line.split(",")[0] for line in out.read_text().splitlines()[1:]} == {"a"}


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "2,x"], "--labels: found '2,x'"),
        (["--labels", "2,2"], "list distinct label values"),
        (["-o", "scores.xlsx"], "scores.xlsx: found the suffix '.xlsx'"),
        (["--labels", "255"], "255, which is to be ignored"),
    ],
)
def test_wrong_usage_exits_2_in_one_line(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, pair), *options])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("app")
def test_a_missing_folder_exits_2_and_an_unreadable_mapping_1(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, code in (
        ([str(tmp_path / "nowhere"), str(pair[1])], 2),
        ([*map(str, pair), "--mapping", str(tmp_path / "none.csv")], 1),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", *arguments])
        assert stop.value.code == code
    assert "nowhere: found no such file or folder" in capsys.readouterr().err


def test_a_real_truth_agrees_with_its_own_conversion(shared: Path) -> None:
    folder = shared / "data" / "validation"
    mapping = read_mapping(folder / "braincolor_to_aseg.csv")
    truth, predicted = folder / "mni" / "mni152lin_2mm_braincolor.nii.gz", folder / "mni" / "mni152lin_2mm_aseg.nii.gz"
    result = evaluate_pair(predicted, truth, EvaluationConfig(mapping=mapping))
    assert len(result.rows) == 31
    assert min(row.dice for row in result.rows) > 0.99
    assert max(row.sd95_mm for row in result.rows) == 0


def test_a_label_that_was_asked_for_and_is_in_neither_map_is_noted(tmp_path: Path) -> None:
    paths = save(tmp_path / "p.nii", brain()), save(tmp_path / "t.nii", brain())
    result = evaluate_pair(*paths, EvaluationConfig(values=(41, 998, 999)))
    assert "in neither map, so without a score: 998, 999" in result.notes
    assert "in neither map" not in " ".join(evaluate_pair(*paths, EvaluationConfig(values=(41,))).notes)
