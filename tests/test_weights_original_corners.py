"""The original's files in odd places: dead links, closed folders, names in use, other commands that take weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from chain_helpers import CHAIN, make_yard, run
from keras_files import unet, write_family, write_keras
from synthseg.errors import UsageError, WeightsError
from synthseg.inference.bundle import gather
from synthseg.weights import hdf5 as hdf5_module
from synthseg.weights import import_keras, list_weights, load_weights, locate, save_weights, use_model_dir
from synthseg.weights.keras import survey

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _nothing_set(no_originals: None, wide_terminal: None) -> None:
    """Before any other fixture sets one of these."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    write_family(folder, features=2, levels=4)
    return folder


def test_a_dead_link_is_listed_with_its_problem(tmp_path: Path, command: Command) -> None:
    for name in ("gone.h5", "lost.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    code, out, _ = command("weights", "list", "--model-dir", tmp_path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "no such file" in line] == ["gone", "lost"]


def test_a_link_to_a_file_is_the_file(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "synthseg_2.0.h5").symlink_to(family / "synthseg_2.0.h5")
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(tmp_path))
    expected = load_weights(family / "synthseg_2.0.h5").card["sha256"]
    assert load_weights("synthseg-2.0").card["sha256"] == expected


def test_brackets_in_a_files_names_are_printed_as_they_are(tmp_path: Path, command: Command) -> None:
    path = write_keras(tmp_path / "mine[1].h5", [unet("unet", features=1, levels=2, n_out=5)])
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = np.array([b"[/red]x", b"[bold]y"])
    code, out, _ = command("weights", "list", "--model-dir", tmp_path)
    assert code == 0
    assert "mine[1]" in out
    assert "the layer '[' in the list" in out or "'[/red]x'" in out


def test_brackets_in_a_card_are_printed_as_they_are(family: Path, tmp_path: Path, command: Command) -> None:
    weights = load_weights(family / "synthseg_2.0.h5")
    path = save_weights(tmp_path / "x.safetensors", weights.tensors, {**weights.card, "data": "[/b] maps [20]"})
    code, out, _ = command("weights", "show", path)
    assert (code, "[/b] maps [20]" in out) == (0, True)


def test_a_freesurfer_without_networks_is_said_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"synthseg_2\.0\.h5 .*/models \(no folder that can be read") as caught:
        locate("synthseg-2.0")
    assert "is not set" not in caught.value.found


def test_a_folder_that_must_not_be_read_is_told_or_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "models"
    closed.mkdir()
    there = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: there(path, mode) and (mode == os.F_OK or path != closed))
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path))
    assert {entry.source for entry in list_weights()} == {"shipped"}
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(closed))
    with pytest.raises(WeightsError, match=r"SYNTHSEG_WEIGHTS_DIR: found .*not a folder that can be read"):
        locate("default")
    with pytest.raises(UsageError, match=r"--model-dir .*models: found a folder that cannot be read"):
        use_model_dir(closed)


def test_a_file_that_must_not_be_read_is_told(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        WeightsError, match=r"synthseg_2\.0\.h5: found a file that cannot be read \(Permission denied\)"
    ):
        load_weights(family / "synthseg_2.0.h5")


def test_a_file_of_one_network_does_not_hide_the_others_of_its_family(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keras(tmp_path / "synthseg-2.0.h5", [unet("unet", features=2, levels=2, n_out=33)])
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(family))
    assert locate("synthseg-2.0").path == tmp_path / "synthseg-2.0.h5"
    assert locate("synthseg-2.0", "guided").path == family / "synthseg_robust_2.0.h5"
    assert load_weights("synthseg-2.0-quality").path == family / "synthseg_qc_2.0.h5"


@pytest.mark.parametrize("name", ["default", "compact", "synthseg-2mm", "synthseg-2mm-parcels"])
def test_an_import_does_not_take_the_name_of_weights_of_the_package(family: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"the name {name!r}: found that of weights that come with the package"):
        import_keras(family / "synthseg_2.0.h5", tmp_path, name=name)
    copied = tmp_path / f"{name}.h5"
    copied.write_bytes((family / "synthseg_2.0.h5").read_bytes())
    with pytest.raises(UsageError, match="Fix: call it otherwise: --name NAME"):
        import_keras(copied, tmp_path)
    assert list(tmp_path.iterdir()) == [copied]


