"""The demonstration: its template, its files, and what is said when a package for it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import COARSE, NAMES, band_model, phantom, phantom_affine, save_random_weights
from synthseg.cli import main
from synthseg.errors import UsageError
from synthseg.inference import Segmenter
from synthseg.report import demo
from synthseg.volumes import Volume

FILES = ["template.nii.gz", "template_synthseg.nii.gz", "template_synthseg.json", "template_synthseg_overlay.png"]


@pytest.fixture
def template() -> Volume:
    return Volume(phantom(spacing_mm=COARSE), phantom_affine(COARSE))


def test_the_demo_writes_what_it_says_it_writes(tmp_path: Path, template: Volume) -> None:
    pytest.importorskip("matplotlib")
    result = demo.run_demo(Segmenter(band_model(spacing_mm=2.0), "fast"), tmp_path / "out", template)
    assert [path.name for path in result.files] == [*FILES[:2], FILES[3], FILES[2], "volumes.tsv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "volumes.tsv"])
    assert list(result.volumes_mm3) == NAMES
    # Independent of all posteriors: the larger, right-hand shell of the phantom is where the picture is 350.
    shell = 8 * float((template.data[18:] == 350).sum())
    assert result.volumes_mm3["right cerebral white matter"] == pytest.approx(shell, rel=0.1)
    labels = nib.load(tmp_path / "out" / FILES[1])  # type: ignore[attr-defined]
    np.testing.assert_allclose(labels.affine, template.affine)
    table = [line.split("\t") for line in (tmp_path / "out" / "volumes.tsv").read_text().splitlines()]
    assert {row[2]: float(row[3]) for row in table[1:]} == result.volumes_mm3
    again = demo.run_demo(Segmenter(band_model(spacing_mm=2.0), "fast"), tmp_path / "out", template)
    assert again == result  # a second demo is not skipped, and nothing is left over from the first


def test_a_demo_that_fails_raises_the_reason(tmp_path: Path, template: Volume) -> None:
    pytest.importorskip("matplotlib")
    empty = Volume(np.zeros_like(template.data), template.affine)
    with pytest.raises(Exception, match=r"template\.nii\.gz: found a constant image: every voxel is 0"):
        demo.run_demo(Segmenter(band_model(spacing_mm=2.0)), tmp_path / "out", empty)


def test_without_matplotlib_the_demo_stops_before_it_writes(
    tmp_path: Path, template: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"found no matplotlib.*synthseg\[report\]"):
        demo.run_demo(Segmenter(band_model(spacing_mm=2.0)), tmp_path / "out", template)
    assert not (tmp_path / "out").exists()


def test_the_template_is_the_packages_brain_on_its_grid() -> None:
    pytest.importorskip("nilearn")
    template = demo.load_template()
    assert template.data.dtype == np.float32
    np.testing.assert_allclose(template.spacing_mm, 1)
    brain = template.data > 0
    assert 1.4e6 < brain.sum() < 2.2e6  # mm3: a skull-stripped adult brain with its CSF
    voxels = np.argwhere(brain)
    centre = template.affine[:3, :3] @ voxels.mean(axis=0) + template.affine[:3, 3]
    assert np.abs(centre - [0, -20, 15]).max() < 10  # MNI space: left-right in the middle, front and top in front


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *map(str, arguments)])
    return int(exit_.value.code or 0)


def test_the_command_prints_paths_and_volumes(
    tmp_path: Path, template: Volume, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "load_template", lambda: template)
    weights = save_random_weights(tmp_path / "tiny.safetensors")
    assert command("-o", tmp_path / "out", "--weights", weights, "--fast", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    paths = [Path(line) for line in lines if line.startswith(str(tmp_path))]
    assert [path.name for path in paths] == [*FILES[:2], FILES[3], FILES[2], "volumes.tsv"]
    assert all(path.is_file() for path in paths)
    assert [line.split(":")[0] for line in lines[len(paths) :]] == [
        "total intracranial", "left hippocampus", "right hippocampus", "brain-stem"
    ]  # fmt: skip
    assert all(line.endswith(" ml") for line in lines[len(paths) :])


def test_without_nilearn_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    assert command("-o", tmp_path / "out") == 2
    assert 'found no nilearn, whose template it segments. Fix: install it with: pip install "synthseg[demo]"' in (
        capsys.readouterr().err
    )
