"""What a scan takes beside its networks: at least what it keeps, and refused before the networks run."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from inference_helpers import band_model, phantom, phantom_affine, smooth_posteriors
from plus_helpers import (
    EXACT,
    hierarchy_models,
    painted,
    parcels_model,
    quality_model,
    random_unet,
    scan_of,
    structures_model,
)
from synthseg.engine.choose import Choice
from synthseg.engine.memory import Plan
from synthseg.engine.torch_backend import TorchBackend
from synthseg.errors import SynthsegError
from synthseg.inference import InferenceConfig, Model, Segmenter, Want, passes
from synthseg.inference.grids import Grid
from synthseg.inference.needs import Needs, needs_of
from synthseg.inference.parcels import BEYOND, predict_parcels
from synthseg.inference.passes import room_for
from synthseg.inference.placement import passes_of, place
from synthseg.inference.quality import QualityInputs
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume
from synthseg.weights.store import ALIASES


def needs(segmenter: Segmenter, scan: Volume, want: Want | None = None, *, on_cpu: bool = True) -> Needs:
    return needs_of(segmenter.prepare(scan), segmenter.models, want or Want(), on_cpu=on_cpu)


@pytest.mark.parametrize("space", ["native", "1mm"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 1)])
def test_posteriors_and_maps_count_for_what_they_are(space, spacing):
    scan = Volume(phantom(spacing_mm=spacing), phantom_affine(spacing))
    segmenter = Segmenter(band_model(), "fast")
    bare = needs(segmenter, scan, Want(space=space))
    want = Want(space=space, posteriors=True, tissue_maps=True, resampled=True)
    result = segmenter.segment(scan, want)
    assert result.posteriors is not None
    assert result.tissue_maps is not None
    assert result.resampled is not None
    only = needs(segmenter, scan, Want(space=space, posteriors=True))
    assert only.results - bare.results == only.maps == result.posteriors.data.nbytes
    twice = needs(segmenter, scan, Want(space=space, posteriors=True, regrouped=True))
    assert twice.maps == 2 * only.maps
    kept = result.posteriors.data.nbytes + sum(one.data.nbytes for one in result.tissue_maps.values())
    assert needs(segmenter, scan, want).results - bare.results >= kept + result.resampled.data.nbytes
    assert (only.gathered, only.beside) == (bare.gathered, bare.beside)


def test_parcels_quality_and_groups_count_for_what_is_kept_of_them():
    scan = scan_of(painted())
    main, parcels, quality = structures_model(), parcels_model(), quality_model()
    models = {"structures": main, "parcels": parcels, "quality": quality}
    bare = needs(Segmenter({"structures": main}, config=EXACT), scan)
    full = Segmenter({"structures": main}, config=EXACT, parcels=parcels, quality=quality)
    prepared = full.prepare(scan)
    found = needs(full, scan)
    labels = torch.zeros(prepared.padded.shape, dtype=torch.int64)
    dense = predict_parcels(parcels, prepared.image, labels, main.channels, EXACT, grid=prepared.padded).posteriors
    assert found.beside - bare.beside >= dense.nbytes
    assert found.results - bare.results >= found.parcels >= 1.5 * dense.nbytes
    inputs = QualityInputs(quality, main.channels, prepared.padded.shape)
    assert found.gathered - bare.gathered >= inputs.groups.nbytes + inputs.labels.nbytes + inputs.seen().nbytes
    assert needs_of(prepared, models, Want(), on_cpu=False).results < found.results  # parcels stay on the GPU
    robust = Segmenter(hierarchy_models(), "robust", config=EXACT)
    assert needs(robust, scan).beside >= 2 * 8 * math.prod(prepared.padded.shape)


@pytest.mark.parametrize("what", ["gathered", "beside", "results"])
def test_a_limit_that_is_too_low_for_anything_is_refused_before_the_networks_run(monkeypatch, what):
    monkeypatch.setattr("synthseg.inference.placement.resident_bytes", lambda: 2**30)
    ran = []
    model = band_model(spacing_mm=2.0)
    model.network.register_forward_hook(lambda *_: ran.append(True))
    large = replace(Needs(0, 0, 0), **{what: 3 * 2**30})
    monkeypatch.setattr(passes, "needs_of", lambda *_, **__: large)
    scan = Volume(phantom(spacing_mm=(2, 2, 2)), phantom_affine((2, 2, 2)))
    with pytest.raises(SynthsegError, match=r"a limit of 4\.0 GiB, where 4\.0 GiB are needed") as caught:
        Segmenter(model, "fast", memory=2**32 - 1, device="cpu").segment(scan)
    assert ran == []
    needed = int(re.search(r"--memory of (\d+)M", str(caught.value))[1])
    Segmenter(model, "fast", memory=f"{needed}M", device="cpu").segment(scan)
    assert ran == [True]


def unet_of(role: str, features: int, name: str = "network") -> Model:
    network = UNet(UNetConfig(out_channels=33, features=features, levels=2, convs_per_level=1)).eval()
    return replace(structures_model(), network=network, role=role, name=name)


@pytest.mark.parametrize(
    ("name", "parcels", "advised"),
    [
        (ALIASES["default"], None, "or use --weights compact"),
        (ALIASES["compact"], None, "M or more"),
        ("network", None, "M or more"),
        (ALIASES["default"], 4, "or use --weights compact"),
        (ALIASES["default"], 32, "M or more, or leave out --parc"),
    ],
)
def test_networks_that_are_too_large_are_what_is_advised_against(name, parcels, advised):
    models = {"structures": unet_of("structures", 16, name)}
    if parcels is not None:
        models["parcels"] = unet_of("parcels", parcels)
    choice = Choice(backend="torch", device=torch.device("cpu"))
    placement = place(models, choice, limit=2**20)
    passes = passes_of(placement.models, flip=False)
    with pytest.raises(SynthsegError) as caught:
        placement.require_room(passes, (64, 64, 64), Needs(0, 0, 0), "scan")
    assert caught.value.fix.endswith(advised)


def test_in_robust_mode_the_default_mode_is_advised():
    models = {**hierarchy_models(), "guided": unet_of("guided", 4)}
    placement = place(models, Choice(backend="torch", device=torch.device("cpu")), limit=2**20)
    with pytest.raises(SynthsegError, match=r"or use the default mode with --weights compact$"):
        placement.require_room(passes_of(placement.models, flip=True), (8, 8, 8), Needs(0, 0, 0), "scan")


@pytest.mark.parametrize(
    ("found", "advised"),
    [
        (Needs(0, 0, 2**40, maps=2**40), "or leave out --posteriors and --tissue-maps"),
        (Needs(0, 0, 2**40, parcels=2**40), "or leave out --parc"),
        (Needs(0, 0, 2**40), "M or more"),
    ],
)
def test_results_that_are_too_large_are_what_is_advised_against(found, advised):
    placement = Segmenter(structures_model(), device="cpu", memory="1G").placement
    with pytest.raises(SynthsegError) as caught:
        placement.require_room([], (8, 8, 8), found, "scan")
    assert caught.value.fix.endswith(advised)


@pytest.mark.parametrize("slab", [4, 8])
def test_parcels_taken_in_slab_by_slab_are_those_of_the_whole_image(slab):
    network = random_unet(3, 69, 5)
    model = replace(parcels_model(network), backend=TorchBackend())
    rng = torch.Generator().manual_seed(0)
    image = torch.rand((1, 1, 24, 16, 12), generator=rng)
    labels = torch.randint(0, 33, (24, 16, 12), generator=rng)
    channels, grid = structures_model().channels, Grid((24, 16, 12), np.eye(4))
    config = InferenceConfig()
    found = predict_parcels(
        model, image, labels, channels, config, grid=grid, plan=Plan(slab=slab, recompute=False, bytes=0)
    )
    cortex = torch.from_numpy(np.isin(channels.values[labels.numpy()], (3, 42))).float()
    with torch.no_grad():
        expected = torch.softmax(network(torch.stack([image[0, 0], 1 - cortex, cortex])[None]), 1)[0]
    expected = smooth_posteriors(expected * cortex.clamp(min=BEYOND), config.parcel_smoothing_sigma_vox)
    torch.testing.assert_close(found.posteriors, expected, rtol=0, atol=1e-5)


def test_a_gpus_limit_is_for_its_own_memory():
    placement = Segmenter(structures_model(), device="cpu", memory=2**20).placement
    gpu = replace(placement, choice=replace(placement.choice, device=torch.device("cuda")))
    gpu.require_room([], (8, 8, 8), Needs(2**40, 0, 2**40), "scan")
    with pytest.raises(SynthsegError, match="where 2 MiB are needed"):
        gpu.require_room([], (8, 8, 8), Needs(0, 2**21, 0), "scan")
    assert placement.limits_main_memory
    assert not gpu.limits_main_memory


def test_the_room_that_a_scan_needs_is_known_before_it_is_segmented():
    segmenter = Segmenter(band_model(spacing_mm=2.0), "fast", device="cpu")
    scan = Volume(phantom(spacing_mm=(2, 2, 2)), phantom_affine((2, 2, 2)))
    prepared = segmenter.prepare(scan)
    assert room_for(segmenter.placement, prepared, Want(), segmenter.config) == needs(segmenter, scan)
