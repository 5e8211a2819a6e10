"""Artefacts against their definitions: the noise that was asked for, gains, where a moved head's energy goes, cuts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from synthseg.errors import UsageError, VolumeError
from synthseg.volumes import Volume, reslice
from synthseg.volumes.artefacts import (
    BIAS_STD,
    SIDES,
    cut,
    foreground,
    motion,
    rician_noise,
    rigid,
    uneven_gain,
)
from synthseg.volumes.degrade import degrade

RAS = np.eye(4)
LIA = np.array([[-1.0, 0, 0, 40], [0, 0, 1, -20], [0, -1, 0, 30], [0, 0, 0, 1]])  # stored left, down, front


def volume(data: np.ndarray, affine: np.ndarray = RAS) -> Volume:
    return Volume(np.asarray(data, dtype=np.float32), affine, Path("scan.nii.gz"))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    """A bright ellipsoid with a darker core off its middle, in nothing."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    data = np.where((x / 0.6) ** 2 + (y / 0.7) ** 2 + (z / 0.6) ** 2 < 1, 100.0, 0.0)
    data[(x - 0.2) ** 2 + (y - 0.1) ** 2 + z**2 < 0.05] = 70
    return data


def test_the_foreground_is_the_head():
    data = head() + np.random.default_rng(0).random((40, 48, 36))
    np.testing.assert_array_equal(foreground(volume(data)), head() > 0)
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found one intensity only"):
        foreground(volume(np.full((3, 3, 3), 2.0)))


@pytest.mark.parametrize("snr", [2.0, 5.0, 20.0])
def test_noise_has_the_ratio_asked_for_and_rician_moments(snr: float):
    data = head((60, 60, 60))
    noisy = rician_noise(volume(data), snr, rng=rng()).data.astype(np.float64)
    sigma = data[data > 0].mean() / snr
    air = noisy[data == 0]  # Rayleigh: mean sigma sqrt(pi / 2), mean square 2 sigma^2
    assert air.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    assert (air**2).mean() == pytest.approx(2 * sigma**2, rel=0.01)
    bright = noisy[data == 100]  # Rice: mean square signal^2 + 2 sigma^2
    assert (bright**2).mean() == pytest.approx(100**2 + 2 * sigma**2, rel=0.01)


def test_only_magnitude_images_get_their_noise():
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found intensities down to -5"):
        rician_noise(volume(head() - 5), 5, rng=rng())


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_a_gain_has_the_strength_asked_for_and_is_smooth(seed: int):
    data = head()
    scan = volume(data, np.diag([4.0, 4, 5, 1]))
    changed = uneven_gain(scan, rng=rng(seed)).data
    inside = data > 0
    assert (changed[~inside] == 0).all()
    log_gain = np.zeros(data.shape)
    log_gain[inside] = np.log(changed[inside] / data[inside])
    assert log_gain[inside].mean() == pytest.approx(0, abs=1e-4)
    assert log_gain[inside].std() == pytest.approx(BIAS_STD, rel=1e-3)
    for axis in range(3):  # neighbours 4 or 5 mm apart, nodes 80: a small part of the whole range
        both = inside & np.roll(inside, 1, axis)
        steps = np.abs(log_gain - np.roll(log_gain, 1, axis))[both]
        assert steps.max() < 0.35 * np.ptp(log_gain[inside])


def test_a_moving_head_blurs_and_ghosts_but_stays_where_it_was():
    data = head()
    moved = motion(volume(data, np.diag([4.0, 4, 4, 1])), rng=rng(1)).data
    assert moved.shape == data.shape
    assert moved.sum() == pytest.approx(data.sum(), rel=0.2)
    np.testing.assert_allclose(center_of_mass(moved), center_of_mass(data), atol=1)
    change = np.abs(moved - data)
    assert change.mean() > 0.03 * data.mean()
    outside = moved[:, :4][data[:, :4] == 0]  # before the head along the lines' axis: ghosts
    beside = moved[:2][data[:2] == 0]  # to its left, further than any pose reaches: nothing
    assert outside.max() > 1
    assert beside.max() == 0


def test_without_moves_k_space_gives_the_scan_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("synthseg.volumes.artefacts.TURN_STD_DEG", 0.0)
    monkeypatch.setattr("synthseg.volumes.artefacts.SHIFT_STD_MM", 0.0)
    data = head()
    np.testing.assert_allclose(motion(volume(data, LIA), rng=rng()).data, data, atol=1e-3)
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found no intensity above 0"):
        motion(volume(np.zeros((4, 4, 4))), rng=rng())


def test_poses_turn_about_the_centre():
    centre = np.array([5.0, -3, 2])
    pose = rigid(centre, (10, -20, 5), (1, 2, 3))
    np.testing.assert_allclose(pose[:3, :3] @ centre + pose[:3, 3], centre + np.array([1, 2, 3]), atol=1e-12)
    expected = Rotation.from_euler("xyz", (10, -20, 5), degrees=True).as_matrix()
    np.testing.assert_allclose(pose[:3, :3], expected)


@pytest.mark.parametrize("affine", [np.eye(4), LIA], ids=["RAS", "LIA"])
@pytest.mark.parametrize("side", SIDES)
def test_a_cut_loses_its_side_and_keeps_the_rest_in_place(side: str, affine: np.ndarray):
    scan = volume(head(), affine)
    part = cut(scan, side, 25)
    back = reslice(part.data, part.affine, scan.shape, scan.affine, order=0)
    gone = (back == 0) & (scan.data > 0)
    np.testing.assert_array_equal(back[~gone], np.where(gone, 0, scan.data)[~gone])
    world, upper = SIDES[side]
    points = np.argwhere(scan.data > 0) @ affine[:3, :3].T + affine[:3, 3]
    lost = (np.argwhere(gone) @ affine[:3, :3].T + affine[:3, 3])[:, world]
    extent = np.ptp(points[:, world]) + 1
    assert np.ptp(lost) + 1 == pytest.approx(extent / 4, abs=1)
    assert (lost.max() == points[:, world].max()) == bool(upper)
    assert (lost.min() == points[:, world].min()) != bool(upper)


def test_a_cut_leaves_something():
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found \d voxels left after a cut of 100 %"):
        cut(volume(head()[:, 8:40]), "posterior", 100)


def test_changes_joined_by_plus_are_made_from_left_to_right():
    scan = volume(head())
    whole, _ = degrade(scan, None, "motion-1+bias-2+axial-5mm+snr-5", name="a")
    step = scan
    for change in ("motion-1", "bias-2", "axial-5mm", "snr-5"):
        step, _ = degrade(step, None, change, name="a")
    np.testing.assert_array_equal(whole.data, step.data)
    np.testing.assert_array_equal(whole.affine, step.affine)
    other, _ = degrade(scan, None, "axial-5mm+snr-5", name="a")
    turned, _ = degrade(scan, None, "snr-5+axial-5mm", name="a")
    assert other.data.std() > turned.data.std()  # noise that comes after the slices is not averaged by them
    with pytest.raises(UsageError, match=r"change of a scan: found ''"):
        degrade(scan, None, "snr-5+", name="a")


@pytest.mark.parametrize("change", ["snr-5", "bias-1", "motion-1"])
def test_artefacts_belong_to_change_and_subject(change: str):
    scan = volume(head())
    first, again, other, next_one = (
        degrade(scan, None, given, name=name)[0].data
        for given, name in ((change, "a"), (change, "a"), (change, "b"), (change.replace("1", "2"), "a"))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert change == "snr-5" or not np.allclose(first, next_one)
