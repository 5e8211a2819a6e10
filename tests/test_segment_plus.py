"""`synthseg segment` with what SynthSeg+ adds: parcels, quality, error bars, tissue maps, the robust mode."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference_helpers import coarse_scan
from outputs_helpers import GOOD, parcels_model, quality_model, save_cortex_weights
from synthseg.cli import main
from synthseg.errors import WeightsError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_cortex_weights(tmp_path_factory.mktemp("weights") / "cortex.safetensors")


@pytest.fixture
def command(weights, capsys):
    """Run `synthseg segment ARGUMENTS`: (exit code, standard output)."""

    def run(*arguments: object, weights: object = weights) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["segment", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])
        return int(exit_.value.code or 0), capsys.readouterr().out

    return run


@pytest.fixture
def add_ons(monkeypatch):
    """Hand-made networks in place of the shipped ones that --parc and --qc use; its entries may be exchanged."""
    from synthseg.inference import bundle

    models = {"parcels": parcels_model(), "quality": quality_model(*GOOD)}
    monkeypatch.setattr(bundle, "add_on_weights", models.__getitem__)
    return models


def test_parcels_quality_error_bars_and_tissues_in_one_call(tmp_path, command, add_ons):  # noqa: ARG001
    scan = coarse_scan(tmp_path / "a.nii.gz")
    tables = ["--volumes", tmp_path / "v.csv", "--qc", tmp_path / "q.tsv"]
    options = ["--fast", "--parc", "--repeat", 2, "--tissue-maps", *tables]
    code, said = command(scan, "-o", tmp_path / "out", *options)
    assert code == 0
    assert re.search(r"done: .*a.nii.gz \(.* ml, 95 % \d+ to \d+\)\n  quality: pass \(lowest predicted Dice 0.82", said)
    assert f"1 done; results in {tmp_path / 'out'}, volumes in {tmp_path / 'v.csv'}, quality in" in said
    assert said.endswith("quality: 1 pass, 0 warn, 0 fail\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"a_synthseg{end}.nii.gz" for end in ("", "_gm", "_wm", "_csf")),
        "a_synthseg.json",
    }
    header = (tmp_path / "v.csv").read_text().splitlines()[0]
    assert "ctx-rh-insula,total intracranial mean" in header
    assert header.endswith("ctx-rh-insula high,segmentations")
    assert len((tmp_path / "q.tsv").read_text().splitlines()) == 1 + 9


def test_scans_that_fail_quality_control_are_named_and_the_exit_code_stays_0(tmp_path, command, add_ons):
    add_ons["quality"] = quality_model(0.5, 0.7, *GOOD[2:])
    scans = [coarse_scan(tmp_path / f"{name}.nii.gz") for name in "ab"]
    arguments = (*scans, "-o", tmp_path / "out", "--fast", "--qc", tmp_path / "q.csv")
    for status in ("done", "skipped"):
        code, said = command(*arguments)
        assert code == 0
        assert f"2 {status}" in said
        summary = said[said.index("quality: 0 pass") :]
        assert summary.splitlines()[0] == "quality: 0 pass, 0 warn, 2 fail"
        for scan in scans:
            assert f"  {scan}: fail: predicted Dice too low for general white matter (0.50, limit 0.65)" in summary
    assert (tmp_path / "q.csv").read_text().count(",fail") == 2


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        (["--robust"], "robust"),
        (["--mode", "robust"], "robust"),
        (["--robust", "--mode", "robust"], "robust"),
        (["--robust", "--fast"], "robust-fast"),
        (["--mode", "robust-fast"], "robust-fast"),
    ],
)
def test_options_choose_the_networks(tmp_path, command, monkeypatch, mode, name):
    from synthseg.inference import segmenter

    asked = []

    def gather(*arguments, **options):
        asked.append((*arguments, options))
        raise WeightsError("weights", found="none", fix="none")

    monkeypatch.setattr(segmenter, "gather", gather)
    scan = coarse_scan(tmp_path / "a.nii.gz")
    code, _ = command(scan, "-o", tmp_path, *mode, "--parc", "--qc", tmp_path / "q.csv", weights="default")
    assert code == 1
    assert asked == [(name, "default", {"parcels": True, "quality": True, "protocol": None})]
