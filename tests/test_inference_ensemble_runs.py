"""Several networks through the pipeline: one result, whatever is held in memory meanwhile, and clear refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from inference_helpers import (
    VALUES,
    BandNetwork,
    band_model,
    phantom,
    phantom_affine,
)
from plus_helpers import random_unet
from synthseg.engine.memory import Plan
from synthseg.errors import InvariantError, UsageError
from synthseg.inference import InferenceConfig, Model, Segmentation, Segmenter, Want, passes
from synthseg.inference.bundle import gather, multiple_of
from synthseg.inference.ensemble import joint_plan, members_of, stream_mean
from synthseg.inference.merging import majority, most_confident
from synthseg.inference.modes import mode_config
from synthseg.inference.placement import passes_of
from synthseg.inference.predict import tempered
from synthseg.volumes import Volume

FREE = InferenceConfig(topology=False, channel_threshold=0)  # posteriors are all kept: only outside they are cut
PUBLISHED = mode_config("fetal-published")


class Tilted(BandNetwork):
    """A band network that prefers some labels: by a logit each, random but for background's."""

    def __init__(self, seed: int, sharpness: float = 30.0) -> None:
        super().__init__(sharpness=sharpness)
        tilt = 2 * torch.randn(len(VALUES), generator=torch.Generator().manual_seed(seed))
        self.tilt = tilt.view(1, -1, 1, 1, 1) * (torch.arange(len(VALUES)) > 0).view(1, -1, 1, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) + self.tilt


class MeanOf(nn.Module):
    """One network whose posteriors are the mean of others', each at its temperature."""

    def __init__(self, networks: list[nn.Module], temperatures: list[float]) -> None:
        super().__init__()
        self.networks, self.temperatures = networks, temperatures

    def forward(self, image: Tensor) -> Tensor:
        said = [(n(image) / t).softmax(1) for n, t in zip(self.networks, self.temperatures, strict=True)]
        return torch.stack(said).mean(0).log()


def tilted(count: int = 3, multiple: int = 4) -> list[Model]:
    base = band_model(multiple=multiple)
    return [replace(base, network=Tilted(seed).eval(), name=f"tilted-{seed}") for seed in range(count)]


def scan() -> Volume:
    """The middle of a noisy head in voxels of 1 mm: labels and posteriors are on one grid."""
    head = phantom()[:, :, 24:44]
    data = np.clip(head + np.random.default_rng(0).normal(0, 60, head.shape), 0, 1100).astype(np.float32)
    return Volume(data, phantom_affine())


def run(models: Model | list[Model], config: InferenceConfig, on: Volume | None = None) -> Segmentation:
    return Segmenter(models, config=config).segment(on or scan(), Want(posteriors=True))


def posteriors(segmentation: Segmentation) -> np.ndarray:
    assert segmentation.posteriors is not None
    return segmentation.posteriors.data


# -- what comes out


def test_the_mean_is_that_of_a_network_which_averages_tempered_posteriors():
    temperatures = [0.5, 1.0, 3.0]
    members = [replace(one, temperature=t) for one, t in zip(tilted(), temperatures, strict=True)]
    whole = replace(members[0], network=MeanOf([m.network for m in members], temperatures).eval())
    found, expected = run(members, InferenceConfig()), run(whole, InferenceConfig())
    np.testing.assert_allclose(posteriors(found), posteriors(expected), atol=1e-5)
    assert (found.native.data != expected.native.data).mean() < 1e-4
    assert found.volumes_mm3 == pytest.approx(expected.volumes_mm3, rel=1e-4)


@pytest.mark.parametrize(("merge", "rule"), [("max", most_confident), ("vote", majority)])
@pytest.mark.parametrize("config", [FREE, InferenceConfig()])
def test_max_and_vote_merge_what_is_left_of_each_network(merge, rule, config):
    config = replace(config, merge=merge)
    alone = [run(one, config) for one in tilted()]
    merged = run(tilted(), config)
    stack = np.stack([posteriors(one).reshape(len(VALUES), -1) for one in alone])
    expected = rule(stack).reshape(posteriors(merged).shape)
    np.testing.assert_allclose(posteriors(merged), expected, atol=1e-6)
    np.testing.assert_array_equal(merged.native.data, np.array(VALUES)[expected.argmax(0)])
    sums = dict(zip(VALUES[1:], expected[1:].reshape(len(VALUES) - 1, -1).sum(1).tolist(), strict=True))
    assert merged.volumes_mm3 == pytest.approx(sums, rel=1e-4, abs=1e-2)
    assert merged.total_mm3 == pytest.approx(sum(sums.values()), rel=1e-4)


