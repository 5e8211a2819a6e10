"""The weights in the package: that they are there, whole, and find brains in real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthseg.evaluation import EvaluationConfig, evaluate_pair, summarise
from synthseg.inference import Outputs, Segmenter, load_model, plan_jobs, run_batch
from synthseg.labels import load_protocol
from synthseg.volumes import read_volume
from synthseg.weights import store, verify_weights

SCAN = "oasis_1110"
# Well below what they reach (docs/scores.md): this is no benchmark, it catches a broken file, grid or window.
DICE_FLOOR = {"default": 0.7, "compact": 0.62}
MOST_BYTES = 60e6  # of all shipped weights together


def test_every_shipped_file_verifies_and_default_and_compact_are_among_them() -> None:
    shipped = sorted(store.SHIPPED_DIR.glob("*.safetensors"))
    assert set(store.ALIASES.values()) <= {path.stem for path in shipped}
    assert sum(path.stat().st_size for path in shipped) < MOST_BYTES
    for path in shipped:
        assert verify_weights(path).checks


@pytest.mark.parametrize("name", store.ALIASES)
def test_the_shipped_weights_segment_what_the_readme_says(name: str) -> None:
    model = load_model(name)
    assert model.protocol == "synthseg-2.0"
    assert model.spacing_mm == 2.0
    assert len(model.channels) == 33


@pytest.mark.slow
@pytest.mark.parametrize("name", store.ALIASES)
def test_the_shipped_weights_find_the_structures_of_a_real_scan(name: str, tmp_path: Path, shared: Path) -> None:
    folder = shared / "data" / "validation" / "oasis"
    outputs = Outputs()
    jobs = plan_jobs([folder / f"{SCAN}_t1.nii.gz"], tmp_path, outputs)
    result = run_batch(Segmenter(name, device="cpu"), jobs, outputs)
    assert [outcome.message for outcome in result.outcomes] == [""]
    config = EvaluationConfig(surface=False)
    scores = evaluate_pair(jobs[0].files["labels"], folder / f"{SCAN}_aseg.nii.gz", config)
    assert summarise(scores.rows).dice > DICE_FLOOR[name], [(row.structure, round(row.dice, 3)) for row in scores.rows]
    assert 30 <= len(scores.rows) <= 32


@pytest.mark.parametrize(("name", "floor"), [("crl_24w", 0.68), ("wu_26w", 0.75)])
def test_the_fetal_weights_find_the_tissues_of_fetuses_they_were_not_trained_on(
    name: str, floor: float, tmp_path: Path, shared: Path
) -> None:
    folder = shared / "data" / "validation" / "fetal"
    outputs = Outputs()
    jobs = plan_jobs([folder / f"{name}_t2.nii.gz"], tmp_path, outputs)
    result = run_batch(Segmenter(mode="fetal", device="cpu"), jobs, outputs)
    assert [outcome.message for outcome in result.outcomes] == [""]
    config = EvaluationConfig(protocol="feta", surface=False)
    scores = evaluate_pair(jobs[0].files["labels"], folder / f"{name}_feta.nii.gz", config)
    assert len(scores.rows) == 7
    assert summarise(scores.rows).dice > floor  # 0.754 and 0.825 when they were shipped


@pytest.mark.slow
def test_robust_parcels_and_quality_of_a_real_scan_in_one_pass(shared: Path) -> None:
    folder = shared / "data" / "validation" / "oasis"
    segmenter = Segmenter(mode="robust-fast", parcels=True, quality=True, device="cpu")
    result = segmenter.segment(folder / f"{SCAN}_t1.nii.gz")
    labels = result.labels.data
    parcels = set(np.unique(labels).tolist()) & set(load_protocol("desikan-killiany").values.tolist()) - {0}
    assert len(parcels) == 68
    assert not np.isin(labels, (3, 42)).any()  # every voxel of the cortex has a parcel
    for whole, first in ((3, 1001), (42, 2001)):
        of_side = sum(volume for value, volume in result.volumes_mm3.items() if first <= value < first + 36)
        assert of_side == pytest.approx(result.volumes_mm3[whole], rel=1e-4)
    assert result.quality is not None
    truth = read_volume(folder / f"{SCAN}_aseg.nii.gz", labels=True)
    groups = segmenter.quality_groups
    for name in ("general white matter", "general grey matter", "cerebellum", "thalamus"):
        members = [
            label.value for label in load_protocol("synthseg-2.0").labels if label.quality == 1 + groups.index(name)
        ]
        members += list(parcels) if 3 in members else []
        scored = truth.data != 255
        ours, theirs = np.isin(labels, members)[scored], np.isin(truth.data, members)[scored]
        found = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert found > 0.6
        assert abs(found - result.quality.scores[name]) < 0.25  # predicted without a truth


@pytest.mark.slow
def test_the_default_weights_measure_the_demos_template_plausibly(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    pytest.importorskip("matplotlib")
    from synthseg.report.demo import load_template, run_demo

    volumes = run_demo(Segmenter("default", device="cpu"), tmp_path, load_template()).volumes_mm3
    assert 1.2e6 < volumes["total intracranial"] < 2.2e6
    for name, usual_mm3 in (("hippocampus", 4500), ("thalamus", 8500)):  # in MNI space, where heads are large
        left, right = volumes[f"left {name}"], volumes[f"right {name}"]
        assert usual_mm3 / 2 < min(left, right)
        assert max(left, right) < usual_mm3 * 2
        assert max(left, right) / min(left, right) < 1.3  # the template is nearly symmetric
