"""Weights, banks, checkpoints and lists that are damaged or no files: what fuzzing found, made here from code."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.mutate import Example
from fuzz.places import NO_TEXT, odd_places
from fuzz.weights import (
    LABELS,
    TARGETS,
    keras_unet,
    write_keras,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from synthseg.errors import ConfigError, LabelError, SynthsegError, TrainingError, WeightsError
from synthseg.generation import LabelBank
from synthseg.generation.draws import PairDraw
from synthseg.generation.prior_files import ClassColumn
from synthseg.generation.priors.arrays import read_mixture
from synthseg.generation.replay import read_origin
from synthseg.labels.arrays import read_npy, words
from synthseg.labels.original import load_npy_protocol, outputs_from_npy
from synthseg.training.validation import load_validation
from synthseg.weights import load_weights
from synthseg.weights.card import read_card
from synthseg.weights.original import offers
from synthseg.weights.store import list_weights

SEEDS = {target.name: target.seeds for target in TARGETS}
READ_VALIDATION = partial(load_validation, protocol=LABELS, spacing_mm=2.0)
READERS: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    ("a.safetensors", load_weights),
    ("a.safetensors", read_card),
    ("a.safetensors", LabelBank.load),
    ("a.safetensors", READ_VALIDATION),
    ("a.safetensors", PairDraw.load),
    ("a.safetensors", read_origin),
    ("a.h5", load_weights),
    ("a.h5", offers),
    ("a.npy", read_npy),
    ("a.npy", load_npy_protocol),
    ("a.npy", outputs_from_npy),
    ("a.npy", lambda path: ClassColumn.of(LABELS, os.fspath(path))),
    ("a.npy", lambda path: read_mixture({"means": path.name}, kind="uniform", folder=path.parent, where="mixture")),
)


def refusal(path: Path, read: Callable[[Path], Any], most: int = 16 << 20) -> str:
    """The one clear sentence with which a file is refused, using no more memory than said."""
    tracemalloc.start()
    try:
        with pytest.raises(SynthsegError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    told = str(caught.value)
    assert told.isprintable()
    assert path.name in told
    return told


@pytest.mark.parametrize(("name", "read"), READERS)
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    for path, acceptable in odd_places(Example(name, {"": b"unused"}), tmp_path):
        folder = path.is_dir() and not path.is_symlink()
        if acceptable:
            refusal(path, read)
        (path.rmdir if folder else path.unlink)()


@pytest.mark.parametrize("name", ["weights", "bank", "validation-set", "draw"])
def test_names_that_safetensors_cannot_take_are_told_as_such(tmp_path: Path, name: str) -> None:
    """The library's own error for them would pass for a damaged file."""
    made = SEEDS[name](tmp_path)[0]
    (tmp_path / NO_TEXT).mkdir()
    path = made.rename(tmp_path / NO_TEXT / made.name)
    read = {"weights": load_weights, "bank": LabelBank.load, "validation-set": READ_VALIDATION, "draw": PairDraw.load}
    assert "no UTF-8 text. Fix: rename it" in refusal(path, read[name])


def test_a_pipe_among_weights_does_not_stop_their_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipe.safetensors", "pipe.h5"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", os.fspath(tmp_path))
    problems = {entry.path.name: entry.problem for entry in list_weights() if entry.source == "folder"}
    assert problems["pipe.safetensors"] == "a pipe or a device, not a file"
    assert "symbolic link" in str(problems["loop.safetensors"])


def _header(path: Path, key: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another header around the same tensors, as of before there were hashes."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[key])
    header.pop("sha256", None)
    save_file(load_file(path), path, metadata={key: json.dumps(change(header))})


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": True},
        {"names": ["a", "b"]},
        {"spacing_mm": "2"},
        {"spacing_mm": None},
        {"spacing_mm": -2},
        {"targets": 5},
        {"targets": ["x"]},
        {"crop_margin_mm": []},
    ],
)
def test_validation_sets_with_a_damaged_header_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = SEEDS["validation-set"](tmp_path)[0]
    _header(path, "validation", lambda header: header)
    assert READ_VALIDATION(path).names == ("a",)
    if change == {"spacing_mm": "2"}:  # a number all the same
        return
    _header(path, "validation", lambda header: {**header, **change})
    refusal(path, READ_VALIDATION)


@pytest.mark.parametrize("header", [1.5, [], None, "x"])
def test_headers_that_are_no_tables_are_refused(tmp_path: Path, header: object) -> None:
    bank = SEEDS["bank"](tmp_path)[0]
    _header(bank, "bank", lambda _: header)
    refusal(bank, LabelBank.load)
    packed = SEEDS["validation-set"](tmp_path)[0]
    _header(packed, "validation", lambda _: header)
    refusal(packed, READ_VALIDATION)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.complex64])
def test_tensors_of_another_kind_are_refused_not_stumbled_over(tmp_path: Path, kind: torch.dtype) -> None:
    for name, key, read in (("bank", "spacing_mm", LabelBank.load), ("validation-set", "target.0", READ_VALIDATION)):
        path = SEEDS[name](tmp_path)[-1]  # of before there were hashes
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file({**tensors, key: tensors[key].to(kind)}, path, metadata=metadata)
        if (name, kind) != ("bank", torch.bfloat16):  # which are numbers like others
            refusal(path, read)


