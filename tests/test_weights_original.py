"""The original's files: found where they are, used for every role, imported, and told about when they are missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from keras_files import Layer, encoder_shapes, unet_shapes, write_keras
from synthseg.errors import LabelError, OutputError, UsageError, WeightsError
from synthseg.inference.bundle import gather
from synthseg.inference.model import load_model
from synthseg.labels import Label
from synthseg.labels.table import format_table
from synthseg.weights import build_network, import_keras, list_weights, load_weights, locate, store, verify_weights
from synthseg.weights.files import hash_tensors
from synthseg.weights.original import FAMILIES, FILES, MEMBERS, offers

SIZES = {"features": 1, "levels": 2}
Command = Callable[..., tuple[int, str, str]]


def fill(shapes: dict[str, dict[str, tuple[int, ...]]], seed: int) -> dict[str, Layer]:
    rng = np.random.default_rng(seed)
    return {
        layer: {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in arrays.items()}
        for layer, arrays in shapes.items()
    }


def write_originals(folder: Path, *files: str) -> Path:
    """The original's files with networks of one feature; all of them when none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {
        "synthseg_1.0.h5": [unet_shapes("unet", n_out=32, **SIZES)],
        "synthseg_2.0.h5": [unet_shapes("unet", n_out=33, **SIZES)],
        "synthseg_robust_2.0.h5": [
            unet_shapes("unet", n_out=5, **SIZES),
            unet_shapes("l2l", n_in=5, n_out=5, kernel=5, skips_dropped=1, **SIZES),
            unet_shapes("unet2", n_in=6, n_out=33, **SIZES),
        ],
        "synthseg_parc_2.0.h5": [unet_shapes("unet_parc", n_in=3, n_out=69, **SIZES)],
        "synthseg_qc_2.0.h5": [encoder_shapes("qc", **SIZES)],
    }
    for name in files or networks:
        write_keras(folder / name, [fill(shapes, seed) for seed, shapes in enumerate(networks[name])])
    return folder


