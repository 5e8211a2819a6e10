"""Weights of every role: which network a card builds, and how lists and cards say what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from plus_helpers import SHIPPED
from synthseg.cli.weights import weights_app
from synthseg.errors import WeightsError
from synthseg.labels import load_protocol
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.weights import (
    ROLES,
    build_network,
    list_weights,
    load_weights,
    make_card,
    protocol_of,
    save_weights,
    store,
    verify_weights,
)

ENCODER = EncoderConfig(features=2, levels=2, kernel=3, expected_dice=True)
UNET = UNetConfig(in_channels=5, out_channels=5, features=2, levels=2, convs_per_level=1, dropped_skips=1, patch=2)


def encoder_card(**facts: Any) -> dict[str, Any]:
    card = make_card("quality", ENCODER.to_dict(), load_protocol("quality-groups"), spacing_mm=2.0)
    return {**card, "role": "quality", "soft_inputs": True, **facts}


def save_encoder(folder: Path, **facts: Any) -> Path:
    torch.manual_seed(1)
    network = Encoder(ENCODER)
    torch.nn.init.normal_(network.final[-1].weight)
    return save_weights(folder / "quality.safetensors", network.state_dict(), encoder_card(**facts))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "SHIPPED_DIR", tmp_path / "empty")
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_an_encoders_card_builds_the_encoder_it_came_from(tmp_path: Path) -> None:
    weights = load_weights(save_encoder(tmp_path))
    built = build_network(weights)
    assert isinstance(built, Encoder)
    assert built.config == ENCODER
    assert not built.training
    torch.manual_seed(1)
    network = Encoder(ENCODER).eval()
    torch.nn.init.normal_(network.final[-1].weight)
    x = torch.rand(2, 9, 7, 6, 5).softmax(dim=1)
    torch.testing.assert_close(built(x), network(x), rtol=0, atol=0)
    assert protocol_of(weights).target_values.tolist() == list(range(9))
    checks = verify_weights(tmp_path / "quality.safetensors").checks
    assert "role quality" in checks
    assert any(check.startswith("encoder with") for check in checks)


def test_an_encoder_with_other_outputs_than_its_protocols_groups_is_refused(tmp_path: Path) -> None:
    path = save_encoder(tmp_path, architecture={**ENCODER.to_dict(), "out_channels": 8, "expected_dice": False})
    with pytest.raises(WeightsError, match="8 output channels for the 9 labels of quality-groups"):
        verify_weights(path)


def test_an_encoder_does_not_pass_for_a_unet_nor_the_other_way(tmp_path: Path) -> None:
    path = save_encoder(tmp_path, architecture={**UNetConfig(out_channels=9).to_dict(), "kind": "unet"})
    with pytest.raises(WeightsError, match=r"do not fit the card's architecture.*missing.*left over"):
        build_network(load_weights(path))
    path = save_encoder(tmp_path, architecture={"kind": "encoder", "dropped_skips": 1})
    with pytest.raises(WeightsError, match=r"cannot be built.*unknown key 'dropped_skips'"):
        build_network(load_weights(path))
    path = save_encoder(tmp_path, architecture={"kind": "forest"})
    with pytest.raises(WeightsError, match="this synthseg builds 'unet' and 'encoder'"):
        build_network(load_weights(path))


def test_a_card_without_a_role_is_of_structures_and_every_role_is_taken(folder: Path) -> None:
    plain = make_card("five", UNET.to_dict(), load_protocol("tissue-groups"), spacing_mm=2.0)
    save_weights(folder / "plain.safetensors", UNet(UNET).state_dict(), plain)
    for role in ROLES:
        save_weights(folder / f"{role}.safetensors", UNet(UNET).state_dict(), {**plain, "role": role})
    assert {entry.name: entry.role for entry in list_weights()} == {"plain": "structures", **{r: r for r in ROLES}}
    assert isinstance(build_network(load_weights("denoiser")), UNet)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"role": "robust"}, "a card with role = 'robust', none of structures, tissues, denoiser, guided, parcels"),
        ({"role": None}, "a card with role = None"),
        ({"soft_inputs": "yes"}, "a card with soft_inputs = 'yes', neither true nor false"),
    ],
)
def test_a_card_with_an_unknown_role_is_refused_when_written(
    tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_encoder(tmp_path, **facts)
    assert list(tmp_path.iterdir()) == []


def test_list_and_show_say_the_role(folder: Path) -> None:
    save_encoder(folder)
    (folder / "cut.safetensors").write_bytes(b"short")
    listed = CliRunner().invoke(weights_app, ["list"])
    assert listed.exit_code == 0
    (line,) = [line for line in listed.output.splitlines() if "quality-groups" in line]
    assert line.split()[:3] == ["quality", "quality", "quality-groups"]
    shown = CliRunner().invoke(weights_app, ["show", "quality"])
    assert shown.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in shown.output.splitlines() if len(line.split()) > 1)
    assert facts["role"].strip() == "quality"
    assert facts["soft_inputs"].strip() == "True"
    assert facts["architecture"].startswith("encoder (convs_per_level 2, expected_dice True")
    card = make_card("five", UNET.to_dict(), load_protocol("tissue-groups"), spacing_mm=2.0)
    save_weights(folder / "five.safetensors", UNet(UNET).state_dict(), card)
    assert "role          structures" in CliRunner().invoke(weights_app, ["show", "five"]).output


def test_every_role_has_a_shipped_name_and_a_missing_file_is_told_like_any_other(folder: Path) -> None:
    assert list(SHIPPED) == list(ROLES)
    assert SHIPPED["structures"] == store.ALIASES["default"]
    save_encoder(folder)
    for name in SHIPPED.values():
        with pytest.raises(WeightsError, match=rf"weights '{name}': found no weights of that name.*\(quality\)"):
            load_weights(name)
