"""The overlay picture, by its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from synthseg.inference.structures import Structure
from synthseg.report.overlay import blend, cut_through, write_overlay
from synthseg.volumes import Volume

STRUCTURES = (Structure(0, "background", (0, 0, 0)), Structure(5, "block", (255, 0, 0)))


def test_labels_are_half_over_the_grey_values():
    grey = np.array([[0.0, 50.0], [100.0, 200.0]])
    picture = blend(grey, np.array([[0, 0], [5, 5]]), STRUCTURES, low=0, high=100)
    np.testing.assert_allclose(picture[0], [[0, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(picture[1], [[1, 0.5, 0.5], [1, 0.5, 0.5]])  # 200 is above white


def test_the_planes_cross_inside_the_brain_off_the_middle():
    labels = np.zeros((40, 50, 60), np.int32)
    labels[10:35, 20:31, 40:51] = 5
    assert cut_through(labels) == (26, 25, 45)
    assert cut_through(np.zeros_like(labels)) == (20, 25, 30)


def test_the_picture_shows_the_labels_colour_where_the_labels_are(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    data = np.random.default_rng(0).random((30, 36, 40)).astype(np.float32)
    labels = np.zeros(data.shape, np.int32)
    labels[8:22, 8:28, 10:30] = 5
    scan, segmentation = Volume(data, np.eye(4)), Volume(labels, np.eye(4))
    path = write_overlay(scan, segmentation, STRUCTURES, tmp_path / "o" / "picture.png")
    pixels = image.imread(path)[..., :3]
    reddish = (pixels[..., 0] > 0.45) & (pixels[..., 0] > pixels[..., 1] + 0.3)
    height = pixels.shape[0]
    assert reddish[: height // 2].sum() == 0  # the scan alone above
    assert reddish[height // 2 :].mean() > 0.05
    # Another orientation of the same scan is the same picture.
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = data.shape[0] - 1
    turned = write_overlay(Volume(data[::-1], flipped), segmentation, STRUCTURES, tmp_path / "turned.png")
    np.testing.assert_allclose(image.imread(turned)[..., :3], pixels, atol=0.02)
