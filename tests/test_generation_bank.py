"""The label bank: packing label maps, its file, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation_helpers import PROTOCOL, blobby_map, small_bank
from synthseg.errors import LabelError, OutputError, ShapeError, TrainingError
from synthseg.generation import LabelBank
from synthseg.generation.pack import cut_background, pack_files
from synthseg.labels.protocol import Label, LabelProtocol

TENSORS = ("voxels", "shapes", "offsets", "spacing_mm", "center_vox")


def assert_same_bank(one: LabelBank, other: LabelBank) -> None:
    assert one.names == other.names
    assert one.protocol.labels == other.protocol.labels
    for name in TENSORS:
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def rewrite(path: Path, *, header: dict[str, Any] | None = None, **tensors: torch.Tensor) -> None:
    """Change parts of a bank's file, and leave out its hash, which files of before 0.2 do not have."""
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["bank"])
    known.pop("sha256", None)
    save_file({**load_file(path), **tensors}, path, metadata={"bank": json.dumps({**known, **(header or {})})})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_bank().save(tmp_path / "bank.safetensors")


# Packing


def test_maps_of_different_shapes_are_kept_whole() -> None:
    shapes = ((9, 10, 11), (5, 20, 7), (12, 6, 8))
    bank = small_bank(shapes, ((1.0, 1.0, 1.0), (0.5, 1.5, 2.0), (1.0, 1.0, 3.0)))
    assert len(bank) == 3
    for n, shape in enumerate(shapes):
        np.testing.assert_array_equal(PROTOCOL.values[bank.label_map(n).numpy()], blobby_map(shape, n))
    assert bank.spacing_mm[1].tolist() == [0.5, 1.5, 2.0]


def test_the_centre_is_that_of_the_brains_box() -> None:
    values = np.zeros((20, 21, 22), dtype=np.int32)
    values[0:20, 5:9, 3:8] = 511  # skin does not count
    values[4:9, 6:8, 10:21] = 41
    bank = LabelBank.from_maps([values, np.full((3, 4, 5), 515)], [(1, 1, 1)] * 2, ["head", "bone"], PROTOCOL)
    assert bank.center_vox.tolist() == [[6.0, 6.5, 15.0], [1.0, 1.5, 2.0]]


def test_unknown_values_are_named_with_their_map() -> None:
    values = blobby_map((8, 9, 10), 0)
    values[0, 0, 0] = 999
    with pytest.raises(LabelError, match=r"subject07\.nii\.gz.*999"):
        LabelBank.from_maps([values], [(1, 1, 1)], ["subject07.nii.gz"], PROTOCOL)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 1), (0, 5, 6)])
def test_a_map_that_is_not_three_dimensional_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"flat\.nii: found a map of shape"):
        LabelBank.from_maps([np.zeros(shape, dtype=int)], [(1, 1, 1)], ["flat.nii"], PROTOCOL)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, float("nan"))])
def test_voxel_sizes_that_are_none_are_named(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ShapeError, match=r"odd\.nii: found voxel sizes"):
        LabelBank.from_maps([np.zeros((2, 2, 2), dtype=int)], [spacing], ["odd.nii"], PROTOCOL)


def test_no_maps_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"label bank: found no label maps"):
        LabelBank.from_maps([], [], [], PROTOCOL)


def test_256_labels_fit_and_257_do_not() -> None:
    def protocol(count: int) -> LabelProtocol:
        labels = [Label(i, f"label {i}", "neutral", i, i, i, i, 0, 0, (0, 0, 0)) for i in range(count)]
        return LabelProtocol("many", "", tuple(labels))

    values = np.arange(256).reshape(4, 8, 8)
    bank = LabelBank.from_maps([values], [(1, 1, 1)], ["all"], protocol(256))
    np.testing.assert_array_equal(bank.label_map(0).numpy(), values)
    with pytest.raises(LabelError, match=r"many: found 257 labels.*at most 256"):
        LabelBank.from_maps([values], [(1, 1, 1)], ["all"], protocol(257))


