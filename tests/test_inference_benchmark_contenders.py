"""The contenders of the inference benchmarks: plain and ours give the same answers; the networks they are run with."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from inference_helpers import phantom, save_random_weights, save_scan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks.inference import forward, networks, plain  # noqa: E402
from benchmarks.inference.accuracy import agreement  # noqa: E402
from benchmarks.inference.compare import compared  # noqa: E402
from benchmarks.inference.measure import told  # noqa: E402

from synthseg.inference import Segmenter  # noqa: E402
from synthseg.networks import UNet, UNetConfig  # noqa: E402
from synthseg.volumes import read_volume  # noqa: E402


@pytest.fixture(scope="module")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a random batch-norm network of three levels, with int8 ranges."""
    from synthseg.labels import load_protocol
    from synthseg.weights import make_card, save_weights

    network = networks.random_network(UNetConfig(features=4, levels=3))
    card = make_card("small", network.config.to_dict(), load_protocol("synthseg-2.0"), spacing_mm=1.0)
    return save_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", network.state_dict(), card)


def call(main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, words)])
    monkeypatch.setattr("synthseg.allocator.keep_freed_memory", lambda: False)  # it would hold for the test run
    threads = torch.get_num_threads()
    main()
    torch.set_num_threads(threads)
    return told(capsys.readouterr().out)


def test_the_runner_is_compared_with_the_module_itself(small_network, tmp_path, monkeypatch, capsys) -> None:
    words = (small_network, "--side", 32, "--threads", 1)
    written = call(forward.main, monkeypatch, capsys, *words, "--write", tmp_path)
    ours = call(forward.main, monkeypatch, capsys, *words, "--backend", "torch", "--against", tmp_path)
    assert written["largest_difference"] == 0
    assert 0 < ours["largest_difference"] < 1e-4
    assert ours["argmax_agreement"] > 0.999
    assert 0.02 < ours["foreground"] < 0.98  # or nothing would be compared
    assert {"forward_cpu_s", "process_cpu_s", "peak_gb", "prepare_cpu_s"} <= set(ours)
    image = networks.picture(32, 100, radius=2)
    posteriors = np.concatenate([np.load(path) for path in sorted(tmp_path.glob("32-*.npy"))])
    from synthseg.weights import build_network, load_weights

    with torch.inference_mode():
        expected = build_network(load_weights(small_network))(image).softmax(1)[0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(posteriors, expected.numpy(), rtol=0, atol=1e-6)


def test_another_network_is_told_from_the_first(small_network, tmp_path, monkeypatch, capsys) -> None:
    words = ("--side", 32, "--threads", 1)
    call(forward.main, monkeypatch, capsys, small_network, *words, "--write", tmp_path)
    for path in tmp_path.glob("32-*.npy"):
        np.save(path, np.roll(np.load(path), 1, axis=-1))
    ours = call(forward.main, monkeypatch, capsys, small_network, *words, "--backend", "torch", "--against", tmp_path)
    assert ours["largest_difference"] > 0.1
    assert ours["argmax_agreement"] < 0.5


@pytest.mark.parametrize("mode", ["default", "fast"])
def test_the_plain_path_gives_the_labels_and_volumes_of_the_package(tmp_path, mode, monkeypatch, capsys) -> None:
    spacing = (2.0, 2.0, 2.0)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])  # stored right to left
    scan = save_scan(tmp_path / "scan.nii.gz", phantom(spacing_mm=spacing)[::-1].copy(), affine)
    weights = save_random_weights(tmp_path / "weights.safetensors")
    words = (scan, tmp_path / "out.nii.gz", "--weights", weights, "--mode", mode, "--threads", 1)
    said = call(plain.main, monkeypatch, capsys, *words)
    expected = Segmenter(weights, mode, threads=1).segment(scan)
    labels = read_volume(tmp_path / "out.nii.gz", labels=True)
    np.testing.assert_allclose(labels.affine, expected.labels.affine)
    assert (labels.data != expected.labels.data).mean() < 1e-3
    assert len(np.unique(labels.data)) > 2
    for value, mm3 in expected.volumes_mm3.items():
        assert said["volumes_mm3"][str(value)] == pytest.approx(mm3, rel=1e-3, abs=1)


def test_random_networks_are_the_same_each_time_and_find_structures_inside_a_bright_ball() -> None:
    config = UNetConfig(features=2, levels=3)
    first, second = (networks.random_network(config) for _ in range(2))
    tensors = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)
    assert isinstance(first, UNet)
    ball = torch.zeros(64, 64, 64)
    x, y, z = torch.meshgrid(*[torch.arange(64) - 32] * 3, indexing="ij")
    distance = (x**2 + y**2 + z**2).sqrt()
    ball[distance < 20] = 0.9
    with torch.inference_mode():
        foreground = 1 - first(ball[None, None]).softmax(1)[0, 0]
    assert foreground[distance < 8].min() > 0.9
    assert foreground[distance > 30].max() < 0.01


def test_the_conformed_head_lies_where_the_head_lay(tmp_path: Path) -> None:
    data = np.zeros((20, 24, 22), np.float32)
    data[3, 4, 5] = 100
    affine = np.array([[-1.0, 0, 0, 10], [0, 0, 1, -7], [0, 1, 0, 3], [0, 0, 0, 1]])
    head = save_scan(tmp_path / "head.nii.gz", data, affine)
    made = nib.load(networks.make_conformed(head, tmp_path / "conformed.nii.gz", side=32))
    assert made.shape == (32, 32, 32)
    voxel = np.argwhere(made.get_fdata() == 100)
    assert len(voxel) == 1
    np.testing.assert_allclose(made.affine @ [*voxel[0], 1], affine @ [3, 4, 5, 1])


def test_tensors_for_other_programs_are_the_network_s_own(small_network, tmp_path: Path) -> None:
    from synthseg.weights import load_weights

    weights = load_weights(small_network)
    path = networks.write_arrays(weights, tmp_path / "arrays.npz")
    with np.load(path) as stored:
        assert set(stored.files) == set(weights.tensors)
        np.testing.assert_array_equal(stored["head.weight"], weights.tensors["head.weight"].numpy())


def test_label_maps_are_compared_where_either_has_a_structure() -> None:
    reference, labels = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    reference[:2, 0, 0] = (2, 3)
    labels[1:3, 0, 0] = (3, 4)
    assert compared(reference, labels) == {"same": 1 / 3, "differing_voxels": 2, "brain": 2 / 64}
    assert agreement(labels, reference) == 0.5
    assert compared(labels * 0, labels * 0)["same"] == 1
