"""The long table and the metrics asked for, from the command line and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation import EvaluationConfig, evaluate_pair, read_long, write_long, write_scores
from synthseg.evaluation.measurements import Measurement
from synthseg.metrics import METRICS, surface_distances

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])
Command = Callable[..., tuple[int, str, str]]


def brain(shift: int = 0) -> np.ndarray:
    labels = np.zeros((14, 12, 11), dtype=np.int32)
    labels[1 + shift : 6 + shift, 2:9, 2:7] = 2
    labels[7 + shift : 11 + shift, 2:9, 2:7] = 41
    return labels


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels.astype(np.int32), affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for i in (1, 2):
        save(tmp_path / "mine" / f"s{i}_synthseg.nii.gz", brain(i))
        save(tmp_path / "t" / f"s{i}_aseg.nii.gz", brain())
    return tmp_path / "mine", tmp_path / "t"


def test_the_command_writes_every_metric_of_every_structure(
    command: Command, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    long = tmp_path / "long.tsv"
    code, out, _ = command("evaluate", *folders, "--long", long, "--tolerance", 1.5)
    assert code == 0
    assert f"32 values written to {long}" in out
    assert "[1/2] s1_synthseg: mean Dice" in out
    assert long.read_text().splitlines()[0].split("\t") == [
        *("scan", "method", "label", "structure", "metric", "value", "unit")
    ]
    rows = read_long(long)
    assert [(row.scan, row.label) for row in rows[::8]] == [("s1", "2"), ("s1", "41"), ("s2", "2"), ("s2", "41")]
    assert {row.method for row in rows} == {"mine"}
    assert [row.metric for row in rows[:8]] == list(METRICS)
    units = {row.metric: row.unit for row in rows}
    assert units == METRICS | {"surface_dice": "within 1.5 mm"}
    values = {(row.scan, row.label, row.metric): row.value for row in rows}
    assert values["s1", "41", "dice"] == pytest.approx(3 / 4)
    assert values["s1", "41", "hausdorff"] == 1.5
    assert values["s1", "41", "surface_dice"] == 1
    assert values["s2", "41", "surface_dice"] < 1
    assert values["s2", "41", "volume_truth"] == 4 * 7 * 5 * 3
    masks = brain(2) == 41, brain() == 41
    assert values["s2", "41", "mean_distance"] == pytest.approx(surface_distances(*masks, (1.5, 1, 2)).mean, rel=1e-7)


def test_only_the_metrics_asked_for_are_measured_and_shown(
    command: Command, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    long, wide = tmp_path / "long.csv", tmp_path / "wide.tsv"
    options = ["--metrics", "hausdorff,volume_similarity", "--long", long, "-o", wide, "--method", "other"]
    code, out, _ = command("evaluate", *folders, *options)
    assert code == 0
    assert "Hausdorff (mm)" in out
    assert "SD95" not in out
    assert {row.metric for row in read_long(long)} == {"hausdorff", "volume_similarity"}
    assert {row.method for row in read_long(long)} == {"other"}
    lines = [line.split("\t") for line in wide.read_text().splitlines()]
    assert lines[0] == ["scan", "label", "structure", "dice", "sd95_mm", "volume_predicted_mm3", "volume_truth_mm3"]
    assert lines[1][3:] == ["0.8", "nan", "525", "525"]  # its columns stay; what was not measured is nan


@pytest.mark.usefixtures("folders")
def test_a_table_of_two_methods_is_summed_up_for_each(command: Command, tmp_path: Path) -> None:
    table, long = tmp_path / "pairs.tsv", tmp_path / "long.tsv"
    rows = [f"mine/s1_synthseg.nii.gz\tt/s1_aseg.nii.gz\ts1\t{method}\n" for method in ("first", "second")]
    table.write_text("predicted\ttruth\tscan\tmethod\n" + "".join(rows))
    code, out, _ = command("evaluate", table, "--long", long, "--metrics", "dice")
    assert code == 0
    assert out.count("Mean Dice over structures") == 2
    assert out.index("first") < out.index("second")
    assert [(row.method, row.scan) for row in read_long(long)[::2]] == [("first", "s1"), ("second", "s1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "dice,hd95"], "metrics: found hd95. Fix: choose from dice, sd95"),
        (["--metrics", "dice,dice"], "each once"),
        (["--metrics", "sd95", "--no-surface"], "metrics: found sd95 without surfaces"),
        (["--tolerance", "-1"], "tolerance: found -1 mm"),
        (["--long", "x.xlsx"], "x.xlsx: found the suffix '.xlsx'"),
        (["--jobs", "0"], "--jobs"),
        (["--long", "x.tsv", "-o", "./x.tsv"], "--long x.tsv: found a file that --out writes"),
    ],
)
def test_wrong_usage_exits_2(command: Command, folders: tuple[Path, Path], options: list[str], message: str) -> None:
    code, _, err = command("evaluate", *folders, *options)
    assert code == 2
    assert message in err


def test_what_is_measured_follows_the_settings() -> None:
    assert EvaluationConfig().measured == tuple(METRICS)
    assert EvaluationConfig(surface=False).measured == (
        *("dice", "volume_similarity", "volume_predicted", "volume_truth"),
    )
    assert EvaluationConfig(metrics=("hausdorff", "dice")).measured == ("dice", "hausdorff")
    with pytest.raises(ConfigError, match="tolerance"):
        EvaluationConfig(tolerance_mm=math.nan)


def test_turned_and_sheared_grids_measure_in_the_world(tmp_path: Path) -> None:
    angle = math.radians(25)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turned, sheared = AFFINE.copy(), AFFINE.copy()
    turned[:3, :3] = turn @ AFFINE[:3, :3]
    sheared[0, 1] = 0.75  # the second axis leans to the right
    for name, affine, spacing in (("turned", turned, (1.5, 1, 2)), ("sheared", sheared, sheared[:3, :3])):
        paths = [save(tmp_path / f"{name}_{i}.nii", brain(i), affine) for i in (1, 0)]
        rows = {row.label: row for row in evaluate_pair(paths[0], paths[1]).rows}
        expected = surface_distances(brain(1) == 2, brain() == 2, spacing)
        assert rows[2].sd95_mm == pytest.approx(expected.p95, rel=1e-6)
        assert rows[2].volume_truth_mm3 == pytest.approx(5 * 7 * 5 * 3, rel=1e-6)


def measurement(scan: str, value: float, **columns: str) -> Measurement:
    return Measurement(
        scan=scan, method="m", label="2", structure="s", metric="sd95", value=value, unit="mm", columns=columns
    )


def test_a_long_table_can_be_read_back(tmp_path: Path) -> None:
    rows = [measurement("a,b", 1 / 3), measurement("c", math.inf, map="x"), measurement("d", math.nan)]
    path = write_long(rows, tmp_path / "deep" / "long.tsv")
    assert "\tinf\tmm\tx\n" in path.read_text()
    assert "\tnan\tmm\t\n" in path.read_text()
    read = read_long(path)
    assert [row.scan for row in read] == ["a,b", "c", "d"]
    assert read[0].value == pytest.approx(1 / 3, rel=1e-7)
    assert read[1].value == math.inf
    assert read[1].columns["map"] == "x"
    assert math.isnan(read[2].value)
    assert [p.name for p in path.parent.iterdir()] == ["long.tsv"]
    with pytest.raises(UsageError, match=r"\*.tsv or \*.csv"):
        write_long(rows, tmp_path / "x.txt")


def test_the_wide_table_does_not_depend_on_the_metrics(tmp_path: Path) -> None:
    paths = save(tmp_path / "p.nii", brain(1)), save(tmp_path / "t.nii", brain())
    config = EvaluationConfig()
    all_of_them, few = (
        evaluate_pair(*paths, c).rows for c in (config, replace(config, metrics=("sd95", "mean_distance")))
    )
    tables = [
        write_scores(rows, tmp_path / name).read_text() for rows, name in ((all_of_them, "a.tsv"), (few, "b.tsv"))
    ]
    assert tables[0] == tables[1]