def test_an_archive_that_unpacks_to_more_than_any_network_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_keras(tmp_path / "x.h5", [unet("unet", features=2, levels=2, n_out=5)])
    with h5py.File(path) as file:
        sizes: list[int] = []
        file.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    monkeypatch.setattr(hdf5_module, "FILE_BYTES", sum(sizes))
    assert len(survey(path).networks) == 1
    monkeypatch.setattr(hdf5_module, "FILE_BYTES", sum(sizes) - 1)
    with pytest.raises(WeightsError, match=f"found {sum(sizes):,} bytes of arrays at "):
        survey(path)


@pytest.mark.parametrize("kind", ["f2", "f8"])
def test_numbers_of_another_precision_are_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = write_keras(tmp_path / "x.h5", [unet("unet", features=1, levels=2, n_out=5)])
    with h5py.File(path, "r+") as file:
        values = file["unet_likelihood/unet_likelihood/bias:0"][()]
        del file["unet_likelihood/unet_likelihood/bias:0"]
        file["unet_likelihood/unet_likelihood/bias:0"] = values.astype(kind)
    with pytest.raises(WeightsError, match=r"type float.* in /unet_likelihood/.*not float32. Fix: .*float32 weights"):
        survey(path)


def test_numbers_of_the_other_byte_order_are_the_same_numbers(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "x.h5", [unet("unet", features=1, levels=2, n_out=5)])
    expected = load_weights(path).card["sha256"]
    place = "unet_conv_downarm_0_0/unet_conv_downarm_0_0/kernel:0"
    with h5py.File(path, "r+") as file:
        values = file[place][()]
        del file[place]
        file[place] = values.astype(">f4")
    assert load_weights(path).card["sha256"] == expected


def test_doctor_looks_where_segment_looks(family: Path, command: Command) -> None:
    code, out, _ = command("doctor", "--weights", "synthseg-2.0", "--model-dir", family, "--json")
    assert code == 0
    used = {entry["name"] for entry in json.loads(out)["weights"] if entry["used"]}
    assert "synthseg-2.0" in used


def test_one_network_of_several_is_exported_by_its_role(family: Path, tmp_path: Path, command: Command) -> None:
    robust, target = family / "synthseg_robust_2.0.h5", tmp_path / "x.onnx"
    code, _, err = command("weights", "export", robust, "--onnx", target)
    assert (code, "3 networks in one file" in err) == (1, True)
    code, out, _ = command(
        "weights", "export", "synthseg-2.0", "--role", "tissues", "--model-dir", family, "--onnx", target
    )
    assert (code, target.is_file()) == (0, True)
    assert f"sha256: {load_weights(robust, 'tissues').card['sha256']}" in out


def test_a_chain_may_begin_with_a_keras_file_beside_it_and_cites_it(tmp_path: Path) -> None:
    folder = make_yard(tmp_path / "yard")
    start = write_keras(folder / "start.h5", [unet("unet", features=4, levels=2, n_out=33)])
    first = CHAIN.split("[[stages]]")[1] + 'init = "start.h5"\n'
    (folder / "one.toml").write_text(f"[[stages]]{first}", encoding="utf-8")
    assert run(folder / "one.toml", tmp_path / "run").finished
    recorded = json.loads((tmp_path / "run" / "structures" / "stage.json").read_text(encoding="utf-8"))
    assert recorded["inputs"] == {"init": load_weights(start).card["sha256"]}
    assert run(folder / "one.toml", tmp_path / "run", resume=True).finished


def test_add_ons_are_of_the_family_that_a_role_names(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(family))
    models = gather("default", {"structures": "synthseg-1.0"}, parcels=True, quality=True, locator=False)
    assert [model.name for model in models.values()] == ["synthseg-1.0", "synthseg-2.0-parcels", "synthseg-2.0-quality"]


def test_a_damaged_network_leaves_none_of_its_file_imported(tmp_path: Path) -> None:
    chain = [
        unet("unet", seed=1, features=2, levels=2, n_out=5),
        unet("l2l", seed=2, features=2, levels=2, n_in=5, n_out=5),
        unet("unet2", seed=3, features=2, levels=2, n_in=6, n_out=33),
    ]
    chain[2]["unet2_bn_down_0"]["moving_variance"][:] = -1
    path = write_keras(tmp_path / "synthseg_robust_2.0.h5", chain)
    with pytest.raises(WeightsError, match="unet2_bn_down_0"):
        import_keras(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