def test_with_max_every_hard_label_is_the_one_of_the_surest_network():
    config = replace(FREE, merge="max")
    alone = [run(one, config) for one in tilted()]
    labels = np.stack([one.native.data for one in alone])
    surest = np.stack([posteriors(one).max(0) for one in alone]).argmax(0)
    np.testing.assert_array_equal(
        run(tilted(), config).native.data, np.take_along_axis(labels, surest[None], axis=0)[0]
    )


@pytest.mark.parametrize("merge", ["mean", "max", "vote"])
def test_networks_that_agree_change_nothing(merge):
    one = band_model()
    copies = [replace(one, name=f"copy-{n}") for n in range(3)]
    config = InferenceConfig(merge=merge)
    alone, merged = run(one, config), run(copies, config)
    np.testing.assert_array_equal(merged.native.data, alone.native.data)
    # of a vote the volumes are counts of voxels, but for the little share of the mean
    assert merged.total_mm3 == pytest.approx(alone.total_mm3, rel=0.2 if merge == "vote" else 1e-5)


def test_a_member_alone_is_as_sure_as_it_is_whatever_its_temperature():
    model = tilted(1)[0]
    cold = run(replace(model, temperature=0.3), FREE)
    np.testing.assert_array_equal(posteriors(cold), posteriors(run(model, FREE)))


# -- how it is made


