"""Networks that cannot be merged are refused by name; the command that merges, and what its record tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_helpers import VALUES, BandNetwork, band_model, coarse_scan, run_scans, save_random_weights
from plus_helpers import hierarchy_models, parcels_model, quality_model, random_unet, structures_model
from synthseg.engine.choose import Choice
from synthseg.engine.ranges import Range
from synthseg.engine.torch_backend import PlainBackend
from synthseg.errors import ConfigError, UsageError, WeightsError
from synthseg.inference import InferenceConfig, Model, Outputs, Segmenter, passes, placement
from synthseg.inference.bundle import gather
from synthseg.inference.forecast import forecast
from synthseg.labels import load_protocol
from synthseg.weights import load_weights, save_weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "other"}, r"labels of 'other', not 'small' as those of first\. Fix: .*one label protocol"),
        ({"channels": band_model().channels, "spacing_mm": 2.0}, r"voxels of 2 mm, where first has voxels of 1 mm"),
        ({"organ": "heart"}, r"scans of the heart, where first has scans of the brain"),
        ({"field_of_view_mm": (96.0, 96.0, 80.0)}, r"a field of view of 96 x 96 x 80 mm, where .* of any size"),
        ({"ct_window": (-200.0, 600.0)}, r"a CT window of \(-200\.0, 600\.0\), where first has a CT window of None"),
    ],
)
def test_networks_that_disagree_are_refused_by_name(change, message):
    first, second = (replace(band_model(), name=name) for name in ("first", "second"))
    with pytest.raises(WeightsError, match=r"weights second: found " + message):
        gather("default", [first, replace(second, **change)])


def test_other_values_under_the_same_name_are_another_protocol():
    first = replace(band_model(), name="first")
    protocol = replace(load_protocol("tissue-groups"), name="small")
    other = Model.from_network(BandNetwork(), protocol, spacing_mm=1.0, name="second")
    with pytest.raises(WeightsError, match=r"second: found labels of 'small', with other label values as those"):
        gather("default", [first, other])


def test_a_network_is_merged_with_itself_by_mistake_only(tmp_path: Path):
    path = save_random_weights(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"weights tiny: found the same network twice"):
        gather("default", [path, path])
    copied = load_weights(path)
    card = {**copied.card, "name": "renamed", "temperature": 2.0}
    other = save_weights(tmp_path / "b.safetensors", copied.tensors, card)
    with pytest.raises(
        UsageError, match=r"weights renamed: found the same network twice: its tensors are those of tiny"
    ):
        gather("default", [path, other])


def test_robust_modes_have_nothing_to_merge():
    with pytest.raises(UsageError, match=r"weights: found 2 networks, where tissues, denoiser, guided find"):
        gather("robust", [hierarchy_models()["guided"], band_model()])


@pytest.mark.parametrize("merge", ["max", "vote"])
@pytest.mark.parametrize(("extra", "make"), [("parcels", parcels_model), ("quality", quality_model)])
def test_parcels_and_quality_need_one_answer_to_read(merge, extra, make):
    pair = [structures_model(), replace(structures_model(), name="other")]
    with pytest.raises(UsageError, match=rf"merge: found {extra} asked for beside 2 networks merged by {merge}"):
        Segmenter(pair, config=InferenceConfig(merge=merge), **{extra: make()})
    assert extra in Segmenter(pair, **{extra: make()}).models


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"inference setting merge: found 'median'\. Fix: use mean, max or vote"):
        InferenceConfig(merge="median")


# -- the command


def saved(folder: Path, **cards: dict[str, object]) -> list[Path]:
    """Weights of different sizes, one file a card."""
    wide = enumerate(cards.items(), start=2)
    return [save_random_weights(folder / f"{name}.safetensors", features, **facts) for features, (name, facts) in wide]


def test_the_command_merges_and_its_record_names_every_network(tmp_path: Path, command: Callable):
    a, b, c = saved(tmp_path, a={"name": "A", "temperature": 0.5}, b={"name": "B"}, c={"name": "C"})
    named = ["--weights", a, "--weights", b, "--weights", c]
    scan_file = coarse_scan(tmp_path / "scan.nii.gz")
    records = {}
    for rule in ((), ("--merge", "max"), ("--merge", "vote")):
        out = tmp_path / "-".join(["out", *rule[1:]])
        code, _, said = command("segment", scan_file, "-o", out, *named, *rule)
        assert code == 0, said
        records[rule[1:]] = json.loads((out / "scan_synthseg.json").read_text())
    mean, by_max = records[()], records[("max",)]
    assert [(role, one["name"]) for role, one in mean["settings"]["weights"].items() if "struct" in role] == [
        ("structures", "A"),
        ("structures-2", "B"),
        ("structures-3", "C"),
    ]
    weights = mean["settings"]["weights"]
    members = [weights[role] for role in ("structures", "structures-2", "structures-3")]
    assert len({one["sha256"] for one in members}) == 3
    assert [one["temperature"] for one in members] == [0.5, 1.0, 1.0]
    assert "temperature" not in by_max["settings"]["weights"]["structures"]
    assert [records[key]["settings"]["inference"]["merge"] for key in records] == ["mean", "max", "vote"]
    assert any("averaged without a fitted temperature: B, C" in note for note in mean["notes"])
    assert not any("temperature" in note for note in by_max["notes"])
    assert {"structures", "structures-2", "structures-3"} <= set(mean["networks"])
    assert "merge" in by_max["timings_s"]


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_a_batch_with_error_bars_is_merged_and_resumed(tmp_path: Path, merge: str):
    files = saved(tmp_path, a={"name": "A"}, b={"name": "B"})
    segmenter = Segmenter(files, config=InferenceConfig(merge=merge))
    scans = [coarse_scan(tmp_path / "scan.nii.gz")]
    done = run_scans(segmenter, scans, tmp_path / "out", Outputs(repeat=2))
    assert [(one.status, one.message) for one in done.outcomes] == [("done", "")]
    assert done.outcomes[0].intervals_mm3 is not None
    again = run_scans(segmenter, scans, tmp_path / "out", Outputs(repeat=2))
    assert [one.status for one in again.outcomes] == ["skipped"]
    other = Segmenter(files, config=InferenceConfig(merge="vote"))
    assert run_scans(other, scans, tmp_path / "out", Outputs(repeat=2)).outcomes[0].status == "done"


def test_merging_one_network_is_a_mistake(tmp_path: Path, command: Callable):
    (a,) = saved(tmp_path, a={})
    scan_file = coarse_scan(tmp_path / "scan.nii.gz")
    code, _, said = command("segment", scan_file, "-o", tmp_path / "out", "--weights", a, "--merge", "max")
    assert code == 2
    assert "--merge: found fewer than two networks" in said
    assert "--weights once for each" in said


def test_doctor_looks_at_all_networks_of_an_ensemble(tmp_path: Path, command: Callable):
    a, b = saved(tmp_path, a={"name": "A"}, b={"name": "B"})
    scan_file = coarse_scan(tmp_path / "scan.nii.gz")

    def told(*options: object) -> dict:
        code, said, failed = command("doctor", scan_file, "--json", "--backend", "torch", "--threads", 1, *options)
        assert code == 0, failed
        return json.loads(said)["scans"][0]

    alone, both = told("--weights", b), told("--weights", a, "--weights", b)
    assert both["memory_bytes"] is not None
    assert both["window"] == alone["window"]
    by_max = told("--weights", a, "--weights", b, "--merge", "max")
    assert by_max["window"] == alone["window"]
    code, _, said = command("doctor", scan_file, "--weights", a, "--merge", "max")
    assert code == 2
    assert "--merge: found fewer than two networks" in said


def test_the_forecast_plans_as_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = random_unet(1, len(VALUES), seed=1)
    blocks = type(blocks)(replace(blocks.config, patch=2))
    nets = {"plain": random_unet(1, len(VALUES), seed=0), "blocks": blocks.eval()}
    pair = [replace(band_model(multiple=8), network=net, name=name) for name, net in nets.items()]
    segmenter = Segmenter(pair, "fast", device="cpu", backend="torch")
    segmenter.placement = replace(segmenter.placement, thin=True)
    plans = []
    stream = passes.stream_mean
    monkeypatch.setattr(
        passes, "stream_mean", lambda *args, plan, **named: plans.append(plan) or stream(*args, plan=plan, **named)
    )
    scan_file = coarse_scan(tmp_path / "scan.nii.gz")
    told = forecast(segmenter, scan_file, dict.fromkeys(segmenter.models, 1e-9))
    segmenter.segment(scan_file)
    assert (told.slab, told.recompute) == (plans[0].slab, plans[0].recompute)
    assert told.slab % 4 == 0


def test_every_network_of_an_ensemble_needs_ranges_for_int8(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    monkeypatch.setattr(placement, "make_backend", lambda choice, **_: made.append(choice.precision) or PlainBackend())
    ranged = replace(band_model(), name="ranged", ranges={"head": Range(0.0, 1.0, (1.0,))})
    int8 = Choice(backend="openvino", device=torch.device("cpu"), precision="int8")
    with pytest.raises(WeightsError, match=r"weights bare: found no activation ranges for int8\. Fix: add them"):
        placement.place(gather("default", [ranged, replace(band_model(), name="bare")], locator=False), int8)
    made.clear()
    placement.place(gather("default", [ranged, replace(ranged, name="other")], locator=False), int8)
    assert made == ["int8", "int8"]


def test_a_limit_of_memory_counts_the_networks_that_are_held(tmp_path: Path, command: Callable):
    a, b = saved(tmp_path, a={"name": "A"}, b={"name": "B"})
    scan_file = coarse_scan(tmp_path / "scan.nii.gz")
    for rule in ("mean", "max"):
        options = ("--weights", a, "--weights", b, "--merge", rule, "--memory", "1M")
        code, _, said = command("segment", scan_file, "-o", tmp_path / "out", *options)
        assert code == 1
        assert "or merge fewer networks" in said
