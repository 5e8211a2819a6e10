"""The original's way as a whole, against the same networks called plainly, scipy's labels and numpy's sums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from plus_helpers import GROUPS, PARCELS, QUALITY, STRUCTURES
from synthseg.errors import VolumeError
from synthseg.inference.model import Model
from synthseg.inference.original import strict
from synthseg.inference.original.networks import structure_posteriors
from synthseg.inference.original.prepare import OriginalInput, crop_sizes, prepare_as_original
from synthseg.inference.original.result import ScanResult
from synthseg.inference.original.scan import read_scan
from synthseg.inference.original.strict import StrictSegmenter
from synthseg.inference.placement import Placement
from synthseg.inference.predict import OutOfMemory
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.volumes import Volume

SIDE = 32
PLUS = {"denoiser": (5, 5, GROUPS), "tissues": (1, 5, GROUPS), "guided": (6, 33, STRUCTURES)}


def unet(inputs: int, outputs: int, seed: int) -> UNet:
    """A small network that is sure of what it says, and says something else everywhere."""
    torch.manual_seed(seed)
    network = UNet(UNetConfig(in_channels=inputs, out_channels=outputs, features=4, levels=2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0  # the statistics of one image: features of about unit size
    with torch.no_grad():
        network.train()(torch.rand(1, inputs, 16, 16, 16))
        network.head.weight.normal_(0, 2.5)
    return network.eval()


def model(role: str, inputs: int, outputs: int, protocol: LabelProtocol, seed: int) -> Model:
    network = unet(inputs, outputs, seed)
    return Model.from_network(network, protocol, spacing_mm=1.0, multiple=2, role=role, name=role, in_channels=inputs)


def quality_model() -> Model:
    torch.manual_seed(5)
    network = Encoder(EncoderConfig(features=2, levels=2, kernel=3))
    sides = (24.0, 24.0, 24.0)  # in place of 224
    return Model.from_network(network, QUALITY, spacing_mm=1.0, multiple=2, role="quality", field_of_view_mm=sides)


def bundle(*, robust: bool = False, add_ons: bool = True, protocol: LabelProtocol = STRUCTURES) -> dict[str, Model]:
    outputs = len(protocol.target_values)
    models = {"structures": model("structures", 1, outputs, protocol, 0)}
    if robust:
        models = {role: model(role, *PLUS[role], seed=i) for i, role in enumerate(("tissues", "denoiser", "guided"))}
    if add_ons:
        models |= {"parcels": model("parcels", 3, 69, PARCELS, 4), "quality": quality_model()}
    return models


def head(tmp_path: Path, shape: tuple[int, int, int] = (30, 25, 28), size: float = 1.0) -> Path:
    """A lumpy scan with axes to the back, the left and up."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2.0)
    affine = np.array([[0, -1, 0, 12.0], [-1, 0, 0, 30], [0, 0, 1, -7], [0, 0, 0, 1]])
    affine[:3, :3] *= size
    path = tmp_path / "head.nii.gz"
    nib.Nifti1Image((1000 + 3000 * noise).astype(np.int16), affine).to_filename(path)
    return path


