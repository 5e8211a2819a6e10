"""Whatever carries the networks out, and however precisely: the same labels, as far as is stated here.

``AGREEMENT`` is of a real scan with the shipped weights, label maps against those of torch in float32; what was
measured stands beside it. Posteriors of small networks are compared in tests/test_engine_*.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthseg.engine.export import export_onnx
from synthseg.inference import Model, Segmenter
from synthseg.inference.bundle import gather
from synthseg.volumes import Volume, read_volume
from trust_helpers import at, blobs, labels_of, random_model, share_changed

# Backend and precision: largest share of the brain's voxels that may change, lowest mean Dice of the structures.
AGREEMENT = {
    ("openvino", "float32"): (1e-5, 0.9999),  # measured: none, 1
    ("torch", "bfloat16"): (0.005, 0.99),  # 0.0009, 0.9986
    ("openvino", "int8"): (0.03, 0.96),  # 0.009, 0.981
}
EXPORTED = (1e-4, 0.9999)


class Exported(nn.Module):
    """A network in an ONNX file, run by onnxruntime: image to logits, like the network it was made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, image: Tensor) -> Tensor:
        (posteriors,) = self._session.run(["posteriors"], {"image": image.contiguous().numpy()})
        return torch.from_numpy(posteriors).clamp(min=1e-30).log()


def mean_dice(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Over the structures of either map."""
    values = sorted(set(np.unique(ours)) | set(np.unique(theirs)) - {0})
    found = [
        2
        * np.count_nonzero((ours == v) & (theirs == v))
        / (np.count_nonzero(ours == v) + np.count_nonzero(theirs == v))
        for v in values
        if v
    ]
    return float(np.mean(found))


def through(model: Model, scan: Volume, backend: str, precision: str) -> np.ndarray:
    made_by = Segmenter(model, device="cpu", threads=1, backend=backend, precision=precision)
    assert made_by.backend == backend
    return labels_of(made_by, scan)


def exported(model: Model, folder: Path) -> Model:
    export_onnx(model.network, folder / "net.onnx", {})  # type: ignore[arg-type]
    return dataclasses.replace(model, network=Exported(folder / "net.onnx"))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_labels_of_a_random_network_are_those_of_every_other_exact_way(norm: str, tmp_path: Path) -> None:
    scan, model = at(blobs((34, 36, 14)), (2.0, 2.0, 2.0)), random_model(norm)
    expected = through(model, scan, "torch", "float32")
    assert len(np.unique(expected)) >= 5
    assert share_changed(through(model, scan, "plain", "float32"), expected) < 1e-4
    pytest.importorskip("openvino")
    assert share_changed(through(model, scan, "openvino", "float32"), expected) < 1e-4
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert share_changed(through(exported(model, tmp_path), scan, "plain", "float32"), expected) < 1e-4


@pytest.mark.slow
def test_labels_of_a_real_scan_agree_as_stated(shared: Path, tmp_path: Path) -> None:
    scan = read_volume(shared / "data" / "validation" / "oasis" / "oasis_1110_t1.nii.gz")
    expected = labels_of(Segmenter("default", device="cpu", backend="torch"), scan)
    ways = dict(AGREEMENT)
    try:
        import openvino  # noqa: F401
    except ImportError:
        ways = {key: limits for key, limits in ways.items() if key[0] != "openvino"}
    found = {way: labels_of(Segmenter("default", device="cpu", backend=way[0], precision=way[1]), scan) for way in ways}
    for way, (most, least) in ways.items():
        share, dice = share_changed(found[way], expected), mean_dice(found[way], expected)
        assert share <= most, (way, share)
        assert dice >= least, (way, dice)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    own = exported(gather("default")["structures"], tmp_path)
    labels = labels_of(Segmenter(own, device="cpu", backend="plain"), scan)
    assert share_changed(labels, expected) <= EXPORTED[0]
    assert mean_dice(labels, expected) >= EXPORTED[1]
