"""The original's .npy lists become our tables: sides, partners, classes, channels; what is wrong in them is told."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import shared_dir
from keras_files import unet, write_keras
from synthseg.errors import LabelError
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.labels.arrays import read_npy
from synthseg.labels.freesurfer import doubts, neutral_count
from synthseg.labels.original import outputs_from_npy, protocol_from_npy
from synthseg.weights import load_weights, protocol_of

Command = Callable[..., tuple[int, str, str]]
LABELS = [0, 24, 16, 2, 3, 25, 41, 42, 57]  # neutral, left, right; 25 and 57 are lesions
LISTS: dict[str, list[Any]] = {
    "labels": LABELS,
    "classes": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "contrast_classes": [0, 1, 3, 2, 4, 5, 2, 4, 5],
    "targets": [0, 0, 16, 2, 3, 2, 41, 42, 41],
    "names": ["background", "background", "stem", "left wm", "left gm", "left wm", "right wm", "right gm", "right wm"],
    "topology": [0, 0, 1, 2, 2, 2, 3, 3, 3],
    "quality": [0, 0, 5, 1, 2, 1, 1, 2, 1],
    "tissue": [0, 0, 1, 1, 2, 1, 1, 2, 1],
}
NO_GROUPS = {key: [0] * 9 for key in ("topology", "quality", "tissue")}
PUBLISHED = {
    "labels": "generation_labels",
    "classes": "generation_classes",
    "contrast_classes": "generation_classes_contrast_specific",
    "targets": "synthseg_segmentation_labels",
    "names": "synthseg_segmentation_names",
    "topology": "synthseg_topological_classes",
    "quality": "synthseg_qc_labels",
    "tissue": "tutorial_7_segmentation_labels_s1",
}


def save(folder: Path, **lists: Any) -> dict[str, Path]:
    """Each list as the original saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {key: folder / f"{key}.npy" for key in lists}
    for key, values in lists.items():
        np.save(paths[key], np.array(values))
    return paths


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """The original's arrays, as they were published."""
    folder = shared_dir()
    if folder is None:
        pytest.skip("no real data: set SYNTHSEG_SHARED to the folder that holds data/")
    text = (folder / "data" / "training" / "tables" / "all_arrays.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


# Tables of generation labels


def test_every_list_becomes_a_column(tmp_path: Path) -> None:
    protocol = protocol_from_npy(**save(tmp_path, **LISTS), n_neutral=3)
    assert protocol.values.tolist() == LABELS
    assert protocol.sides == ("neutral",) * 3 + ("left",) * 3 + ("right",) * 3
    assert [row.partner for row in protocol.labels] == [0, 24, 16, 41, 42, 57, 2, 3, 25]
    assert protocol.generation_classes.tolist() == LISTS["classes"]
    assert protocol.contrast_classes.tolist() == LISTS["contrast_classes"]
    assert protocol.targets.tolist() == LISTS["targets"]
    assert protocol.target_values.tolist() == [0, 2, 3, 16, 41, 42]  # channels: distinct targets, ascending
    assert protocol.topology_groups.tolist() == LISTS["topology"]
    assert protocol.quality_groups.tolist() == LISTS["quality"]
    assert protocol.tissue_groups.tolist() == LISTS["tissue"]
    # A target has its name from the file; what is merged into another keeps its own.
    assert protocol.names[2:6] == ("stem", "left wm", "left gm", "left lesion")
    assert protocol.names[1] == "csf"
    assert LabelProtocol.from_table(protocol.to_table(), "again") == protocol


def test_labels_alone_are_a_class_and_a_target_each(tmp_path: Path) -> None:
    protocol = protocol_from_npy(save(tmp_path, mine=[0, 700, 900, 901])["mine"], n_neutral=2)
    assert protocol.name == "mine"
    assert protocol.names == ("background", "label 700", "label 900", "label 901")
    assert protocol.generation_classes.tolist() == protocol.contrast_classes.tolist() == [0, 1, 2, 3]
    assert protocol.targets.tolist() == [0, 700, 900, 901]
    assert protocol.partner_index.tolist() == [0, 1, 3, 2]
    assert not protocol.topology_groups.any()


def test_names_of_ones_own_for_every_label_are_all_kept() -> None:
    names = [f"name {n}" for n in range(9)]
    assert protocol_from_npy(LABELS, targets=LISTS["targets"], names=names).names == tuple(names)
    unknown = protocol_from_npy([0, 5000, 5001], n_neutral=3, targets=[0, 5000, 5000], names=["air", "x", "x"])
    assert unknown.names == ("air", "x", "x (5001)")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float32, ">i4"])