def test_posteriors_are_tempered_as_logits_are():
    logits = 5 * torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    for temperature in (0.2, 0.7, 1.0, 4.0):
        found = tempered(logits.softmax(-1), temperature)
        torch.testing.assert_close(found, (logits / temperature).softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("slab", [None, 8])
def test_the_mean_comes_slab_by_slab_and_is_that_of_whole_volumes(flip, slab):
    base = band_model()
    networks = [random_unet(1, len(VALUES), seed=seed) for seed in range(3)]
    members = [replace(base, network=net, temperature=0.5 + n) for n, net in enumerate(networks)]
    placed = Segmenter(members, device="cpu", backend="torch").models
    image = torch.rand(1, 1, 24, 16, 8, generator=torch.Generator().manual_seed(3))
    plan = None if slab is None else Plan(slab, True, 0)
    parts = list(stream_mean(list(members_of(placed).values()), image, flip=flip, plan=plan, subject="scan"))
    assert [start for start, _ in parts] == list(range(0, 24, slab or 24))
    partners = torch.from_numpy(base.channels.partners)
    expected = torch.zeros(24, 16, 8, len(VALUES))
    with torch.no_grad():
        for member, net in zip(members, networks, strict=True):
            said = (net(image) / member.temperature).softmax(1)[0].movedim(0, -1)
            if flip:
                other = (net(image.flip(2)) / member.temperature).softmax(1)[0].movedim(0, -1).flip(0)
                said = (said + other[..., partners]) / 2
            expected += said / 3
    torch.testing.assert_close(torch.cat([part for _, part in parts]), expected, atol=1e-4, rtol=1e-4)


def test_the_thinnest_plan_holds_for_all_in_whole_blocks_of_each():
    plain, blocks = (replace(band_model(), network=random_unet(1, 7, seed=0)) for _ in range(2))
    patch = 2
    blocks = replace(blocks, network=type(blocks.network)(replace(blocks.network.config, patch=patch)))
    joint = joint_plan([(plain, Plan(10, False, 5)), (blocks, Plan(16, True, 9)), (band_model(), None)])
    assert joint == Plan(8, True, 9)
    assert joint_plan([(plain, Plan(None, False, 5))]) == Plan(None, False, 5)
    assert joint_plan([(band_model(), None)]) is None


def test_only_the_mean_holds_all_networks_side_by_side():
    models = gather("default", tilted(3), locator=False)
    assert [count for _, count in passes_of(models, flip=True)] == [6, 6, 6]
    assert [count for _, count in passes_of(models, flip=True, merge="max")] == [2, 2, 2]
    assert [count for _, count in passes_of(gather("default", tilted(1)[0]), flip=True)] == [2]


def test_one_image_suits_all_members():
    models = gather("default", [tilted(multiple=4)[0], tilted(2, multiple=6)[1]], locator=False)
    assert multiple_of(models) == 12
    assert {model.multiple for model in members_of(models).values()} == {12}


def test_all_networks_see_the_window_that_the_last_one_asked_for(monkeypatch):
    seen: list[tuple[str, object]] = []
    segmenter = Segmenter(tilted(3), config=replace(FREE, merge="max"))
    prepared = segmenter.prepare(scan())
    wider = replace(prepared, window=replace(prepared.window, start=(1, 0, 0)), notes=("wider",))
    answer = run_alone = passes.run_networks

    def fake(placement, asked, groups, want, config, watch):
        if len(members_of(placement.models)) > 1:
            return run_alone(placement, asked, groups, want, config, watch)
        name = placement.models["structures"].name
        seen.append((name, asked.window))
        given = answer(placement, prepared, groups, want, config, watch)
        return replace(given, prepared=wider if name == "tilted-1" else asked)

    monkeypatch.setattr(passes, "run_networks", fake)
    found = segmenter.segment(prepared)
    first, last = prepared.window, wider.window
    assert seen == [
        ("tilted-0", first),
        ("tilted-1", first),
        ("tilted-0", last),
        ("tilted-1", last),
        ("tilted-2", last),
    ]
    assert "wider" in found.notes


def test_one_network_without_a_mirror_image_rules_it_out_for_all():
    first, second = tilted(2)
    for pair in ([first, replace(second, flip=False)], [replace(first, flip=False), second]):
        segmenter = Segmenter(pair)
        assert not segmenter.config.flip
        assert not segmenter.with_config(InferenceConfig(flip=True)).config.flip
    assert Segmenter([first, second]).config.flip


def test_the_network_that_answers_with_nan_is_named():
    class Broken(BandNetwork):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * torch.nan

    broken = replace(band_model(), network=Broken().eval(), name="broken")
    with pytest.raises(InvariantError, match="an output of broken that is not a number"):
        run([band_model(), broken], InferenceConfig())


# -- as published (reference A.8, steps 2 and 3)


def test_the_fetal_settings_clean_up_as_published():
    model = tilted(1)[0]
    volume = scan()
    found = run(model, PUBLISHED, volume)
    image = volume.data
    low, high = np.percentile(image, (0.5, 99.5))
    image = np.clip((image - low) / (high - low), 0, 1)
    with torch.no_grad():
        p = model.network(torch.from_numpy(image)[None, None]).softmax(1)[0].numpy()
    outer = math.exp(-2)  # sigma of half a voxel, three taps
    taps = np.array([outer, 1, outer]) / (1 + 2 * outer)
    for axis in (1, 2, 3):
        p = ndimage.convolve1d(p, taps, axis=axis, mode="constant")
    pieces, _ = ndimage.label(p[1:].sum(0) > 0.25)
    mask = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    p[1:] *= mask
    p[0, ~mask] = 1  # published: 0 / 0 where nothing is left
    p /= p.sum(0)
    np.testing.assert_allclose(posteriors(found), p, atol=2e-4)
    assert (found.native.data != np.array(VALUES)[p.argmax(0)]).mean() < 1e-3


def test_the_published_settings_are_a_mode_whose_networks_the_caller_names():
    assert replace(InferenceConfig(), percentiles=(0.5, 99.5), flip=False, topology=False, channel_threshold=0) == (
        replace(PUBLISHED, merge="mean")
    )
    assert PUBLISHED.merge == "max"
    assert Segmenter(tilted(2), "fetal-published").config == PUBLISHED
    assert Segmenter({"structures": tilted(1)[0]}, "fetal-published").model.name == "tilted-0"
    for nothing in (None, "default", {}):
        with pytest.raises(UsageError, match=r"mode fetal-published: found no weights\. Fix: name them"):
            gather("fetal-published", nothing)
