"""`synthseg weights`: what is printed, and the exit codes."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from synthseg.cli.weights import weights_app
from synthseg.errors import WeightsError
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.weights import make_card, save_weights, store

CONFIG = UNetConfig(out_channels=33, features=1, levels=2, convs_per_level=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "SHIPPED_DIR", tmp_path / "empty")
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    facts = {"steps": 12_000, "scores": {"dice": 0.875, "sd95_mm": 1.5}, "data": "20 maps"}
    card = make_card("tiny", CONFIG.to_dict(), load_protocol("synthseg-2.0"), spacing_mm=2.0, facts=facts)
    save_weights(tmp_path / "tiny.safetensors", UNet(CONFIG).state_dict(), card)
    return tmp_path


def test_list_shows_each_file_and_what_is_wrong_with_it(folder: Path) -> None:
    (folder / "cut.safetensors").write_bytes(b"short")
    result = CliRunner().invoke(weights_app, ["list"])
    assert result.exit_code == 0
    for text in ("tiny", "structures", "synthseg-2.0", "12,000", "cut", "unusable: 5 bytes that are not"):
        assert text in result.output


def test_one_file_that_cannot_be_read_does_not_hide_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "far.safetensors").write_bytes(b"something of a network disk that is gone")
    real = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "far.safetensors":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    result = CliRunner().invoke(weights_app, ["list"])
    assert result.exit_code == 0
    assert "12,000" in result.output
    assert "a file that cannot be read (Stale file handle)" in " ".join(result.output.split())


def test_show_prints_the_card_for_people_and_for_machines(folder: Path) -> None:
    result = CliRunner().invoke(weights_app, ["show", "tiny"])
    assert result.exit_code == 0
    for text in ("12,000", "dice: 0.875", "sd95_mm: 1.5", "20 maps", "left hippocampus", "features 1", "not stated"):
        assert text in result.output
    as_json = CliRunner().invoke(weights_app, ["show", str(folder / "tiny.safetensors"), "--json"])
    assert json.loads(as_json.output)["architecture"]["features"] == 1


def test_show_of_an_unknown_name_is_our_error_with_the_known_names(folder: Path) -> None:
    result = CliRunner().invoke(weights_app, ["show", "nothing"])
    assert isinstance(result.exception, WeightsError)
    assert "tiny" in str(result.exception)
    assert folder.name not in str(result.exception)


def test_verify_checks_all_and_fails_when_one_does(folder: Path) -> None:
    good = CliRunner().invoke(weights_app, ["verify"])
    assert good.exit_code == 0
    assert good.output.startswith("ok  tiny")
    data = bytearray((folder / "tiny.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "bad.safetensors").write_bytes(bytes(data))
    both = CliRunner().invoke(weights_app, ["verify", "bad", "tiny", "absent"])
    assert both.exit_code == 1
    assert "ok  tiny" in both.output
    assert "FAILED" in both.output
    assert "bad.safetensors: found tensors whose hash" in both.output
    assert "weights 'absent': found no weights of that name" in both.output


def test_verifying_nothing_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHIPPED_DIR", tmp_path / "empty")
    monkeypatch.delenv("SYNTHSEG_WEIGHTS_DIR", raising=False)
    result = CliRunner().invoke(weights_app, ["verify"])
    assert result.exit_code == 1
    assert "nothing to verify" in result.output