@torch.no_grad()
def plainly(network: torch.nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Posteriors [X, Y, Z, C] of the module as it is."""
    return np.moveaxis(torch.softmax(network(inputs), 1)[0].numpy(), 0, -1)


def blurred(posteriors: np.ndarray) -> np.ndarray:
    one = np.exp(-0.5 * (np.array([-1.0, 0, 1]) / 0.5) ** 2)
    kernel = torch.from_numpy((np.einsum("i,j,k->ijk", one, one, one) / one.sum() ** 3).astype(np.float32))
    channels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(posteriors, -1, 0)))[:, None]
    return np.moveaxis(functional.conv3d(channels, kernel[None, None], padding=1)[:, 0].numpy(), 0, -1)


def hot(index: np.ndarray, count: int) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(np.eye(count, dtype=np.float32)[index], -1, 0))[None]


def largest(mask: np.ndarray) -> np.ndarray:
    pieces, count = ndimage.label(mask)
    return pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1 if count else mask


def networks_answer(models: Mapping[str, Model], image: torch.Tensor, *, fast: bool) -> np.ndarray:
    """Reference 6.4, network by network."""
    if "guided" in models:
        groups = plainly(models["tissues"].network, image).argmax(-1)
        groups = plainly(models["denoiser"].network, hot(groups, 5)).argmax(-1)
        return plainly(models["guided"].network, torch.cat([image, hot(groups, 5)], 1))
    main = models["structures"]
    straight = blurred(plainly(main.network, image))
    if fast:
        return straight
    mirrored = blurred(plainly(main.network, image.flip(2)))[::-1][..., main.channels.partners]
    return 0.5 * straight + 0.5 * mirrored


def cleaned(posteriors: np.ndarray, prepared: OriginalInput, topology: np.ndarray, *, fast: bool) -> np.ndarray:
    """Reference 6.5."""
    p = posteriors[prepared.inside].copy() if fast else posteriors.copy()
    p[..., 1:] *= largest(p[..., 1:].sum(-1) > 0.25)[..., None]
    if fast:
        p[..., 1:] *= p[..., 1:] > 0.2
    else:
        masks = p > 0.25
        for group in range(1, topology.max() + 1):
            members = np.flatnonzero(topology == group)
            p[..., members] *= largest(masks[..., members].any(-1))[..., None]
        p = p[prepared.inside]
    return p / p.sum(-1, keepdims=True)


def in_own_axes(array: np.ndarray, prepared: OriginalInput) -> np.ndarray:
    """By nibabel: the patch pasted into the RAS grid of the scan and brought back."""
    whole = np.zeros(prepared.patch.full_shape)
    start, shape = prepared.patch.start, prepared.patch.shape
    whole[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = array
    ras = nib.orientations.axcodes2ornt("RAS")
    own = nib.io_orientation(prepared.affine)
    return nib.orientations.apply_orientation(whole, nib.orientations.ornt_transform(ras, own))


def check(models: Mapping[str, Model], path: Path, *, fast: bool, crop: int | None) -> ScanResult:
    """Segment and compare with the answer put together here. Labels may differ where two posteriors are next to equal,
    which moves volumes by what such a voxel holds."""
    got = StrictSegmenter(models, fast=fast, crop=crop, device="cpu").segment(path, posteriors=True, resampled=True)
    prepared = prepare_as_original(read_scan(path), crop=crop_sizes(crop))
    fast = fast or "guided" in models
    main = models.get("guided") or models["structures"]
    values = main.channels.values
    said = networks_answer(models, prepared.image, fast=fast)
    p = cleaned(said, prepared, main.channels.topology, fast=fast)
    labels = values[p.argmax(-1)]
    found = [(name, v) for name, v in got.volumes_mm3.items() if name.startswith("ctx-")]
    if "parcels" in models:
        cortex = np.isin(values[said.argmax(-1)], (3, 42)).astype(int)
        q = blurred(plainly(models["parcels"].network, torch.cat([prepared.image, hot(cortex, 2)], 1)))
        q = q[prepared.inside].copy()
        inside = np.isin(labels, (3, 42))
        q[..., 0] = ~inside
        q /= q.sum(-1, keepdims=True)
        labels[inside] = models["parcels"].channels.values[q.argmax(-1)[inside]]
        sums = q[..., 1:].sum((0, 1, 2), dtype=np.float64)
        whole = p[..., np.isin(values, (3, 42))].sum(dtype=np.float64) * float(prepared.voxel_mm3)
        np.testing.assert_allclose([v for _, v in found], sums * whole / sums.sum(), rtol=2e-4, atol=0.01)
    assert np.mean(got.labels.data == in_own_axes(labels, prepared)) > 0.9999
    assert got.posteriors is not None
    for channel in (1, len(values) - 1):
        np.testing.assert_allclose(got.posteriors[..., channel], in_own_axes(p[..., channel], prepared), atol=1e-4)
    volumes = p[..., 1:].sum((0, 1, 2), dtype=np.float64) * float(prepared.voxel_mm3)
    structures = [got.volumes_mm3[s.name] for s in main.channels.structures[1:]]
    np.testing.assert_allclose(structures, volumes, rtol=2e-4, atol=0.01)
    if "quality" in models:
        assert got.quality is not None
        assert list(got.quality)[0::7] == ["general white matter", "hippocampus+amygdala"]
        assert all(0 <= score <= 1 for score in got.quality.values())
    return got


@pytest.mark.parametrize("kind", ["default", "fast", "robust"])
def test_every_mode_gives_what_its_steps_give(tmp_path: Path, kind: str) -> None:
    got = check(bundle(robust=kind == "robust"), head(tmp_path), fast=kind == "fast", crop=SIDE)
    assert len(np.unique(got.labels.data)) > 5  # something was segmented
    assert got.labels.data.dtype == np.int32
    assert got.labels.shape == (30, 25, 28)
    assert got.resampled is None
    assert all(type(value) is float for value in got.volumes_mm3.values())  # --crop: double precision
    assert len(got.volumes_mm3) == 33 + 68


@pytest.mark.slow
def test_without_a_crop_volumes_are_in_single_precision_on_a_128_voxel_image(tmp_path: Path) -> None:
    got = check(bundle(add_ons=False), head(tmp_path), fast=True, crop=None)
    assert all(type(value) is np.float32 for value in got.volumes_mm3.values())
    assert len(got.volumes_mm3) == 33
    assert got.quality is None


def test_what_is_outside_the_crop_is_background(tmp_path: Path) -> None:
    got = check(bundle(add_ons=False), head(tmp_path, (50, 45, 48)), fast=True, crop=20)
    assert got.posteriors is not None
    outside = np.ones((50, 45, 48), bool)
    outside[9:41, 6:39, 8:40] = False  # 32 voxels of 50, 45 and 48, one more where the direction of an axis matters
    assert not got.labels.data[outside].any()
    assert (got.posteriors[outside][:, 0] == 1).all()
    assert (got.labels.data != 0).any()
    np.testing.assert_allclose(got.posteriors.sum(-1), 1, atol=1e-5)


def test_a_coarse_scan_is_segmented_on_the_1_mm_grid_in_its_own_axes(tmp_path: Path) -> None:
    path = head(tmp_path, (14, 15, 16), size=2.0)
    got = check(bundle(add_ons=False), path, fast=False, crop=SIDE)
    assert got.resampled is not None
    assert got.labels.shape == got.resampled.shape == (28, 30, 32)
    np.testing.assert_array_equal(got.labels.affine, got.resampled.affine)
    np.testing.assert_allclose(got.labels.spacing_mm, 1)
    data = nib.load(path).get_fdata()
    assert abs(float(got.resampled.data.mean()) - data.mean()) < 0.01 * data.mean()
    assert got.resampled.data.dtype == np.float32


def test_the_first_release_has_32_channels_and_no_total(tmp_path: Path) -> None:
    got = check(bundle(protocol=load_protocol("synthseg-1.0")), head(tmp_path), fast=False, crop=SIDE)
    assert len(got.volumes_mm3) == 31 + 68
    assert next(iter(got.volumes_mm3)) == "left cerebral white matter"


def test_quality_reads_the_labels_before_clean_up_in_groups(tmp_path: Path) -> None:
    models = bundle()
    got = StrictSegmenter(models, fast=True, crop=SIDE, device="cpu").segment(head(tmp_path))
    prepared = prepare_as_original(read_scan(tmp_path / "head.nii.gz"), crop=(SIDE,) * 3)
    winners = networks_answer(models, prepared.image, fast=True).argmax(-1)
    seen = np.zeros((24, 24, 24), int)
    group = models["structures"].channels.quality
    there = np.argwhere(~np.isin(winners, (0, 24)))
    low, high = there.min(0), there.max(0) + 1
    start = low - np.ceil((24 - (high - low)) / 2).astype(int)
    for x, y, z in np.ndindex(seen.shape):
        place = start + np.array([x, y, z])
        if ((place >= 0) & (place < winners.shape)).all():
            seen[x, y, z] = group[winners[tuple(place)]]
    with torch.no_grad():
        scores = models["quality"].network(hot(seen, 9))[0].clamp(0, 1).numpy()
    assert got.quality is not None
    np.testing.assert_allclose(list(got.quality.values()), scores[1:], atol=2e-3)


def test_a_batch_of_scans_and_volumes_from_memory_work_alike(tmp_path: Path) -> None:
    segmenter = StrictSegmenter(bundle(add_ons=False), fast=True, crop=SIDE, device="cpu", backend="plain")
    path = head(tmp_path)
    first = segmenter.segment(path)
    image = nib.load(path)
    again = segmenter.segment(Volume(image.get_fdata(dtype=np.float32), image.affine))
    np.testing.assert_array_equal(first.labels.data, again.labels.data)
    assert first.volumes_mm3 == again.volumes_mm3
    assert first.labels.path == path
    assert again.labels.path is None
    assert first.posteriors is None
    with pytest.raises(VolumeError, match="no such file"):
        segmenter.segment(tmp_path / "missing.nii.gz")


def test_where_memory_runs_out_thinner_slabs_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = StrictSegmenter(bundle(add_ons=False), crop=SIDE, device="cpu")
    path = head(tmp_path)
    expected = segmenter.segment(path)
    attempts = []

    def short_of_memory(placement: Placement, *args: object, **options: object) -> tuple[np.ndarray, np.ndarray]:
        attempts.append(placement.thin)
        if not (placement.thin and enough):
            raise MemoryError
        return structure_posteriors(placement, *args, **options)

    monkeypatch.setattr(strict, "structure_posteriors", short_of_memory)
    enough = True
    got = segmenter.segment(path)
    assert attempts == [False, True]
    assert "thinnest slabs" in got.notes[-1]
    assert np.mean(got.labels.data == expected.labels.data) > 0.9999
    enough = False
    with pytest.raises(OutOfMemory, match="32 x 32 x 32 voxels"):
        segmenter.segment(path)


def test_ct_is_clipped_to_80_hounsfield_units() -> None:
    data = np.random.default_rng(0).normal(40, 300, (30, 25, 28)).astype(np.float32)
    clipped = np.clip(data, 0, 80)
    models = bundle(add_ons=False)
    options = {"fast": True, "crop": SIDE, "device": "cpu"}
    by_flag = StrictSegmenter(models, ct=True, **options).segment(Volume(data, np.eye(4)))
    by_hand = StrictSegmenter(models, **options).segment(Volume(clipped, np.eye(4)))
    assert by_flag.volumes_mm3 == by_hand.volumes_mm3
    assert by_flag.volumes_mm3 != StrictSegmenter(models, **options).segment(Volume(data, np.eye(4))).volumes_mm3