# Files


def test_a_saved_bank_comes_back_unchanged(tmp_path: Path) -> None:
    bank = small_bank(((9, 10, 11), (5, 20, 7)), ((1.0, 1.0, 1.0), (0.5, 1.5, 2.0)))
    saved = bank.save(tmp_path / "deep" / "bank.safetensors")
    assert_same_bank(LabelBank.load(saved), bank)
    assert [item.name for item in saved.parent.iterdir()] == ["bank.safetensors"], "no part file may stay behind"
    assert saved.stat().st_size < bank.voxels.numel() + 20_000


def test_moving_a_bank_keeps_it(path: Path) -> None:
    bank = LabelBank.load(path)
    assert_same_bank(bank.to("cpu"), bank)
    assert bank.device == torch.device("cpu")


def test_a_missing_file_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.safetensors: found no such file.*synthseg bank"):
        LabelBank.load(tmp_path / "gone.safetensors")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"bank\.safetensors: found no way to write it"):
        small_bank().save(tmp_path / "file" / "bank.safetensors")


def test_another_safetensors_file_is_no_bank(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(TrainingError, match=r"weights\.safetensors: found another format than synthseg-bank-1"):
        LabelBank.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("metadata", ["[1]", '"text"', "{}", "not json", '{"format": "synthseg-bank-9"}'])
def test_a_strange_header_is_refused(tmp_path: Path, metadata: str) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "odd.safetensors", metadata={"bank": metadata})
    with pytest.raises(TrainingError, match=r"odd\.safetensors: found (another format|a damaged file)"):
        LabelBank.load(tmp_path / "odd.safetensors")


@given(place=st.floats(0, 0.999), length=st.integers(1, 400))
def test_a_damaged_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: float, length: int
) -> None:
    path = small_bank().save(tmp_path_factory.mktemp("bank") / "bank.safetensors")
    raw = bytearray(path.read_bytes())
    start = int(place * len(raw))
    raw[start : start + length] = bytes(255 - byte for byte in raw[start : start + length])
    path.write_bytes(raw)
    with contextlib.suppress(TrainingError):  # else it says the same, as where spaces in the header are others
        assert_same_bank(LabelBank.load(path), small_bank())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(TrainingError, match=r"bank\.safetensors: found a damaged file"):
        LabelBank.load(path)


def compressed(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(raw, 9)), dtype=torch.uint8)