def test_any_type_of_number_is_read(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "labels.npy", np.array(LABELS, dtype=dtype))
    assert protocol_from_npy(tmp_path / "labels.npy").values.tolist() == LABELS


@given(n_neutral=st.integers(1, 5), pairs=st.integers(0, 6), data=st.data())
def test_partners_are_by_position_for_any_numbering(n_neutral: int, pairs: int, data: st.DataObject) -> None:
    count = n_neutral - 1 + 2 * pairs
    values = [0, *data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count, unique=True))]
    protocol = protocol_from_npy(values, n_neutral=n_neutral)
    for k in range(pairs):
        left, right = protocol.labels[n_neutral + k], protocol.labels[n_neutral + pairs + k]
        assert (left.side, right.side) == ("left", "right")
        assert (left.partner, right.partner) == (right.value, left.value)
    flipped = np.array(values)[protocol.partner_index]
    # The original's table of a flip: neutral | right | left.
    np.testing.assert_array_equal(
        flipped, [*values[:n_neutral], *values[n_neutral + pairs :], *values[n_neutral:][:pairs]]
    )


def test_the_published_lists_are_our_own_table(arrays: dict[str, Any]) -> None:
    ours = load_protocol("synthseg-generation")
    protocol = protocol_from_npy(**{key: arrays[name] for key, name in PUBLISHED.items()}, n_neutral=18)
    same = ("values", "sides", "partner_index", "generation_classes", "contrast_classes", "names")
    for column in (*same, "topology_groups", "quality_groups", "tissue_groups"):
        np.testing.assert_array_equal(getattr(protocol, column), getattr(ours, column))
    # 1.0 has no CSF: the one target in which the public lists differ from our table.
    differing = [row.value for row, own in zip(protocol.labels, ours.labels, strict=True) if row.target != own.target]
    assert differing == [24]
    np.testing.assert_array_equal(protocol.target_values, load_protocol("synthseg-1.0").values)


# Tables of outputs


@pytest.mark.parametrize(("suffix", "n_neutral", "table"), [("", 18, "synthseg-1.0"), ("_2.0", 19, "synthseg-2.0")])
@pytest.mark.parametrize("told", [True, False])
def test_published_targets_are_the_published_channels(
    arrays: dict[str, Any], suffix: str, n_neutral: int, table: str, told: bool
) -> None:
    ours = load_protocol(table)
    lists = {"names": "segmentation_names", "topology": "topological_classes", "quality": "qc_labels"}
    protocol = outputs_from_npy(
        arrays[f"synthseg_segmentation_labels{suffix}"],
        n_neutral=n_neutral if told else None,
        **{key: arrays[f"synthseg_{name}{suffix}"] for key, name in lists.items()},
    )
    for column in ("values", "names", "sides", "partner_channel", "topology_groups", "quality_groups", "targets"):
        np.testing.assert_array_equal(getattr(protocol, column), getattr(ours, column))
    if suffix:
        again = outputs_from_npy(
            arrays["synthseg_segmentation_labels_2.0"], tissue=arrays["synthseg_denoiser_labels_2.0"]
        )
        np.testing.assert_array_equal(again.tissue_groups, ours.tissue_groups)


def test_the_published_parcels_are_the_published_channels(arrays: dict[str, Any]) -> None:
    ours = load_protocol("desikan-killiany")
    protocol = outputs_from_npy(arrays["synthseg_parcellation_labels"], names=arrays["synthseg_parcellation_names"])
    assert (protocol.names, protocol.sides) == (ours.names, ours.sides)
    np.testing.assert_array_equal(protocol.partner_channel, ours.partner_channel)


