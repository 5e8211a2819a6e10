"""Weights for another organ than the brain: no mirror image, no brain locator, no brain window, names of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiac_helpers import HEART, Halves, heart, save_heart_weights
from synthseg.errors import UsageError, WeightsError
from synthseg.inference import InferenceConfig, Model, Segmenter, Want
from synthseg.inference.model import load_model
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, write_volume


def bright_block(side: int = 24, spacing_mm: float = 4.0) -> Volume:
    data = np.zeros((side, side, side), dtype=np.float32)
    data[4:-4, 6:-6, 6:-6] = 100.0
    return Volume(data, np.diag([spacing_mm] * 3 + [1.0]))


def halves(*, flip: bool = False, organ: str = "heart") -> tuple[Halves, Model]:
    network = Halves()
    protocol = load_protocol("whole-heart")
    return network, Model.from_network(network, protocol, spacing_mm=4.0, multiple=4, organ=organ, flip=flip)


def test_a_heart_is_never_averaged_with_its_mirror_image() -> None:
    scan = bright_block()
    network, model = halves()
    labels = Segmenter(model, config=InferenceConfig(smoothing_sigma_vox=0)).segment(scan).labels.data
    assert network.passes == 1
    assert set(np.unique(labels[4:12, 6:-6, 6:-6])) == {500}
    assert set(np.unique(labels[12:-4, 6:-6, 6:-6])) == {600}
    mirrored, model = halves(flip=True)  # the same network, where nothing rules the mirror image out
    mixed = Segmenter(model, config=InferenceConfig(smoothing_sigma_vox=0)).segment(scan).labels.data
    assert mirrored.passes == 2
    assert not np.array_equal(mixed, labels)


def test_the_settings_in_use_say_so_whatever_was_asked_for() -> None:
    _, model = halves()
    segmenter = Segmenter(model)
    assert not segmenter.config.flip
    assert not segmenter.with_config(InferenceConfig(flip=True)).config.flip
    assert Segmenter(halves(flip=True)[1]).config.flip


def test_the_totals_and_names_are_those_of_a_heart() -> None:
    _, model = halves()
    found = Segmenter(model).segment(bright_block())
    assert found.total_name == "total segmented"
    volumes = found.volumes_by_name()
    assert list(volumes) == ["total segmented", *load_protocol("whole-heart").names[1:]]
    assert volumes["total segmented"] == pytest.approx(volumes["left ventricle"] + volumes["right ventricle"], rel=1e-3)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_weights_for_a_heart_bring_no_locator_of_brains(tmp_path: Path, norm: str) -> None:
    field = {"field_of_view_mm": [96.0, 96.0, 96.0]} if norm == "instance" else {}
    path = save_heart_weights(tmp_path, norm=norm, **HEART, **field)
    assert set(Segmenter(path).models) == {"structures"}
    brain = save_heart_weights(tmp_path, norm=norm, **field)  # the same file without a word about its organ
    assert set(Segmenter(brain).models) == {"structures", "locator"}


def test_a_scan_without_a_locator_is_segmented_whole_and_nothing_is_said_of_brains(tmp_path: Path) -> None:
    path = save_heart_weights(tmp_path, **HEART)
    data = np.random.default_rng(0).random((56, 56, 40), dtype=np.float32)
    scan = Volume(data, np.diag([4.0, 4.0, 4.0, 1.0]))  # larger than what is worth cutting
    segmenter = Segmenter(path)
    prepared, _ = segmenter.focused(segmenter.prepare(scan))
    assert prepared.window == prepared.whole
    assert not prepared.notes


def test_a_heart_is_looked_for_by_its_own_network() -> None:
    _, model = halves()
    model = replace(model, field_of_view_mm=(64.0, 64.0, 64.0))
    segmenter = Segmenter(model)
    prepared, _ = segmenter.focused(segmenter.prepare(bright_block(32)))
    assert min(prepared.window.shape) < 32
    empty = bright_block(32)
    empty.data[:] = 0
    empty.data[8:16, 8:18, 8:13] = 1.0  # 26 ml, as little as a vessel
    note = segmenter.focused(segmenter.prepare(empty))[0].notes[-1]
    assert note.startswith("no heart was seen")


def ct_scan() -> Volume:
    data = np.full((24, 24, 24), 50.0, dtype=np.float32)
    data[:8] = -1000
    data[10:14] = 350
    return Volume(data, np.diag([4.0, 4.0, 4.0, 1.0]))


@pytest.mark.parametrize(
    ("stated", "asked", "limits"),
    [
        ({**HEART, "ct_window": [-200.0, 600.0]}, {}, (-200, 350)),  # its own window, recognised as CT
        ({**HEART}, {}, (-1000, 350)),  # none: contrast agent is not cut off at the brain's 80 HU
        ({**HEART}, {"ct": True}, (0, 80)),  # the settings', on request
        ({**HEART, "ct_window": [-200.0, 600.0]}, {"ct_window": (0.0, 300.0)}, (0, 300)),  # the caller's own
        ({**HEART, "ct_window": [-200.0, 600.0]}, {"ct": False}, (-1000, 350)),
        ({}, {}, (0, 80)),  # brains as ever
    ],
)
def test_ct_is_clipped_to_the_window_of_the_organ(
    tmp_path: Path, stated: dict[str, Any], asked: dict[str, Any], limits: tuple[float, float]
) -> None:
    path = save_heart_weights(tmp_path, **stated)
    segmenter = Segmenter({"structures": path}, config=InferenceConfig(**asked))
    working = segmenter.prepare(ct_scan()).working
    assert (working.min(), working.max()) == limits


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"organ": ""}, "organ = ''"),
        ({"organ": 3}, "organ = 3"),
        ({"flip": "no"}, "flip = 'no', neither true nor false"),
        ({"ct_window": [80.0, 0.0]}, r"ct_window = \[80.0, 0.0\]"),
        ({"ct_window": 80.0}, "ct_window = 80.0"),
    ],
)
def test_a_card_with_a_wrong_fact_is_refused(tmp_path: Path, facts: dict[str, Any], problem: str) -> None:
    with pytest.raises(WeightsError, match=problem):
        save_heart_weights(tmp_path, **facts)


def test_a_card_without_these_facts_is_one_for_brains(tmp_path: Path) -> None:
    model = load_model(save_heart_weights(tmp_path))
    assert (model.organ, model.flip, model.ct_window) == ("brain", True, None)
    assert model.settings(InferenceConfig()) == InferenceConfig()


@pytest.mark.parametrize(
    ("options", "problem"), [({"parcels": True}, "no cerebral cortex"), ({"quality": True}, "no quality groups")]
)
def test_what_needs_a_brain_is_refused(tmp_path: Path, options: dict[str, bool], problem: str) -> None:
    path = save_heart_weights(tmp_path, **HEART)
    with pytest.raises(WeightsError, match=problem):
        Segmenter(path, **options)
    with pytest.raises(WeightsError, match="in mode robust"):
        Segmenter(path, "robust")


def test_tissue_maps_of_a_heart_are_refused() -> None:
    _, model = halves()
    with pytest.raises(UsageError, match="tissue"):
        Segmenter(model).segment(bright_block(), Want(tissue_maps=True))


def test_the_command_writes_tables_of_a_heart(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    weights = save_heart_weights(tmp_path, **HEART)
    scan = write_volume(bright_block(), tmp_path / "scan.nii.gz")
    volumes = tmp_path / "out" / "volumes.csv"
    code, _, err = command("segment", scan, "-o", tmp_path / "out", "--weights", weights, "--volumes", volumes)
    assert code == 0, err
    header = volumes.read_text().splitlines()[0]
    assert header.split(",") == ["subject", *load_protocol("whole-heart").names[1:]]  # no intracranial volume


def test_a_mirrored_heart_is_another_map() -> None:
    # What the card's fact stands for: no relabelling turns the mirror image back into the heart.
    data = heart().data
    assert not np.array_equal(data[::-1], data)
    protocol = load_protocol("hvsmr")
    assert protocol.partner_channel.tolist() == list(range(len(protocol)))