def test_a_map_that_unpacks_to_more_than_its_header_says_is_refused(path: Path) -> None:
    # 200 MB of zeros in 200 kB: unpacking must stop one byte past what the header promised.
    rewrite(path, **{"map.00001": compressed(bytes(200_000_000))})
    tracemalloc.start()
    try:
        with pytest.raises(TrainingError, match=r"a map of more voxels where 16500 were promised"):
            LabelBank.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_header_that_promises_a_giant_map_is_refused(path: Path) -> None:
    for side in (2**21, 2**32):  # the second overflows 64 bits when multiplied
        rewrite(path, shapes=torch.tensor([[24, 26, 28], [side, side, side]]))
        with pytest.raises(TrainingError, match=rf"a map of shape \({side}, {side}, {side}\)"):
            LabelBank.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map.00001": compressed(bytes(10))}, "a map of 10 voxels where 16500 were promised"),
        ({"map.00001": compressed(bytes(16500))[:-4]}, "a map of 16500 voxels"),  # its checksum is missing
        ({"map.00001": compressed(bytes([54]) * 16500)}, "map1: label index 54 of 54"),
        ({"shapes": torch.tensor([[24, 26, 28], [30, -22, 25]])}, r"a map of shape \(30, -22, 25\)"),
        ({"shapes": torch.tensor([[24, 26, 28]])}, r"2 names, shapes \(1, 3\)"),
        ({"spacing_mm": torch.tensor([[1.0, 1, 1], [1, 0, 1]])}, "a voxel size or centre that is no number"),
        ({"center_vox": torch.full((2, 3), float("nan"))}, "a voxel size or centre that is no number"),
    ],
)
def test_contents_that_contradict_each_other_are_refused(
    path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    rewrite(path, **{name: tensor.contiguous().clone() for name, tensor in change.items()})
    with pytest.raises(TrainingError, match=rf"bank\.safetensors: found a damaged file \({message}"):
        LabelBank.load(path)


@pytest.mark.parametrize(
    "header", [{"rows": []}, {"rows": [{"value": 0}]}, {"rows": 5}, {"names": []}, {"names": None}]
)
def test_a_header_without_a_protocol_or_names_is_refused(path: Path, header: dict[str, Any]) -> None:
    rewrite(path, header=header)
    with pytest.raises(TrainingError, match=r"bank\.safetensors: found a damaged file"):
        LabelBank.load(path)


# From label-map files


def write_oriented(path: Path, values: np.ndarray, code: str, spacing: tuple[float, float, float]) -> Path:
    """Save a RAS map with its axes in another order."""
    image = nib.Nifti1Image(values.astype(np.int16), np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(code)
    )
    nib.save(image.as_reoriented(turn), path)
    return path


def test_files_of_any_orientation_become_the_same_map(tmp_path: Path) -> None:
    values = blobby_map((14, 16, 18), 3)
    codes = ["RAS", "LIA", "PSR", "LPS", "IRA"]
    paths = [write_oriented(tmp_path / f"{code}.nii.gz", values, code, (1.0, 1.5, 2.0)) for code in codes]
    seen: list[str] = []
    bank = pack_files(paths, PROTOCOL, on_map=seen.append)
    assert list(bank.names) == seen == [f"{code}.nii.gz" for code in codes]
    expected = cut_background(values)
    for n in range(len(codes)):
        np.testing.assert_array_equal(PROTOCOL.values[bank.label_map(n).numpy()], expected)
        assert bank.spacing_mm[n].tolist() == [1.0, 1.5, 2.0]


def test_a_file_with_an_unknown_value_is_named(tmp_path: Path) -> None:
    values = blobby_map((14, 16, 18), 3)
    values[7, 7, 7] = 1234
    path = write_oriented(tmp_path / "strange.nii.gz", values, "RAS", (1, 1, 1))
    with pytest.raises(LabelError, match=r"strange\.nii\.gz.*1234"):
        pack_files([path], PROTOCOL)


def test_empty_borders_are_cut_to_one_voxel() -> None:
    values = np.zeros((10, 12, 14), dtype=np.int32)
    values[3:6, 4:10, 5] = 41
    cut = cut_background(values)
    assert cut.shape == (5, 8, 3)
    np.testing.assert_array_equal(cut, values[2:7, 3:11, 4:7])
    np.testing.assert_array_equal(cut_background(cut), cut)


def test_a_map_that_fills_its_field_of_view_keeps_its_border() -> None:
    values = np.zeros((6, 7, 8), dtype=np.int32)
    values[:, 2:5, 0:8] = 511
    np.testing.assert_array_equal(cut_background(values), values[:, 1:6])


def test_an_empty_map_is_kept() -> None:
    assert cut_background(np.zeros((3, 4, 5), dtype=int)).shape == (3, 4, 5)


def test_the_real_training_maps_pack(shared: Path) -> None:
    path = sorted((shared / "data" / "training" / "brain").glob("*.nii.gz"))[0]
    bank = pack_files([path], PROTOCOL)
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj).astype(int)
    packed = PROTOCOL.values[bank.label_map(0).numpy()]
    for value in PROTOCOL.values[1:]:
        assert (packed == value).sum() == (values == value).sum()
    right, left = (np.argwhere(packed == value)[:, 0].mean() for value in (49, 10))
    assert right > left, "index 0 must grow to the right"


def test_a_bank_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_bank().names = ()  # type: ignore[misc]
