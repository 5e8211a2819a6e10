"""What the tests of the command mri_synthseg share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import band_model
from synthseg.cli import mri_synthseg
from synthseg.cli.original import networks
from synthseg.cli.original.networks import Loaded
from synthseg.cli.original.parser import Options
from synthseg.inference.original.like import LikeOriginal

Run = Callable[..., tuple[int, str, str]]
VARIABLES = ("SYNTHSEG_MODEL_DIR", "SYNTHSEG_WEIGHTS_DIR", "FREESURFER_HOME")


def forget_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, no weights of the original's are found unless a test puts them there."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # and taken back after the test, whatever the command sets


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mri_synthseg ARGUMENTS`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            mri_synthseg.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(stop.value.code or 0), out, err

    return run


def use_small_network(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The command with a network of six structures at 1 mm; keeps the options it was given."""
    seen: list[Options] = []

    def load(options: Options) -> Loaded:
        seen.append(options)
        engine = LikeOriginal(band_model(), fast=options.fast, crop=options.crop, keep_geometry=options.keepgeom)
        return Loaded(engine, engine.structures, ("bands",))

    monkeypatch.setattr(networks, "load", load)
    return seen


def labels_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))