@pytest.fixture(autouse=True)
def _nothing_set(no_originals: None, wide_terminal: None) -> None:
    """Before any other fixture sets one of these."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_originals(tmp_path_factory.mktemp("freesurfer") / "models")


@pytest.fixture
def freesurfer(originals: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREESURFER_HOME", str(originals.parent))
    return originals


def test_where_freesurfer_is_installed_every_network_has_a_name_and_a_card(freesurfer: Path) -> None:
    expected = {
        "synthseg-2.0": ("structures", "synthseg-2.0", 33, "unet"),
        "synthseg-1.0": ("structures", "synthseg-1.0", 32, "unet"),
        "synthseg-2.0-tissues": ("tissues", "tissue-groups", 5, "unet"),
        "synthseg-2.0-denoiser": ("denoiser", "tissue-groups", 5, "l2l"),
        "synthseg-2.0-guided": ("guided", "synthseg-2.0", 33, "unet2"),
        "synthseg-2.0-parcels": ("parcels", "desikan-killiany", 69, "unet_parc"),
        "synthseg-2.0-quality": ("quality", "quality-groups", 9, "qc"),
    }
    assert set(expected) == set(MEMBERS)
    for name, (role, protocol, outputs, prefix) in expected.items():
        weights = load_weights(name)
        card = weights.card
        assert (weights.name, card["role"], card["protocol"]["name"]) == (name, role, protocol)
        assert (card["architecture"]["out_channels"], card["source"]["network"]) == (outputs, prefix)
        assert card["spacing_mm"] == 1.0
        assert card.get("field_of_view_mm") == ([224.0] * 3 if role == "quality" else None)
        assert "as distributed with the file" in card["licence"]
        path = freesurfer / MEMBERS[name][0]
        assert weights.path == path
        assert card["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert card["source"]["file"] == path.name
        assert verify_weights(name).name == name
        assert load_model(name, role=role).sha256 == card["sha256"]


def test_a_family_gives_the_network_of_any_of_its_roles(freesurfer: Path) -> None:
    for family, roles in FAMILIES.items():
        assert load_weights(family).card["role"] == "structures"
        for role, name in roles.items():
            assert load_weights(family, role).name == name
    with pytest.raises(WeightsError, match=r"synthseg_robust_2\.0\.h5.*of role 'tissues', which are of no use here"):
        load_weights("synthseg-2.0-tissues", "guided")
    with pytest.raises(WeightsError, match=r"3 networks in one file \(tissues, denoiser, guided\)"):
        load_weights(freesurfer / "synthseg_robust_2.0.h5")
    with pytest.raises(WeightsError, match="weights of role structures, none of role 'parcels'"):
        load_weights(freesurfer / "synthseg_2.0.h5", "parcels")


@pytest.mark.usefixtures("freesurfer")
def test_runs_are_put_together_from_a_family_alone() -> None:
    models = gather("robust", "synthseg-2.0", parcels=True, quality=True, locator=False)
    expected = ["tissues", "denoiser", "guided", "parcels", "quality"]
    assert {role: model.name for role, model in models.items()} == {role: f"synthseg-2.0-{role}" for role in expected}
    first = gather("fast", "synthseg-1.0", parcels=True, quality=True, locator=False)
    assert [model.name for model in first.values()] == ["synthseg-1.0", "synthseg-2.0-parcels", "synthseg-2.0-quality"]
    by_role = gather("default", {"structures": "synthseg-1.0"}, parcels="synthseg-2.0", locator=False)
    assert [model.name for model in by_role.values()] == ["synthseg-1.0", "synthseg-2.0-parcels"]
    with pytest.raises(
        WeightsError, match=r"'synthseg-1\.0'.*no network of role 'tissues'.*robust .* synthseg-2\.0 only"
    ):
        gather("robust", "synthseg-1.0")


def test_a_file_of_several_networks_fills_the_roles_it_has(freesurfer: Path) -> None:
    robust = freesurfer / "synthseg_robust_2.0.h5"
    assert list(gather("robust-fast", robust, locator=False)) == ["tissues", "denoiser", "guided"]
    with pytest.raises(WeightsError, match="role 'tissues, denoiser, guided', which are of no use in mode default"):
        gather("default", robust)
    assert gather("default", freesurfer / "synthseg_2.0.h5", locator=False)["structures"].name == "synthseg-2.0"


def test_the_first_of_the_folders_that_has_a_network_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "synthseg_2.0.h5"
    places = {
        "SYNTHSEG_MODEL_DIR": write_originals(tmp_path / "dir", file) / file,
        "SYNTHSEG_WEIGHTS_DIR": write_originals(tmp_path / "folder", file) / file,
        "FREESURFER_HOME": write_originals(tmp_path / "free" / "models", file) / file,
    }
    for variable, path in reversed(places.items()):
        home = path.parents[1] if variable == "FREESURFER_HOME" else path.parent
        monkeypatch.setenv(variable, str(home))
        assert locate("synthseg-2.0") == store.Located(path, "structures")
    imported = import_keras(places["FREESURFER_HOME"], tmp_path / "folder")[0].path
    assert locate("synthseg-2.0").path == places["SYNTHSEG_MODEL_DIR"]
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", "")
    assert locate("synthseg-2.0").path == imported  # before the .h5 beside it
    for path in places.values():
        path.unlink()
    imported.unlink()
    with pytest.raises(WeightsError) as told:
        load_weights("synthseg-2.0")
    for text in (
        "synthseg_2.0.h5",
        "synthseg-2.0.safetensors",
        str(tmp_path / "folder"),
        "FREESURFER_HOME",
        "--model-dir",
    ):
        assert text in str(told.value)


def test_a_missing_member_is_told_by_its_file_and_the_places_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match=r"'synthseg-2\.0'.*synthseg_2\.0\.h5 .*FREESURFER_HOME is not set"):
        gather("default", "synthseg-2.0")
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(write_originals(tmp_path / "a", "synthseg_2.0.h5")))
    with pytest.raises(WeightsError, match=r"synthseg_parc_2\.0\.h5.*distribute their files separately"):
        gather("default", "synthseg-2.0", parcels=True)
    with pytest.raises(WeightsError, match=r"synthseg_robust_2\.0\.h5"):
        gather("robust", "synthseg-2.0")


def test_in_freesurfers_folder_only_the_originals_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_originals(tmp_path / "home" / "models", "synthseg_2.0.h5")
    (home / "synthmorph.h5").write_bytes(b"another program's")
    monkeypatch.setenv("FREESURFER_HOME", str(home.parent))
    assert [entry.name for entry in list_weights() if entry.source == "freesurfer"] == ["synthseg-2.0"]
    with pytest.raises(WeightsError, match="no weights of that name"):
        locate("synthmorph")


def test_networks_of_ones_own_training_go_by_their_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [unet_shapes("unet", n_out=5, **SIZES), unet_shapes("unet2", n_in=6, n_out=33, **SIZES)]
    write_keras(tmp_path / "mine.h5", [fill(shape, 1) for shape in shapes], layout="model_weights")
    write_keras(tmp_path / "dice_100.h5", [fill(unet_shapes("unet", n_out=33, **SIZES), 1)])
    write_keras(tmp_path / "odd.h5", [fill(unet_shapes("unet", n_out=7, **SIZES), 1)])
    write_keras(tmp_path / "other.h5", [{"dense": {"kernel": np.zeros((2, 2), np.float32)}}])
    (tmp_path / "cut.h5").write_bytes((tmp_path / "odd.h5").read_bytes()[:3000])
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(tmp_path))
    found = {entry.name: entry for entry in list_weights() if entry.source == "model-dir"}
    assert {name: entry.role for name, entry in found.items()} == {
        "mine-tissues": "tissues",
        "mine-guided": "guided",
        "dice_100": "structures",
        "odd": None,
        "cut": None,
    }
    assert "7 outputs, whose labels the file does not tell" in str(found["odd"].problem)
    assert "not a whole HDF5 file" in str(found["cut"].problem)
    assert load_weights("mine-guided").card["data"] is None
    assert load_weights("mine", "guided").name == "mine-guided"
    assert load_weights("dice_100").name == "dice_100"
    with pytest.raises(WeightsError, match=r"odd\.h5.*synthseg weights import odd.h5 --protocol"):
        load_weights("odd")


def test_read_directly_or_imported_the_numbers_and_their_hash_are_the_same(originals: Path, tmp_path: Path) -> None:
    for file, roles in FILES.items():
        written = import_keras(originals / file, tmp_path)
        assert [one.role for one in written] == list(roles)
        for one in written:
            direct, ours = load_weights(originals / file, one.role), load_weights(one.path)
            assert one.path == tmp_path / f"{roles[one.role]}.safetensors"
            assert direct.card == ours.card
            assert direct.card["sha256"] == hash_tensors(direct.tensors)
            assert direct.tensors.keys() == ours.tensors.keys()
            assert all(torch.equal(tensor, ours.tensors[name]) for name, tensor in direct.tensors.items())
            assert build_network(ours).state_dict().keys() == ours.tensors.keys()


def test_the_command_imports_all_networks_of_a_file(originals: Path, tmp_path: Path, command: Command) -> None:
    robust = originals / "synthseg_robust_2.0.h5"
    code, out, _ = command("weights", "import", robust, "-o", tmp_path / "w")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(
        "26 of 26 tensors of unet -> synthseg-2.0-tissues (tissues, 5 labels of tissue-groups): "
    )
    assert [line.split(" -> ")[1].split(" (")[0] for line in lines] == [
        f"synthseg-2.0-{role}" for role in ("tissues", "denoiser", "guided")
    ]
    (tmp_path / "w" / "synthseg-2.0-guided.safetensors").unlink()  # as if it had been stopped: it goes on
    assert command("weights", "import", robust, "-o", tmp_path / "w")[:2] == (0, out)
    code, _, err = command("weights", "import", robust, "-o", tmp_path / "w", "--half")
    assert (code, "found a file of that name. Fix: add --overwrite" in err) == (1, True)
    assert command("weights", "import", robust, "-o", tmp_path / "w", "--overwrite")[0] == 0
    code, _, err = command("weights", "import", robust, "-o", tmp_path / "one.safetensors")
    assert (code, "one file for 3 networks" in err) == (2, True)
    assert command("weights", "import", robust, "-o", tmp_path / "n", "--name", "mine", "--half")[0] == 0
    assert load_weights(tmp_path / "n" / "mine-guided.safetensors").name == "mine-guided"
    for path in tmp_path.rglob("*.safetensors"):
        assert command("weights", "verify", path)[0] == 0
    code, _, err = command("weights", "import", tmp_path / "absent.h5")
    assert (code, "absent.h5: found no such file" in err) == (1, True)


def test_an_import_goes_to_the_folder_of_weights_or_here(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_keras(originals / "synthseg_2.0.h5")
    assert (tmp_path / "here" / "synthseg-2.0.safetensors").is_file()
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path / "there"))
    import_keras(originals / "synthseg_qc_2.0.h5")
    assert (tmp_path / "there" / "synthseg-2.0-quality.safetensors").is_file()


def test_labels_of_ones_own_are_stated_on_import(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "mine.h5", [fill(unet_shapes("unet", n_out=5, **SIZES), 1)])
    assert offers(path)[0].role == "tissues"
    table = tmp_path / "knee.tsv"
    names = ("background", "femur", "tibia", "patella", "cartilage")
    table.write_text(_table(names), encoding="utf-8")
    (written,) = import_keras(path, tmp_path / "knee.safetensors", protocols=[table])
    assert (written.role, written.labels, written.protocol) == ("structures", 5, "knee")
    assert [row["name"] for row in load_weights(written.path).card["protocol"]["rows"]] == list(names)
    robust = [unet_shapes("unet", n_out=5, **SIZES), unet_shapes("l2l", n_in=5, n_out=5, **SIZES)]
    write_keras(tmp_path / "both.h5", [fill(shapes, 1) for shapes in robust])
    found = offers(tmp_path / "both.h5", [table])  # S1 is what feeds D, whatever its groups are called
    assert [(offer.role, offer.card()["protocol"]["name"]) for offer in found] == [
        ("tissues", "knee"),
        ("denoiser", "knee"),
    ]
    (tmp_path / "both.h5").unlink()
    with pytest.raises(WeightsError, match=r"5 .unet. outputs, none with the 33 labels of synthseg-2\.0"):
        import_keras(path, tmp_path, protocols=["synthseg-2.0"])
    with pytest.raises(LabelError):
        import_keras(path, tmp_path, protocols=["no-such-protocol"])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["knee.safetensors", "knee.tsv", "mine.h5"]


def _table(names: tuple[str, ...]) -> str:
    labels = [Label(i, name, "neutral", i, i, i, i, 0, 0, (i, i, i)) for i, name in enumerate(names)]
    return format_table(labels, {"name": "knee"})


def test_the_commands_look_in_a_model_dir_first(originals: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command("weights", "list", "--model-dir", originals)
    assert code == 0
    for line in out.splitlines():
        if line.startswith("synthseg-2.0-parcels"):
            size = f"{(originals / 'synthseg_parc_2.0.h5').stat().st_size / 1e6:.1f}"
            assert line.split()[1:] == ["parcels", "desikan-killiany", "1", "not", "stated", size, "model-dir"]
            break
    else:
        raise AssertionError(out)
    code, out, _ = command("weights", "show", "synthseg-2.0", "--role", "guided", "--json", "--model-dir", originals)
    assert (code, json.loads(out)["name"]) == (0, "synthseg-2.0-guided")
    code, _, err = command("weights", "show", "default", "--role", "parcels")
    assert (code, "weights of role 'structures', which are of no use here" in err) == (1, True)
    code, out, _ = command(
        "weights", "verify", "synthseg-2.0", "synthseg-1.0", "--role", "quality", "--model-dir", originals
    )
    assert (code, out.count("ok  synthseg-2.0-quality")) == (0, 2)
    absent = tmp_path / "absent"
    for words in (
        ("weights", "list"),
        ("weights", "verify"),
        ("weights", "show", "default"),
        ("segment", "x.nii", "-o", "y"),
    ):
        code, _, err = command(*words, "--model-dir", absent)
        assert (code, f"--model-dir {absent}: found no such folder" in err) == (2, True)


def test_scans_are_segmented_by_name_where_the_originals_files_are(
    originals: Path, tmp_path: Path, command: Command
) -> None:
    rng = np.random.default_rng(0)
    scan = nibabel.Nifti1Image(rng.random((64, 62, 66)).astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    words = ("segment", tmp_path / "scan.nii.gz", "--weights", "synthseg-2.0", "--model-dir", originals, "--parc")
    for mode in ("default", "robust-fast"):
        code, _, err = command(*words, "--mode", mode, "-o", tmp_path / mode, "--threads", 1)
        assert code == 0, err
        labels = np.asarray(nibabel.load(next((tmp_path / mode).rglob("*.nii.gz"))).dataobj)
        assert labels.shape == (64, 62, 66)
        (record,) = (tmp_path / mode).rglob("*.json")
        used = "synthseg-2.0" if mode == "default" else "synthseg-2.0-guided"
        assert f'"{used}"' in record.read_text()
        assert '"synthseg-2.0-parcels"' in record.read_text()


def test_listing_reads_no_numbers_and_loads_no_torch(originals: Path) -> None:
    code = (
        "import sys\n"
        "import synthseg.weights.hdf5, synthseg.weights.keras as keras\n"
        "keras.read_array = None\n"
        "from synthseg.weights.store import list_weights\n"
        "entries = [entry for entry in list_weights() if entry.source == 'model-dir']\n"
        "assert len(entries) == 7 and all(entry.card for entry in entries), entries\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"SYNTHSEG_MODEL_DIR": str(originals), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.usefixtures("freesurfer")
def test_without_h5py_the_files_are_listed_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    found = {entry.name: entry.problem for entry in list_weights() if entry.source == "freesurfer"}
    assert set(found) == set(MEMBERS)
    assert all("no h5py to read it with" in str(problem) for problem in found.values())
    with pytest.raises(WeightsError, match=r"pip install .synthseg\[keras\]"):
        load_weights("synthseg-2.0")


def test_a_changed_file_is_told_by_its_own_hash(tmp_path: Path) -> None:
    path = write_originals(tmp_path, "synthseg_2.0.h5") / "synthseg_2.0.h5"
    before = load_weights(path).card
    with h5py.File(path, "a") as file:
        file["unet_likelihood/unet_likelihood/bias:0"][0] = 5
    after = load_weights(path).card
    assert after["sha256"] != before["sha256"]
    assert after["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() != before["source"]["sha256"]


def test_a_target_that_exists_is_not_touched(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "synthseg-2.0-guided.safetensors").write_text("mine")
    with pytest.raises(OutputError, match=r"synthseg-2\.0-guided\.safetensors: found a file of that name"):
        import_keras(originals / "synthseg_robust_2.0.h5", tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["synthseg-2.0-guided.safetensors"]
    with pytest.raises(UsageError, match="one file for 3 networks"):
        import_keras(originals / "synthseg_robust_2.0.h5", tmp_path / "x.safetensors")


def test_a_model_dir_is_kept_for_the_process(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthseg.weights import use_model_dir

    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", "")
    monkeypatch.chdir(originals.parent)
    use_model_dir("models")
    monkeypatch.chdir("/")
    assert locate("synthseg-2.0").path == (originals / "synthseg_2.0.h5").resolve()
    use_model_dir(None)
    assert locate("synthseg-2.0").path == (originals / "synthseg_2.0.h5").resolve()
    with pytest.raises(UsageError, match="a file"):
        use_model_dir(originals / "synthseg_2.0.h5")
