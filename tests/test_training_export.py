"""What a run leaves behind, and what another starts from."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from synthseg.errors import LabelError, TrainingError, WeightsError
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.training import SegmentationTask
from synthseg.training.export import start_from, target_protocol
from synthseg.training.validation import ValidationSet
from synthseg.weights import build_network, load_weights, protocol_of, verify_weights
from training_helpers import assert_same_bits, cut, run, save_bank, state_of, tiny_protocol, tiny_recipe

# Output protocols


def test_the_generation_table_leads_to_the_published_outputs():
    generation = load_protocol("synthseg-generation")
    output = target_protocol(generation)
    assert output == load_protocol("synthseg-2.0")
    assert output.values.tolist() == generation.target_values.tolist()


def test_another_table_leads_to_its_own_targets_in_channel_order():
    output = target_protocol(tiny_protocol())
    assert output.values.tolist() == output.target_values.tolist() == [0, 2, 16, 41]
    assert output.names == ("background", "left matter", "brain-stem", "right matter")
    assert output.partner_channel.tolist() == [0, 3, 2, 1]
    assert output.generation_classes.tolist() == [0, 2, 1, 3]  # closed up where the bone's class was


def renamed(protocol: LabelProtocol, **changes: object) -> LabelProtocol:
    """A table of one's own with a published one's rows, the last but one of which may be changed."""
    rows = list(protocol.labels)
    rows[-2] = dataclasses.replace(rows[-2], **changes)
    return LabelProtocol("mine", "", tuple(rows))


@pytest.mark.parametrize("name", ["synthseg-1.0", "synthseg-2.0", "feta"])
def test_rows_that_mean_the_same_lead_to_the_published_table(name: str):
    published = load_protocol(name)
    assert target_protocol(renamed(published, color=(1, 2, 3), quality=0)) == published


@pytest.mark.parametrize("changes", [{"name": "something else"}, {"topology": 77}])
def test_rows_that_mean_something_else_are_no_published_table(changes: dict[str, object]):
    output = target_protocol(renamed(load_protocol("feta"), **changes))
    assert output.name == "mine-targets"
    assert {field: getattr(output.labels[-2], field) for field in changes} == changes


def test_values_alone_do_not_make_a_published_table():
    # 0 to 7, the values of the foetal table, but with sides
    first = load_protocol("feta").labels[0]
    rows = [first]
    for value in range(1, 8):
        side, partner = ("neutral", 7) if value == 7 else (("left", "right")[(value + 1) % 2], (value - 1 ^ 1) + 1)
        rows.append(
            dataclasses.replace(
                first,
                value=value,
                name=f"part {value}",
                side=side,
                partner=partner,
                target=value,
                generation_class=value,
            )
        )
    output = target_protocol(LabelProtocol("sides", "", tuple(rows)))
    assert output.values.tolist() == load_protocol("feta").values.tolist()
    assert output.name == "sides-targets"
    assert output.names[1:3] == ("part 1", "part 2")
    assert output.partner_channel.tolist() == [0, 2, 1, 4, 3, 6, 5, 7]


def test_a_published_table_used_for_training_leads_to_its_own_targets():
    output = target_protocol(load_protocol("synthseg-2.0"))
    assert output.values.tolist() == load_protocol("synthseg-2.0").values.tolist()


def test_a_target_without_a_row_is_named():
    def row(value: int, target: int) -> object:
        return dataclasses.replace(
            tiny_protocol().labels[1], value=value, partner=value, name=str(value), target=target
        )

    table = LabelProtocol("odd", "", (tiny_protocol().labels[0], row(16, 99)))
    with pytest.raises(LabelError, match=r"odd: found targets \[99\] without a row. Fix: add a row"):
        target_protocol(table)


# The exported file


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_exported_weights_are_the_averaged_network_and_explain_themselves(tmp_path: Path, ema: float):
    recipe = tiny_recipe(tmp_path, optimizer={"ema_decay": ema}, output={"name": "mine", "description": "a test"})
    result = run(recipe, tmp_path / "run")
    assert result.weights == tmp_path / "run" / "mine.safetensors"
    weights = load_weights(result.weights)
    prefix = "average." if ema else "network."
    expected = UNet(recipe.network)
    state = state_of(tmp_path / "run")[0]
    expected.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = build_network(weights)(image), expected.eval()(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * theirs.abs().max().item())  # half precision
    card = weights.card
    assert (card["name"], card["steps"], card["spacing_mm"], card["samples"]) == ("mine", 6, 1.0, 6)
    assert protocol_of(weights).target_values.tolist() == [0, 2, 16, 41]
    assert card["data"] == "2 label maps (one ... two), no real scan"
    assert card["optimizer"]["learning_rate"] == 1e-2
    assert "a test" in card["description"]
    assert str(tmp_path) not in str(card)  # nothing of the machine travels
    checks = verify_weights(result.weights).checks
    assert checks[2:] == ("unet with 4,944 parameters", "role structures", "4 labels of tiny-targets")


# Starting from other weights


def network(out_channels: int = 4, seed: int = 0, **shape: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(UNetConfig(out_channels=out_channels, **{"features": 4, "levels": 2, **shape}))


def test_channels_are_carried_over_by_label_value():
    old, new, before = network(4, seed=1), network(5, seed=2), network(5, seed=2)
    report = start_from(new, old.state_dict(), [0, 2, 16, 41], [0, 3, 16, 41, 42])
    for channel, source in ((0, 0), (2, 2), (3, 3)):
        assert torch.equal(new.head.weight[channel], old.head.weight[source])
        assert torch.equal(new.head.bias[channel], old.head.bias[source])
    for channel in (1, 4):
        assert torch.equal(new.head.weight[channel], before.head.weight[channel])
    body = {name: tensor for name, tensor in new.state_dict().items() if not name.startswith("head")}
    assert_same_bits(body, {name: old.state_dict()[name] for name in body})
    assert (report.channels, report.fresh_channels, report.fresh) == ((0, 16, 41), (3, 42), ())
    assert report.sentence().endswith("3 output channels taken; fresh output channels of labels 3, 42")


def test_tensors_of_another_shape_stay_fresh_and_are_named():
    old, new = network(4, seed=1, levels=2), network(4, seed=2, levels=3)
    report = start_from(new, old.state_dict(), [0, 1, 2, 3], [0, 1, 2, 3])
    assert "up.0.convs.0.weight" in report.fresh
    assert "down.2.convs.0.weight" in report.fresh
    assert report.taken == len(new.state_dict()) - len(report.fresh)
    assert torch.equal(new.down[0].convs[0].weight, old.down[0].convs[0].weight)
    assert "fresh: " in report.sentence()


@pytest.mark.parametrize("shape", [{"features": 6}, {"kernel": 5}])
def test_weights_of_which_nothing_fits_are_refused(shape: dict[str, int]):
    with pytest.raises(TrainingError, match=r"starting weights: found no convolution that fits"):
        start_from(network(seed=2), network(seed=1, **shape).state_dict(), [0, 1, 2, 3], [0, 1, 2, 3])


def test_a_run_starts_from_a_file_of_another_label_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = run(tiny_recipe(tmp_path), tmp_path / "first")
    rows = [dataclasses.replace(r, target=0) if r.value == 16 else r for r in tiny_protocol().labels]
    rows.append(dataclasses.replace(rows[1], value=24, partner=24, name="fluid", target=24, generation_class=5))
    other = tmp_path / "other"
    other.mkdir()
    save_bank(other, LabelProtocol("other", "", tuple(rows)))
    recipe = tiny_recipe(other, optimizer={"ema_decay": 0.5, "learning_rate": 1e-12})
    run(cut(recipe, 1), tmp_path / "second", init=first.weights)
    told = capsys.readouterr().err
    assert "started from synthseg: " in told
    assert "3 output channels taken; fresh output channels of labels 24" in told
    start, end = load_weights(first.weights).tensors, state_of(tmp_path / "second")[0]
    carried = {0: 0, 1: 1, 3: 3}  # values 0, 2, 41 stand at the same channels; 24 has taken 16's place
    for prefix in ("network.", "average."):  # the average starts there too
        assert torch.allclose(end[f"{prefix}down.0.convs.0.weight"], start["down.0.convs.0.weight"], atol=1e-9)
        for new, old in carried.items():
            assert torch.allclose(end[f"{prefix}head.weight"][new], start["head.weight"][old], atol=1e-9)
    assert not torch.allclose(end["network.head.weight"][2], start["head.weight"][2], atol=1e-3)


def test_a_resumed_run_does_not_start_over_from_the_given_weights(tmp_path: Path):
    weights = run(cut(tiny_recipe(tmp_path), 2), tmp_path / "other").weights
    recipe = tiny_recipe(tmp_path, optimizer={"seed": 8})
    run(recipe, tmp_path / "whole", init=weights)
    run(cut(recipe, 3), tmp_path / "parts", init=weights)
    run(recipe, tmp_path / "parts", init=weights, resume=True)
    assert_same_bits(state_of(tmp_path / "parts")[0], state_of(tmp_path / "whole")[0])


def test_missing_starting_weights_are_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"absent.safetensors: found no such file"):
        run(tiny_recipe(tmp_path), tmp_path / "run", init=tmp_path / "absent.safetensors")


# Where weights come from, and of which step their scores are


def test_the_card_keeps_what_a_run_started_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = run(cut(tiny_recipe(tmp_path), 2), tmp_path / "first").weights
    assert first is not None
    origin = {"name": "synthseg", "sha256": load_weights(first).card["sha256"], "steps": 2}
    assert load_weights(first).card["started_from"] is None
    recipe = tiny_recipe(tmp_path, optimizer={"seed": 8})
    second = run(cut(recipe, 1), tmp_path / "second", init=first).weights
    assert second is not None
    assert load_weights(second).card["started_from"] == origin
    run(cut(recipe, 2), tmp_path / "second", resume=True)
    assert load_weights(second).card["started_from"] == origin
    capsys.readouterr()
    run(cut(recipe, 3), tmp_path / "second", resume=True, init=tmp_path / "no longer there.safetensors")
    assert load_weights(second).card["started_from"] == origin
    assert "weights to start from are not used again" in capsys.readouterr().err


def test_the_card_says_of_which_step_its_scores_are(tmp_path: Path):
    class Scored(SegmentationTask):
        def validate(self, network: nn.Module) -> dict[str, float]:  # noqa: ARG002
            return {"dice": 0.5}

    recipe = tiny_recipe(tmp_path, data={"validation": "v.safetensors", "validate_every": 2})
    target = torch.ones((4, 4, 4), dtype=torch.uint8)
    ValidationSet(("x",), (torch.zeros(4, 4, 4),), (target,), 1.0).save(tmp_path / "v.safetensors")
    steps = []
    for minutes in (0.0, 0.0, 0.0, None):  # a step each; then to the end
        weights = run(recipe, tmp_path / "run", task_of=Scored, resume=True, max_minutes=minutes).weights
        assert weights is not None
        card = load_weights(weights).card
        steps.append((card["steps"], card["scores_step"]))
    assert steps == [(1, None), (2, 2), (3, 2), (6, 6)]


def test_a_target_that_both_sides_share_has_no_partner():
    keys = ["value", "name", "side", "partner", "generation_class", "contrast_class", "target", "topology", "quality"]
    table = [
        (0, "background", "neutral", 0, 0, 0, 0, 0, 0),
        (1, "left bulb", "left", 2, 1, 1, 1, 1, 1),
        (2, "right bulb", "right", 1, 2, 1, 1, 1, 1),
    ]
    rows = [{**dict(zip(keys, row, strict=True)), "color": [9, 9, 9]} for row in table]
    merged = LabelProtocol.from_rows("bulbs", "", rows)
    output = target_protocol(merged)
    assert output.values.tolist() == [0, 1]
    assert output.sides == ("neutral", "neutral")
    assert output.partner_channel.tolist() == [0, 1]


def test_channels_of_a_network_on_blocks_are_carried_over_block_by_block():
    old, new = (UNet(UNetConfig(features=4, levels=2, out_channels=n, patch=2, norm="instance")) for n in (3, 4))
    start_from(new, old.state_dict(), [0, 2, 41], [0, 16, 2, 41])
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(new(image)[:, [0, 2, 3]], old(image))


def test_a_head_for_blocks_does_not_fit_one_for_voxels():
    voxels, blocks = (UNet(UNetConfig(features=4, levels=2, out_channels=3, patch=patch)) for patch in (1, 2))
    before = blocks.head.weight.clone()
    report = start_from(blocks, voxels.state_dict(), [0, 2, 41], [0, 2, 41])
    assert torch.equal(blocks.head.weight, before)
    assert {"head.weight", "head.bias", "down.0.convs.0.weight"} <= set(report.fresh)
    assert report.channels == ()


def test_the_compact_networks_start_is_the_default_on_blocks_one_level_fewer():
    script = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "compact_start.py"))
    deep = UNet(UNetConfig(features=4, levels=3, out_channels=3, norm="instance"))
    start = script["compact_start"](deep.state_dict(), 3)
    compact = UNet(UNetConfig(features=4, levels=2, out_channels=3, norm="instance", patch=2))
    compact.load_state_dict(start)
    shallow = UNet(UNetConfig(features=4, levels=2, out_channels=3, norm="instance"))
    kept = {name: tensor for name, tensor in start.items() if shallow.state_dict()[name].shape == tensor.shape}
    kept |= {name: deep.state_dict()[name] for name in ("down.0.convs.0.weight", "head.weight", "head.bias")}
    shallow.load_state_dict(kept)
    image = torch.rand(1, 1, 6, 8, 4)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)

    torch.testing.assert_close(compact(doubled(image)), doubled(shallow(image)), rtol=1e-4, atol=1e-4)
