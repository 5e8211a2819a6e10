"""Networks and settings that the original's steps are not made for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plus_helpers import QUALITY, STRUCTURES
from synthseg.errors import UsageError, WeightsError
from synthseg.inference.model import Model
from synthseg.inference.original.strict import StrictSegmenter
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig


def structures(spacing_mm: float = 1.0) -> Model:
    network = UNet(UNetConfig(out_channels=33, features=2, levels=2))
    return Model.from_network(network, STRUCTURES, spacing_mm=spacing_mm, multiple=2, name="ours")


def quality() -> Model:
    network = Encoder(EncoderConfig(features=2, levels=2, kernel=3))
    return Model.from_network(network, QUALITY, spacing_mm=1.0, multiple=2, role="quality")


@pytest.mark.parametrize(
    ("models", "match"),
    [
        ({"structures": structures(2.0)}, "voxels of 2 mm"),
        ({"structures": replace(structures(), field_of_view_mm=(128.0, 128.0, 128.0))}, "field of view"),
        ({"structures": replace(structures(), multiple=48)}, "multiples of 48"),
        ({"structures": structures(), "quality": replace(quality(), soft_inputs=True)}, "reads posteriors"),
    ],
)
def test_networks_of_another_kind_are_refused(models: dict[str, Model], match: str) -> None:
    with pytest.raises(WeightsError, match=match) as refused:
        StrictSegmenter(models, device="cpu")
    assert "synthseg-2.0" in refused.value.fix


def test_settings_that_make_no_sense_are_refused() -> None:
    models = {"structures": structures(), "quality": quality()}
    with pytest.raises(UsageError, match="crop"):
        StrictSegmenter(models, crop=[1, 2], device="cpu")
    with pytest.raises(UsageError, match="threads"):
        StrictSegmenter(models, threads=0, device="cpu")
    with pytest.raises(UsageError, match="device"):
        StrictSegmenter(models, device="abacus")


def test_a_locator_takes_no_part() -> None:
    models = {"locator": replace(structures(2.0), role="tissues"), "structures": structures()}
    assert list(StrictSegmenter(models, device="cpu").models) == ["structures"]
