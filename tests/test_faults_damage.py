"""A turned bit, or another file where weights, a checkpoint, a label bank or a validation set should be, is noticed."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inference_helpers import save_random_weights
from synthseg.errors import OutputError, SynthsegError, TrainingError, WeightsError
from synthseg.files import atomic_file
from synthseg.generation.bank import LabelBank
from synthseg.training.checkpoint import list_checkpoints, read_shards, write_shards
from synthseg.training.validation import ValidationSet, load_validation
from synthseg.weights import load_weights
from training_helpers import cut, run, save_bank, tiny_protocol, tiny_recipe

FORMAT = "synthseg-checkpoint-1"


def checkpoint(folder: Path) -> Path:
    tensors = {f"network.{n}": torch.arange(20.0) + n for n in range(3)}
    facts = {"progress": {"step": 7, "best": 0.5}, "recipe": {}, "targets": [0, 2], "param_groups": [{"lr": 0.1}]}
    return write_shards(folder / "step-00000007", tensors, facts, format_name=FORMAT)


def validation(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((3, 4, 5), dtype=np.float32))
    values = tuple(tiny_protocol().target_values.tolist())
    whole = ValidationSet(("one",), (image,), (torch.ones(3, 4, 5, dtype=torch.uint8),), 1.0, values, 8.0)
    return whole.save(folder / "validation.safetensors")


# name: (writes the file or folder and returns it, reads it)
KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "weights": (lambda folder: save_random_weights(folder / "w.safetensors"), load_weights),
    "bank": (save_bank, LabelBank.load),
    "validation": (validation, lambda path: load_validation(path, tiny_protocol(), 1.0)),
    "checkpoint": (checkpoint, lambda path: read_shards(path, format_name=FORMAT)),
}


def files_of(made: Path) -> list[Path]:
    return sorted(made.iterdir()) if made.is_dir() else [made]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_single_turned_bit_is_noticed_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    write, read = KINDS[kind]
    made = write(tmp_path_factory.mktemp(kind))
    file = data.draw(st.sampled_from(files_of(made)))
    raw = bytearray(file.read_bytes())
    # the headers, in which there is more to misunderstand, as often as the numbers
    header = 8 + struct.unpack("<Q", raw[:8])[0] if file.suffix == ".safetensors" else len(raw)
    place = data.draw(st.integers(0, header - 1) | st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    with pytest.raises(SynthsegError, match=made.name if made.is_dir() else file.name):
        read(made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file_is_told(tmp_path: Path, kind: str, share: float) -> None:
    write, read = KINDS[kind]
    made = write(tmp_path)
    for file in files_of(made):
        raw = file.read_bytes()
        file.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(SynthsegError, match=file.name):
            read(made)
        file.write_bytes(raw)
    read(made)


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\x03\x04ab"]
)
def test_a_file_that_is_no_weights_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError,
        match=r"scan\.safetensors: found .*(an empty file|not a whole safetensors file|pickled torch file)",
    ):
        load_weights(path)


def test_one_kind_of_file_is_not_taken_for_another(tmp_path: Path) -> None:
    weights, bank, scans = (KINDS[kind][0](tmp_path) for kind in ("weights", "bank", "validation"))
    for path in (bank, scans):
        with pytest.raises(WeightsError, match=rf"{path.name}: found a safetensors file without a synthseg card"):
            load_weights(path)
    for path in (weights, scans):
        with pytest.raises(TrainingError, match=rf"{path.name}: found another format"):
            LabelBank.load(path)


def test_a_resumed_run_refuses_a_checkpoint_with_a_turned_bit_and_goes_on_from_the_one_before(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, output={"checkpoint_minutes": 0.0, "log_every": 1})
    run(cut(recipe, 2), tmp_path / "run")
    shard = list_checkpoints(tmp_path / "run")[-1] / "0000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(
        TrainingError, match=r"0000\.safetensors: found a damaged checkpoint .*Fix: remove .*step-00000002"
    ):
        run(cut(recipe, 2), tmp_path / "run", resume=True)
    for file in shard.parent.iterdir():
        file.unlink()
    assert run(cut(recipe, 2), tmp_path / "run", resume=True).step == 2


def test_files_of_before_there_were_hashes_are_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    wanted, _ = read_shards(folder, format_name=FORMAT)
    index = json.loads((folder / "index.json").read_text())
    assert index.pop("sha256")
    assert index.pop("index_sha256")
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    found, _ = read_shards(folder, format_name=FORMAT)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    bank = save_bank(tmp_path)
    before, tensors = LabelBank.load(bank), load_file(bank)
    raw = bank.read_bytes()
    header = json.loads(json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]["bank"])
    assert header.pop("sha256")
    save_file(tensors, bank, metadata={"bank": json.dumps(header)})
    assert LabelBank.load(bank).sha256 == before.sha256


def test_without_a_checkpoint_before_nobody_is_told_to_remove_the_only_one(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "run"
    run(cut(recipe, 2), out)
    (only,) = list_checkpoints(out)
    shard = only / "0000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(TrainingError, match=r"a damaged checkpoint .*Fix: it is the only one: copy it back"):
        run(recipe, out, resume=True)


def test_a_disk_that_cannot_sync_is_written_to_and_a_full_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    with atomic_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    for number in (errno.EIO, errno.ENOSPC):
        monkeypatch.setattr(os, "fsync", refuse(number))
        with pytest.raises(OutputError, match="no way to write it"), atomic_file(tmp_path / "b") as file:
            file.write(b"half")
        assert not (tmp_path / "b").exists()
