"""Weights files: written whole, read back exactly, and every damage noticed with a message that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from synthseg.errors import OutputError, WeightsError
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.weights import store
from synthseg.weights.card import METADATA_CARD, METADATA_CARD_HASH, make_card, read_card
from synthseg.weights.files import hash_tensors, load_weights, save_weights
from synthseg.weights.network import build_network, protocol_of, verify_weights
from synthseg.weights.store import find_weights, list_weights

SMALL = UNetConfig(out_channels=33, features=2, levels=2, convs_per_level=1)


def small_network() -> UNet:
    torch.manual_seed(0)
    network = UNet(SMALL)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) * 1e6 + 1e-6)  # beyond float16: half precision must not touch these
    return network.eval()


def small_card(**changes: Any) -> dict[str, Any]:
    facts = {"data": "20 maps", "steps": 12_000, "scores": {"dice": 0.875}, "licence": "CC BY 4.0", "device": "cpu"}
    card = make_card("tiny", SMALL.to_dict(), load_protocol("synthseg-2.0"), spacing_mm=2.0, facts=facts)
    return {**card, **changes}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return small_network().state_dict()


@pytest.fixture
def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return save_weights(tmp_path / "deep" / "tiny.safetensors", tensors, small_card())


def rewrite_card(path: Path, change: dict[str, Any]) -> Path:
    """The same tensors with another card, its own hash in order: what a careless or newer writer would leave."""
    weights = load_weights(path)
    text = json.dumps({**weights.card, **change})
    metadata = {METADATA_CARD: text, METADATA_CARD_HASH: hashlib.sha256(text.encode()).hexdigest()}
    save_file(weights.tensors, path, metadata)
    return path


def test_tensors_come_back_bit_for_bit_and_the_card_with_them(saved: Path, tensors: dict[str, Tensor]) -> None:
    weights = load_weights(saved)
    assert (weights.name, weights.path) == ("tiny", saved)
    assert weights.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)
    assert {key: weights.card[key] for key in small_card()} == small_card()
    assert weights.card["format"] == 1
    assert weights.card["created"].endswith("+00:00")
    assert weights.card["sha256"] == hash_tensors(tensors)
    assert weights.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_loading_advances_no_random_stream_and_the_network_computes_the_same(saved: Path) -> None:
    state = torch.random.get_rng_state()
    network = build_network(load_weights(saved))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training
    image = torch.rand(1, 1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(image), small_network()(image), rtol=0, atol=0)


def test_the_built_network_does_not_share_memory_with_the_weights(saved: Path) -> None:
    weights = load_weights(saved)
    before = hash_tensors(weights.tensors)
    with torch.no_grad():
        for parameter in build_network(weights).parameters():
            parameter.add_(1)
    assert hash_tensors(weights.tensors) == before


@given(values=st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=20))
def test_half_precision_rounds_to_eleven_bits_and_loads_as_float32(values: list[float], tmp_path_factory: Any) -> None:
    tensors = {"w": torch.tensor(values), "n.running_var": torch.tensor(values) * 1e9, "n.count": torch.tensor(7)}
    path = save_weights(tmp_path_factory.mktemp("half") / "h.safetensors", tensors, small_card(), half=True)
    loaded = load_weights(path).tensors
    assert loaded["w"].dtype == torch.float32
    # 2^-11 relative for normal halves; below 2^-14 their spacing is 2^-24
    torch.testing.assert_close(loaded["w"], tensors["w"], rtol=2**-11, atol=2**-25)
    assert torch.equal(loaded["n.running_var"], tensors["n.running_var"])
    assert torch.equal(loaded["n.count"], tensors["n.count"])


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(0))}
    sizes = [
        save_weights(tmp_path / f"{half}.safetensors", tensors, small_card(), half=half).stat().st_size
        for half in (False, True)
    ]
    assert sizes[0] - sizes[1] == pytest.approx(200_000, abs=64)


def test_tensors_that_share_memory_or_are_not_contiguous_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    path = save_weights(tmp_path / "x.safetensors", {"a": base, "b": base, "t": base.T}, small_card())
    loaded = load_weights(path).tensors
    assert torch.equal(loaded["a"], base)
    assert torch.equal(loaded["b"], base)
    assert torch.equal(loaded["t"], base.T)


def test_the_hash_knows_names_types_and_shapes() -> None:
    x = torch.arange(6.0)
    hashes = [
        hash_tensors(variant)
        for variant in (
            {"a": x},
            {"b": x},
            {"a": x.reshape(2, 3)},
            {"a": x.view(torch.int32)},
            {"a": x[:3], "b": x[3:]},
            {"a": x, "b": x[:0]},
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_tensors({"a": x, "b": x + 1}) == hash_tensors({"b": x + 1, "a": x})


def test_any_single_flipped_bit_is_noticed(saved: Path) -> None:
    data = saved.read_bytes()
    n = len(data)
    header = struct.unpack("<Q", data[:8])[0] + 8
    generator = torch.Generator().manual_seed(0)
    somewhere = torch.randint(0, n, (120,), generator=generator).tolist()
    for position in {0, 8, header - 1, header, n - 1, *somewhere}:
        if header > position and data[position] in b" \n":
            continue  # header padding carries nothing
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 7)
        saved.write_bytes(bytes(broken))
        with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
            load_weights(saved)


def test_a_flipped_byte_in_a_tensor_is_told_as_a_hash_mismatch(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: found tensors whose hash .* is not the card's"):
        load_weights(saved)
    with pytest.raises(WeightsError, match="hash"):
        verify_weights(saved)


@pytest.mark.parametrize("kept", [0, 5, 8, 300, -1])
def test_a_truncated_file_is_told_as_such(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(
        WeightsError, match=r"found (an empty file|.*bytes that are not a whole safetensors file).*copy"
    ):
        load_weights(saved)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.h5", b"\x89HDF\r\n\x1a\n" + b"0" * 99, "a Keras HDF5 file.*synthseg weights import"),
        ("renamed.safetensors", b"\x89HDF\r\n\x1a\n" + b"0" * 99, "a Keras HDF5 file"),
        ("model.pt", b"PK\x03\x04" + b"0" * 99, r"pickled torch file, which can run code.*save_weights\(path"),
        ("model.pth", b"anything", "pickled torch file"),
        ("renamed.safetensors", pickle.dumps({"a": 1}), "pickled torch file"),
        ("notes.safetensors", b"not weights at all", "18 bytes that are not a whole safetensors file"),
    ],
)
def test_other_formats_are_named_and_never_opened(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    readers = (read_card,) if b"HDF" in content else (load_weights, read_card)  # loading reads Keras files
    for reader in readers:
        with pytest.raises(WeightsError, match=f"(?s){name}.*{message}"):
            reader(tmp_path / name)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"a": Bomb()}, tmp_path / "bomb.safetensors")
    with pytest.raises(WeightsError, match="pickled"):
        load_weights(tmp_path / "bomb.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_safetensors_file_without_card_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match=r"bare.safetensors: found a safetensors file without a synthseg card"):
        load_weights(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, r"a card of format 7 \(this synthseg reads format 1\)"),
        ({"protocol": None}, "a card with no label protocol"),
        ({"spacing_mm": "2 mm"}, r"a card with spacing_mm = '2 mm', not a voxel size"),
        ({"spacing_mm": True}, "a card with spacing_mm = True"),
        ({"architecture": {}}, "a card with no architecture"),
        ({"name": ""}, "a card with no name"),
    ],
)
def test_an_unusable_card_says_what_is_wrong(saved: Path, change: dict[str, Any], message: str) -> None:
    rewrite_card(saved, change)
    with pytest.raises(WeightsError, match=message):
        load_weights(saved)


def test_an_edited_card_is_noticed(saved: Path) -> None:
    data = saved.read_bytes()
    assert data.count(b"12000") == 1
    saved.write_bytes(data.replace(b"12000", b"99999"))
    with pytest.raises(WeightsError, match="a card that does not match its own hash"):
        load_weights(saved)


def test_saving_refuses_what_could_not_be_used(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match=r"suffix '.pt'"):
        save_weights(tmp_path / "x.pt", tensors, small_card())
    with pytest.raises(WeightsError, match="no tensors"):
        save_weights(path, {}, small_card())
    with pytest.raises(WeightsError, match=r"NaN or infinity in a\.b"):
        save_weights(path, {"a.b": torch.tensor([1.0, float("nan")])}, small_card())
    with pytest.raises(WeightsError, match=r"7e\+04 in w, beyond float16.*half=False"):
        save_weights(path, {"w": torch.tensor([7e4])}, small_card(), half=True)
    with pytest.raises(WeightsError, match="not plain JSON"):
        save_weights(path, tensors, small_card(scores={"dice": float("nan")}))
    with pytest.raises(WeightsError, match="no label protocol"):
        save_weights(path, tensors, small_card(protocol={}))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_weights(saved, {name: tensor * 2 for name, tensor in tensors.items()}, small_card())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_names_are_looked_up_in_the_users_folder_before_the_shipped_one(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, shipped = tmp_path / "mine", tmp_path / "shipped"
    monkeypatch.setattr(store, "SHIPPED_DIR", shipped)
    monkeypatch.setattr(store, "ALIASES", {"default": "both", "compact": "other"})
    monkeypatch.delenv("SYNTHSEG_WEIGHTS_DIR", raising=False)
    for folder, name in ((mine, "both"), (mine, "own"), (shipped, "both"), (shipped, "other")):
        save_weights(folder / f"{name}.safetensors", tensors, small_card(name=f"{folder.name}-{name}"))
    assert load_weights("both").name == "shipped-both"
    assert load_weights("default").name == "shipped-both"
    assert load_weights("compact").name == "shipped-other"
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(mine))
    assert load_weights("both").name == "mine-both"
    assert load_weights("other").name == "shipped-other"
    assert load_weights(str(shipped / "both.safetensors")).name == "shipped-both"
    assert [(e.name, e.source, e.alias) for e in list_weights()] == [
        ("both", "folder", "default"),
        ("other", "shipped", "compact"),
        ("own", "folder", None),
    ]


def test_unknown_names_and_missing_files_are_told_with_the_known_names(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHIPPED_DIR", tmp_path / "empty")
    monkeypatch.delenv("SYNTHSEG_WEIGHTS_DIR", raising=False)
    with pytest.raises(WeightsError, match=r"weights 'nothing': found no weights of that name.*none is installed"):
        load_weights("nothing")
    with pytest.raises(WeightsError, match=rf"weights '{store.ALIASES['default']}' \(what 'default' stands for\)"):
        load_weights("default")
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(saved.parent))
    with pytest.raises(WeightsError, match=r"weights 'nothing'.*known names \(tiny\)"):
        load_weights("nothing")
    with pytest.raises(WeightsError, match=r"gone.safetensors: found no such file.*known names: tiny"):
        load_weights("gone.safetensors")
    with pytest.raises(WeightsError, match="found a folder"):
        load_weights(saved.parent)
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"SYNTHSEG_WEIGHTS_DIR: found '.*nowhere', which is not a folder"):
        find_weights("tiny")


def test_listing_shows_broken_files_with_their_problem(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHIPPED_DIR", saved.parent)
    monkeypatch.delenv("SYNTHSEG_WEIGHTS_DIR", raising=False)
    saved.with_name("cut.safetensors").write_bytes(saved.read_bytes()[:100])
    broken, whole = list_weights()
    assert broken.card is None
    assert "not a whole safetensors file" in (broken.problem or "")
    assert whole.problem is None
    assert (whole.card or {})["protocol"]["name"] == "synthseg-2.0"


def test_listing_weights_loads_no_torch() -> None:
    script = "import sys; from synthseg.weights import list_weights; list_weights(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("head.bias"), r"head\.bias missing"),
        (lambda t: t.update({"ghost": torch.zeros(1)}), "ghost left over"),
        (lambda t: t.update({"head.bias": torch.zeros(7)}), r"of another shape: head\.bias \(7,\) instead of \(33,\)"),
        (lambda t: [t.pop(name) for name in list(t) if "norm" in name], "and 10 more missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, Tensor], edit: Any, message: str) -> None:
    edit(tensors)
    path = save_weights(tmp_path / "odd.safetensors", tensors, small_card())
    with pytest.raises(WeightsError, match=f"odd.safetensors: found tensors that do not fit.*{message}"):
        build_network(load_weights(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "transformer"}, "the architecture 'transformer'"),
        ({"kind": "unet", "depth": 3}, r"cannot be built.*unknown keys \['depth'\]"),
        ({"kind": "unet", "levels": 0}, r"cannot be built.*levels: found 0"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_told(saved: Path, change: dict[str, Any], message: str) -> None:
    rewrite_card(saved, {"architecture": change})
    with pytest.raises(WeightsError, match=message):
        build_network(load_weights(saved))


def test_the_card_gives_back_the_whole_protocol(saved: Path) -> None:
    protocol = protocol_of(load_weights(saved))
    original = load_protocol("synthseg-2.0")
    assert protocol.labels == original.labels
    assert (protocol.name, protocol.description) == (original.name, original.description)


def test_a_protocol_that_does_not_fit_the_channels_is_told(saved: Path) -> None:
    other = load_protocol("synthseg-1.0")
    table = {"name": other.name, "description": "", "rows": other.to_rows()}
    rewrite_card(saved, {"protocol": table})
    with pytest.raises(WeightsError, match=r"33 output channels for the 32 labels of synthseg-1\.0"):
        protocol_of(load_weights(saved))
    rewrite_card(saved, {"protocol": {**table, "rows": [{"value": 0}]}})
    with pytest.raises(WeightsError, match="a card whose label table is invalid"):
        protocol_of(load_weights(saved))


def test_verification_tells_what_it_checked(saved: Path) -> None:
    report = verify_weights(saved)
    parameters = sum(p.numel() for p in small_network().parameters())
    assert report.name == "tiny"
    assert f"unet with {parameters:,} parameters" in report.checks
    assert "33 labels of synthseg-2.0" in report.checks


def test_a_header_length_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    # The first byte of a safetensors file is the low byte of its header's length: one file in 32 begins with 0x80.
    first = set()
    for padding in range(0, 300, 4):
        path = save_weights(tmp_path / "ours.safetensors", tensors, small_card(data="x" * padding))
        first.add(path.read_bytes()[0])
        assert load_weights(path).card["data"] == "x" * padding
    assert 0x80 in first