def _checkpoint(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """An older checkpoint, without hashes, with another index."""
    path = SEEDS["checkpoint"](folder)[1]
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(change(index)))
    return path


READ_CHECKPOINT = next(target.run for target in TARGETS if target.name == "checkpoint")


@pytest.mark.parametrize("shards", [10**12, -1, "1", None, 1.5, [1]])
def test_checkpoints_that_lie_about_their_shards_are_refused(tmp_path: Path, shards: object) -> None:
    path = _checkpoint(tmp_path, lambda index: {**index, "shards": shards})
    with pytest.raises(
        TrainingError, match=r"index\.json: found a damaged checkpoint \(.*shards\)\. Fix: it is the only one"
    ):
        READ_CHECKPOINT(path)


@pytest.mark.parametrize("groups", [[], {}, 3, [1], [{"params": "x"}], [{}], [{"params": [0, 1]}]])
def test_checkpoints_of_another_optimiser_are_refused(tmp_path: Path, groups: object) -> None:
    path = _checkpoint(tmp_path, lambda index: {**index, "param_groups": groups})
    with pytest.raises(TrainingError, match=r"index\.json: found a damaged checkpoint"):
        READ_CHECKPOINT(path)


def test_a_checkpoint_whose_index_is_a_pipe_or_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, lambda index: index)
    READ_CHECKPOINT(path)
    (path / "index.json").write_text("[" * 100_000)
    with pytest.raises(TrainingError, match=r"index\.json: found a damaged checkpoint"):
        READ_CHECKPOINT(path)
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    with pytest.raises(TrainingError, match=r"index\.json: found a pipe or a device"):
        READ_CHECKPOINT(path)


def test_names_in_the_heap_of_a_keras_file_are_not_read(tmp_path: Path) -> None:
    """Damage there sends HDF5 round for ever."""
    expected = load_weights(write_keras(tmp_path / "fixed.h5", keras_unet()))
    path = write_keras(tmp_path / "a.h5", keras_unet(), heap=True)
    raw = bytearray(path.read_bytes())
    heap = raw.index(b"GCOL")
    raw[heap : heap + 64] = bytes(64)  # sizes of 0, by which the library would go forward
    path.write_bytes(raw)
    found = load_weights(path)
    assert found.card["sha256"] == expected.card["sha256"]


def _npy(shape: str, kind: str, data: bytes = bytes(56), version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("(35181150961663,)", "<i8"),
        ("(7,)", "|V2147483647"),
        ("(7,)", "<U100000000"),
        ("(2**62, 4)", "<i8"),
        ("(9,)", "<i8"),
    ],
)
def test_arrays_that_promise_more_than_their_file_holds_are_refused(tmp_path: Path, shape: str, kind: str) -> None:
    path = tmp_path / "a.npy"
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        path.write_bytes(_npy(shape, kind, version=version))
        refusal(path, read_npy)
        refusal(path, load_npy_protocol)


def test_array_headers_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b" " * 100)
    assert "a header of 2,147,483,648 bytes" in refusal(path, read_npy)
    path.write_bytes(b"\x93NUMPY\0v" + struct.pack("<I", 2**31) + b" " * 100)  # a version that there is not
    assert "format version 0.118" in refusal(path, read_npy)


def test_arrays_of_python_2_are_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(_npy("(7L,)", "<i8"))
    assert read_npy(path).tolist() == [0] * 7
    assert not recwarn.list


def test_names_of_no_unicode_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array(["one", "two"]))
    path = tmp_path / "names.npy"
    path.write_bytes(stream.getvalue()[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(LabelError, match=r"names\.npy: found damaged text"):
        words(read_npy(path), path)


def test_a_class_of_a_huge_number_is_refused_without_counting_to_it(tmp_path: Path) -> None:
    classes = np.arange(len(LABELS))
    classes[-1] = 2**31 - 1
    np.save(tmp_path / "classes.npy", classes)
    told = refusal(tmp_path / "classes.npy", lambda path: ClassColumn.of(LABELS, os.fspath(path)))
    assert "numbers left out" in told
    lists = SEEDS["label-lists"](tmp_path)[0]
    np.save(lists / "generation_classes.npy", np.array([0, 1, 2, 3, 4, 3, 2**31 - 1]))
    with pytest.raises(LabelError, match=r"entry 6: class 2147483647, while no label has class 5"):
        load_npy_protocol(lists)


def test_kinds_of_errors_stay_those_of_their_rooms(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    os.mkfifo(tmp_path / "a.safetensors")
    for kind, read in (
        (LabelError, lambda: read_npy(tmp_path / "a.npy")),
        (ConfigError, lambda: read_npy(tmp_path / "a.npy", error=ConfigError)),
        (WeightsError, lambda: load_weights(tmp_path / "a.safetensors")),
        (TrainingError, lambda: LabelBank.load(tmp_path / "a.safetensors")),
    ):
        with pytest.raises(kind):
            read()