def test_a_target_that_both_sides_share_has_no_side() -> None:
    protocol = outputs_from_npy([0, 7, 8, 9, 7, 8, 10], n_neutral=1)  # left 7 8 9, right 7 8 10
    assert protocol.values.tolist() == [0, 7, 8, 9, 10]
    assert protocol.sides == ("neutral", "neutral", "neutral", "left", "right")
    with pytest.raises(LabelError, match=r"entry 3: 7, opposite 9 here and 8 before"):
        outputs_from_npy([0, 7, 6, 7, 8, 6, 9], n_neutral=1)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 24, 16, 2, 3, 25, 41, 42]}, r"labels\.npy: found 8 labels, 3 neutral: 5 remain, which do not"),
        ({"labels": [0, 24, 16, 2, 3, 2, 41, 42, 57]}, r"labels\.npy: found entry 5: 2 again, already entry 3"),
        ({"labels": [24, 0, 16, 2, 3, 25, 41, 42, 57]}, r"labels\.npy: found entry 0: 24, not the background"),
        ({"labels": [LABELS]}, r"labels\.npy: found an array of shape \[1, 9\]"),
        ({"labels": 5}, r"labels\.npy: found the single value"),
        ({"labels": []}, r"labels\.npy: found an empty list"),
        ({"labels": [0, 24, 16.5, 2, 3, 25, 41, 42, 57]}, r"labels\.npy: found entry 2: 16\.5"),
        ({"labels": [0, 24, np.nan, 2, 3, 25, 41, 42, 57]}, r"labels\.npy: found entry 2: nan"),
        ({"labels": [0, 24, -16, 2, 3, 25, 41, 42, 57]}, r"labels\.npy: found entry 2: -16"),
        ({"labels": [0, 24, 2**31, 2, 3, 25, 41, 42, 57]}, r"labels\.npy: found entry 2: 2147483648"),
        ({"labels": ["a"] * 9}, r"labels\.npy: found entries of type <U1"),
        ({"labels": [True] * 9}, r"labels\.npy: found entries of type bool"),
        ({"classes": [0, 1, 2, 3, 4, 5, 6, 7]}, r"classes\.npy: found 8 entries for the 9 of .*labels\.npy"),
        ({"classes": [0, 1, 2, 3, 4, 5, 8, 7, 8]}, r"classes\.npy: found entry 6: class 8, while no label has class 6"),
        ({"contrast_classes": [0, 1, 1, 1, 1, 1, 1, 1, 3]}, r"contrast_classes\.npy: found entry 8: class 3, while"),
        ({"targets": [0, 0, 16, 2, 3, 2, 41, 42]}, r"targets\.npy: found 8 entries for the 9"),
        (
            {"targets": [0, 0, 16, 2, 3, 2, 41, 42, 42], **NO_GROUPS},
            r"names\.npy: found entry 8: 'right wm' for the target 42, but",
        ),
        (
            {"targets": [0, 0, 16, 2, 3, 2, 41, 42, 42], **NO_GROUPS, "names": list("abcdefghi")},
            r"labels\.npy: found entry 5: target 2 becomes 42",
        ),
        (
            {"targets": [7, 0, 16, 2, 3, 2, 41, 42, 41], "names": list("abcdefghi")},
            r"entry 0: background with side neutral and target 7",
        ),
        ({"names": LISTS["names"][:8]}, r"names\.npy: found 8 entries"),
        ({"names": [*LISTS["names"][:8], ""]}, r"names\.npy: found entry 8: no name"),
        ({"names": [1] * 9}, r"names\.npy: found entries of type int64"),
        ({"topology": [0, 0, 1, 2, 2, 4, 3, 3, 3]}, r"topology\.npy: found entry 5: class 4, but entry 3 of the same"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_entry(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        protocol_from_npy(**save(tmp_path, **{**LISTS, **changes}), n_neutral=3)


@pytest.mark.parametrize("count", [0, -1, 10])
def test_an_impossible_number_of_neutral_labels_is_refused(count: int) -> None:
    with pytest.raises(LabelError, match=rf"generation labels: found {count} neutral labels of 9"):
        protocol_from_npy(LABELS, n_neutral=count)


def test_the_list_of_55_that_fits_nothing_published_is_explained(arrays: dict[str, Any]) -> None:
    with pytest.raises(
        LabelError, match=r"found 55 entries for the 54 .*take the lists without _2\.0, or the built-in"
    ):
        protocol_from_npy(arrays["generation_labels"], targets=arrays["synthseg_segmentation_labels_2.0"])


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    np.save(tmp_path / "objects.npy", np.array([Trap(sprung), 1], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("objects.npy", "bare.npy"):
        with pytest.raises(LabelError, match=rf"{name}: found pickled objects, which may hold a program"):
            protocol_from_npy(tmp_path / name)
    assert not sprung.exists()


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npy.npz", a=[1])
    (tmp_path / "many.npy.npz").rename(tmp_path / "many.npy")
    whole = save(tmp_path, whole=LABELS)["whole"].read_bytes()
    for name, content, message in (
        ("many.npy", None, "an archive of arrays"),
        ("text.npy", b"0 14 15", r"no \.npy file"),
        ("empty.npy", b"", r"no \.npy file"),
        ("cut.npy", whole[:-20], "a damaged array"),
        ("head.npy", whole[:40], "a damaged array"),
        ("gone.npy", None, "no readable file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(LabelError, match=rf"{name}: found {message}"):
            read_npy(tmp_path / name)


# FreeSurfer's numbering says how many labels are neutral


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.integers(6, 127), st.integers(0, 255), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.npy"
    np.save(path, np.arange(6))
    spoilt = bytearray(path.read_bytes())
    for place, value in changes.items():
        spoilt[place] = value
    path.write_bytes(spoilt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of files that Python 2 might have written
        try:
            told = load_protocol(path).source
        except LabelError as error:
            told = str(error)
    assert path.name in told


@pytest.mark.parametrize("text", ["{'descr': ('<i4'", "{'descr': '<i4', 'fortran_order': False, 'shape': (1 << 70,)}"])
def test_a_damaged_header_is_told_as_such(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(24))
    with pytest.raises(LabelError, match=r"x\.npy: found a damaged array"):
        load_protocol(path)


def test_freesurfers_numbering_gives_the_number_of_neutral_labels(arrays: dict[str, Any]) -> None:
    assert neutral_count(arrays["generation_labels"], "x") == 18
    assert neutral_count(arrays["synthseg_parcellation_labels"], "x") == 1
    assert neutral_count([0, 1, 2, 3], "x") == 4  # one hemisphere's numbers only: all neutral, as in the original


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 9999], "entry 1: 9999, which FreeSurfer's numbering gives no side"),
        ([0, 41, 2], "entry 1: 41, by FreeSurfer's numbering right, where a neutral label is due"),
        ([0, 2, 16, 41, 42], "entry 2: 16, by FreeSurfer's numbering neutral, where a left label is due"),
        ([0, 2, 3, 42, 41], "entry 1: 2 with the partner 42, by FreeSurfer's numbering 41"),
    ],
)
def test_lists_in_another_order_must_say_how_many_are_neutral(labels: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=rf"labels\.npy: found {message}.*--n-neutral N"):
        neutral_count(labels, "labels.npy")


def test_a_shifted_number_of_neutral_labels_shows() -> None:
    assert doubts(protocol_from_npy(LABELS, n_neutral=3)) == []
    found = doubts(protocol_from_npy([*LABELS[:3], 85, *LABELS[3:], 58], n_neutral=3))
    assert (
        found[0] == "85 (optic chiasm) is left with partner 41; in FreeSurfer's numbering it is neutral with partner 85"
    )
    assert doubts(protocol_from_npy([0, 9000, 2, 41], n_neutral=2)) == []  # not FreeSurfer's: nothing to doubt


# Folders, commands


def original_folder(folder: Path) -> Path:
    """A small folder with the original's file names."""
    names = {**PUBLISHED, "tissue": "segmentation_labels_s1"}
    save(folder, **{names[key]: values for key, values in LISTS.items()})
    np.save(folder / "synthseg_segmentation_labels_2.0.npy", np.zeros(10, dtype=np.int32))  # one too many: passed over
    return folder


def test_a_folder_of_the_originals_lists_is_a_protocol(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "labels_classes_priors")
    protocol = load_protocol(folder)
    assert protocol.name == "labels_classes_priors"
    assert protocol.labels == protocol_from_npy(**save(tmp_path, **LISTS), n_neutral=3).labels
    (folder / "generation_classes.npy").unlink()  # as the original does without it: a Gaussian for each label
    assert load_protocol(folder).generation_classes.tolist() == list(range(9))
    fitting = [0, 24, 16, 2, 3, 2, 41, 42, 41]
    np.save(folder / "synthseg_segmentation_labels_2.0.npy", fitting)
    (folder / "synthseg_segmentation_names.npy").unlink()  # those of other targets
    assert load_protocol(folder).targets.tolist() == fitting
    with pytest.raises(LabelError, match=r"no readable file generation_labels\.npy in this folder"):
        load_protocol(tmp_path)
    with pytest.raises(LabelError, match=r"gone\.npy: found no readable file"):
        load_protocol(tmp_path / "gone.npy")


def test_the_command_writes_one_table(command: Command, tmp_path: Path) -> None:
    files = save(tmp_path, **LISTS)
    options = [word for key, path in files.items() for word in (f"--{key.replace('_', '-')}", path)]
    code, out, err = command("labels", "from-original", *options, "--n-neutral", 3, "-o", tmp_path / "mine.tsv")
    assert (code, out.split(": ")[1], err) == (0, "9 labels, 6 targets\n", "")
    assert load_protocol(tmp_path / "mine.tsv") == protocol_from_npy(**files, n_neutral=3)
    code, _, err = command("labels", "from-original", *options, "-o", tmp_path / "mine.tsv")
    assert (code, "mine.tsv: found an existing file" in err) == (1, True)
    folder = original_folder(tmp_path / "set")
    assert command("labels", "from-original", folder, "-o", tmp_path / "mine.tsv", "--overwrite")[0] == 0
    assert load_protocol(tmp_path / "mine.tsv").name == "set"


def test_the_command_tells_what_looks_shifted(command: Command, tmp_path: Path) -> None:
    labels = save(tmp_path, labels=[0, 24, 16, 85, 2, 3, 25, 41, 42, 57, 58])["labels"]
    code, _, err = command("labels", "from-original", "--labels", labels, "--n-neutral", 3, "-o", tmp_path / "a.tsv")
    assert code == 0
    assert "note: 85 (optic chiasm) is left" in err
    assert "and 5 more; is the number of neutral labels right?" in err


def test_the_command_makes_a_table_of_outputs(command: Command, tmp_path: Path) -> None:
    targets = save(tmp_path, targets=LISTS["targets"])["targets"]
    out = tmp_path / "outputs.tsv"
    assert command("labels", "from-original", "--targets", targets, "--n-neutral", 3, "-o", out)[0] == 0
    assert load_protocol(out).values.tolist() == [0, 2, 3, 16, 41, 42]


def test_a_table_of_outputs_tells_what_an_imported_network_says(command: Command, tmp_path: Path) -> None:
    """From the original's training to our weights: its checkpoint and its lists."""
    files = save(tmp_path, targets=LISTS["targets"], names=LISTS["names"], topology=LISTS["topology"])
    options = [word for key, path in files.items() for word in (f"--{key}", path)]
    table, model = tmp_path / "outputs.tsv", tmp_path / "dice_050.h5"
    assert command("labels", "from-original", *options, "--n-neutral", 3, "-o", table)[0] == 0
    write_keras(model, [unet("unet", features=2, n_out=6)], layout="model_weights")
    imported = ("weights", "import", model, "--protocol", table, "-o", tmp_path / "mine.safetensors")
    code, _, err = command(*imported)
    assert code == 0, err
    labels = protocol_of(load_weights(str(tmp_path / "mine.safetensors")))
    assert labels.names == ("background", "left wm", "left gm", "stem", "right wm", "right gm")
    assert labels.partner_channel.tolist() == [0, 4, 5, 3, 1, 2]
    assert labels.topology_groups.tolist() == [0, 2, 2, 1, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "labels from-original: found no list. Fix: give a folder, --labels generation_labels.npy"),
        (("--classes", "c.npy"), "found --classes"),
        (("set", "--labels", "l.npy"), "--labels: found beside the folder set"),
        (("--labels", "l.npy"), "l.npy: found no readable file"),
    ],
)
def test_wrong_use_of_the_command_is_told(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = command("labels", "from-original", *arguments, "-o", tmp_path / "x.tsv")
    assert code in (1, 2)
    assert message in err
    assert not (tmp_path / "x.tsv").exists()
