"""Where the brain is looked for and through which window it is seen: locators, margins, windows found too small."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import synthseg.inference.focus as focus_module
from inference_helpers import VALUES, phantom, small_protocol
from plus_helpers import GROUPS
from synthseg.inference import InferenceConfig, Model
from synthseg.inference.bundle import gather
from synthseg.inference.focus import FREE_MARGIN_VOX, MOST_WIDENINGS, Focused, focused, touching, widened
from synthseg.inference.prepare import Prepared, prepare, whole_window
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes import Volume, Window, bounding_box, read_volume, resample_to_spacing, to_ras

CONFIG = InferenceConfig(percentiles=(0, 100))
NO_BRAIN = "no brain was seen at a first look"


class Brighter(nn.Module):
    """Everything brighter than a threshold is the channel after background; counts how often it was asked."""

    def __init__(self, threshold: float, channels: int) -> None:
        super().__init__()
        self.threshold, self.channels, self.asked = threshold, channels, 0

    def forward(self, image: Tensor) -> Tensor:
        self.asked += 1
        logits = torch.full((1, self.channels, *image.shape[2:]), -40.0)
        logits[:, 0] = 0.0
        logits[:, 1] = 400 * (image[:, 0] - self.threshold)
        return logits


def locator(threshold: float, spacing_mm: float = 1.0) -> Model:
    return Model.from_network(Brighter(threshold, 5), GROUPS, spacing_mm=spacing_mm, multiple=4, role="tissues")


def structures(field_of_view_mm: tuple[float, float, float] | None) -> Model:
    network = Brighter(0.2, len(VALUES))
    return Model.from_network(network, small_protocol(), spacing_mm=1.0, multiple=4, field_of_view_mm=field_of_view_mm)


def free_structures() -> Model:
    """A UNet with batch norm, which takes any field of view."""
    config = UNetConfig(out_channels=len(VALUES), features=2, levels=3, convs_per_level=1)
    return Model.from_network(UNet(config), small_protocol(), spacing_mm=1.0, multiple=config.multiple)


def look(model: Model, image: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.inference_mode():
        return of(torch.softmax(model.network(image)[0], 0).permute(1, 2, 3, 0))


def scan(
    before: tuple[int, int, int], after: tuple[int, int, int], flips: tuple[bool, bool, bool] = (False,) * 3
) -> Volume:
    data = np.pad(phantom(), list(zip(before, after, strict=True)))
    affine = np.diag([-1.0 if flip else 1.0 for flip in flips] + [1.0])
    affine[:3, 3] = (-60, -50, -40)
    return Volume(data[tuple(slice(None, None, -1 if flip else 1) for flip in flips)], affine)


def prepared_scan(volume: Volume, multiple: int = 4) -> Prepared:
    return prepare(volume, spacing_mm=1.0, multiple=multiple, config=CONFIG)


def brain_of(prepared: Prepared, threshold: float = 0.2) -> Window:
    """The phantom's box in voxels of the working grid."""
    return bounding_box(prepared.working > threshold * prepared.working.max())


def holds(window: Window, box: Window, margin: int = 0) -> bool:
    start, end = np.array(window.start), np.add(window.start, window.shape)
    return bool((start <= np.array(box.start) - margin).all() and (end >= np.add(box.start, box.shape) + margin).all())


@pytest.fixture
def easily_convinced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phantom's brain is smaller than any that locators are trusted with."""
    monkeypatch.setattr(focus_module, "LEAST_LOCATED_ML", 0.1)
    monkeypatch.setattr(focus_module, "WORTHWHILE_MM3", 1000.0)


# -- finding


AIR = st.tuples(*[st.integers(0, 50)] * 3)


@settings(max_examples=8)
@given(before=AIR, after=AIR, flips=st.tuples(*[st.booleans()] * 3), spacing=st.sampled_from([1.0, 2.0, 3.0]))
def test_a_locator_of_any_voxel_size_finds_the_brain_of_any_scan(before, after, flips, spacing):
    prepared = prepared_scan(scan(before, after, flips))
    model, finder = structures((72.0, 80.0, 64.0)), locator(0.3, spacing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(focus_module, "LEAST_LOCATED_ML", 0.1)
        found = focused(prepared, {"locator": finder, "structures": model}, CONFIG, look)
    window, whole, brain = found.prepared.window, prepared.whole, brain_of(prepared, 0.3)
    assert holds(window, brain)
    extra = np.subtract(window.shape, (72, 80, 64))  # the field of view; a locator's voxels may add one each side
    assert ((extra >= 0) & (extra <= 2 * spacing + 4) | (window.shape == np.array(whole.shape))).all()
    middle = np.add(window.start, np.array(window.shape) / 2)
    off = np.abs(middle - np.add(brain.start, np.array(brain.shape) / 2))
    last = np.add(window.start, window.shape) == np.add(whole.start, whole.shape)
    ends = (window.start == np.array(whole.start)) | last
    assert ((off <= spacing + 2) | ends).all()
    cut = (np.array(whole.shape) > (72, 80, 64)).any()
    assert [finder.network.asked, model.network.asked] == ([1, 0] if cut else [0, 0])


@given(start=st.tuples(*[st.integers(0, 60)] * 3), size=st.tuples(*[st.integers(4, 40)] * 3), air=st.floats(0, 0.04))
def test_a_locator_is_spared_the_air_around_the_head_and_nothing_else(start, size, air):
    image = torch.full((1, 1, 64, 80, 96), air)
    x, y, z = (slice(a, a + n) for a, n in zip(start, size, strict=True))
    image[:, :, x, y, z] = 0.2
    part = focus_module._without_air(image, 16)
    assert all(a % 16 == 0 and n % 16 == 0 for a, n in zip(part.start, part.shape, strict=True))
    outside = image[0, 0].clone()
    outside[tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))] = 0
    assert outside.max() <= max(air, 0)
    assert np.prod(part.shape) <= np.prod([min(n + 46, full) for n, full in zip(size, (64, 80, 96), strict=True)])
    assert focus_module._without_air(torch.zeros(1, 1, 32, 32, 16), 16).shape == (32, 32, 16)


@pytest.mark.usefixtures("easily_convinced")
def test_what_the_window_shows_is_the_scan_there_rescaled_for_networks_that_state_a_field_of_view():
    prepared = prepared_scan(scan((30, 5, 60), (10, 40, 20)))
    prepared.working[0, 0, 0] = 4000  # bright, far from the brain
    for main, rescaled in ((structures((72.0, 80.0, 64.0)), True), (free_structures(), False)):
        shown = focused(prepared, {"locator": locator(0.3), "structures": main}, CONFIG, look).prepared
        assert np.prod(shown.window.shape) < np.prod(prepared.whole.shape)
        part = shown.window.crop(prepared.working)
        low, high = (part.min(), part.max()) if rescaled else prepared.limits
        np.testing.assert_allclose(shown.image[0, 0], ((part - low) / (high - low)).clip(0, 1), atol=1e-6)
        np.testing.assert_allclose(shown.padded.affine, shown.window.affine(prepared.working_affine))


@pytest.mark.usefixtures("easily_convinced")
def test_a_network_of_any_field_of_view_sees_the_brain_with_a_margin_and_pools_the_same_voxels():
    model = free_structures()
    prepared = prepared_scan(scan((37, 26, 45), (30, 41, 22)), multiple=model.multiple)
    shown = focused(prepared, {"locator": locator(0.3, 2.0), "structures": model}, CONFIG, look).prepared
    apart = np.subtract(shown.window.start, prepared.whole.start)
    assert (apart % model.multiple == 0).all()
    assert all(n % model.multiple == 0 for n in shown.window.shape)
    brain = brain_of(prepared, 0.3)
    assert holds(shown.window, brain, FREE_MARGIN_VOX - 2)  # the locator's voxels are twice as large
    assert (np.array(shown.window.shape) < np.array(brain.shape) + 2 * FREE_MARGIN_VOX + 2 * model.multiple + 4).all()
    assert shown.limits == prepared.limits


def test_nothing_is_cut_off_when_that_is_not_asked_for_or_not_worthwhile(monkeypatch):
    large = prepared_scan(scan((40, 40, 40), (40, 40, 40)))
    for main in (structures((72.0, 80.0, 64.0)), free_structures()):
        finder = locator(0.3)
        models = {"locator": finder, "structures": main}
        assert focused(large, models, replace(CONFIG, crop=False), look) == Focused(large)
        assert finder.network.asked == 0
    assert focused(large, {"locator": locator(0.3), "structures": free_structures()}, CONFIG, look) == Focused(large)
    stranger = structures(None)  # neither a UNet nor with a field of view: may depend on positions
    monkeypatch.setattr(focus_module, "WORTHWHILE_MM3", 1000.0)
    assert focused(large, {"locator": locator(0.3), "structures": stranger}, CONFIG, look) == Focused(large)
    assert large.window == large.whole == whole_window((152, 160, 144), 4)


def test_where_the_locator_sees_no_brain_the_network_looks_itself():
    prepared = prepared_scan(scan((30, 30, 30), (30, 30, 30)))
    model, blind = structures((72.0, 80.0, 64.0)), locator(2.0)
    result = focused(prepared, {"locator": blind, "structures": model}, CONFIG, look).prepared
    assert (blind.network.asked, model.network.asked) == (1, 1)
    assert result.window.shape == (72, 80, 64)
    assert result.notes == ()
    few = locator(0.9)  # a few millilitres, which nobody's brain is
    again = focused(prepared, {"locator": few, "structures": model}, CONFIG, look).prepared
    assert again.window == result.window


@pytest.mark.usefixtures("easily_convinced")
def test_where_nobody_sees_a_brain_the_whole_scan_is_used_and_that_is_said():
    prepared = prepared_scan(scan((40, 40, 40), (40, 40, 40)))
    free = free_structures()  # its own look would be the whole work
    result = focused(prepared, {"locator": locator(2.0), "structures": free}, CONFIG, look).prepared
    assert result.window == prepared.whole
    assert NO_BRAIN in result.notes[-1]
    unseeing = replace(structures((72.0, 80.0, 64.0)), network=Brighter(2.0, len(VALUES)))
    result = focused(prepared, {"locator": locator(2.0), "structures": unseeing}, CONFIG, look).prepared
    assert result.window == prepared.whole
    assert NO_BRAIN in result.notes[-1]


# -- windows that prove too small


@given(cuts=st.sets(st.integers(1, 8)), seed=st.integers(0, 100))
def test_counts_on_the_faces_add_up_over_slabs(cuts, seed):
    posteriors = torch.rand(9, 5, 6, 3, generator=torch.Generator().manual_seed(seed))
    ends = [0, *sorted(cuts), 9]
    total = sum(touching(posteriors[a:b], a, 9) for a, b in itertools.pairwise(ends))
    brain = posteriors.argmax(-1).numpy() > 0
    expected = [[brain.take(end, axis).sum() for end in (0, -1)] for axis in range(3)]
    assert np.array_equal(total, expected)


def widened_until_it_fits(prepared: Prepared, models: dict[str, Model]) -> tuple[Prepared, Tensor]:
    """As the segmenter does it: [X, Y, Z, C] of the last window, and the scan through it."""
    while True:
        posteriors = look(models["structures"], prepared.image, lambda all_of_them: all_of_them)
        wider = widened(prepared, models, CONFIG, touching(posteriors, 0, len(posteriors)))
        if wider is None:
            return prepared, posteriors
        prepared = wider


@pytest.mark.usefixtures("easily_convinced")
def test_a_brain_larger_than_its_first_window_is_seen_whole_in_the_end():
    prepared = prepared_scan(scan((40, 40, 40), (40, 40, 40)))
    models = {"locator": locator(0.9), "structures": structures((16.0, 16.0, 16.0))}  # sees the brightest part only
    first = focused(prepared, models, CONFIG, look).prepared
    assert not holds(first.window, brain_of(prepared))
    last, posteriors = widened_until_it_fits(first, models)
    assert holds(last.window, brain_of(prepared), 1)
    assert 0 < last.widenings <= MOST_WIDENINGS
    assert len(last.notes) == last.widenings
    assert "reached beyond the window" in last.notes[0]
    whole = look(models["structures"], prepared.image, lambda all_of_them: all_of_them).argmax(-1).numpy()
    start = np.subtract(last.window.start, prepared.whole.start)
    inside = Window(tuple(start.tolist()), last.window.shape, whole.shape).crop(whole)
    assert np.array_equal(posteriors.argmax(-1).numpy(), inside)


def through(prepared: Prepared, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Prepared:
    return prepared.through(Window(start, shape, prepared.whole.full_shape), CONFIG, rescaled=False)


def test_a_window_grows_on_the_sides_that_are_touched_and_no_further_than_the_scan():
    prepared = prepared_scan(scan((50, 50, 50), (50, 50, 50)))  # 172 x 180 x 164 voxels
    models = {"structures": free_structures()}
    counts = np.zeros((3, 2), int)
    counts[0, 0] = counts[2, 1] = 5000
    wider = widened(through(prepared, (60, 60, 60), (40, 40, 40)), models, CONFIG, counts)
    assert wider is not None
    assert wider.window == Window((36, 60, 60), (64, 40, 64), prepared.whole.full_shape)
    assert "widened at the left, top" in wider.notes[0]
    near = widened(through(prepared, (8, 60, 120), (40, 40, 40)), models, CONFIG, counts)
    assert near is not None
    assert near.window == Window((0, 60, 100), (64, 40, 64), prepared.whole.full_shape)  # shifted back into the scan
    assert widened(prepared, models, CONFIG, np.full((3, 2), 5000)) is None  # where the scan ends there is no more


def test_stray_voxels_on_a_face_widen_nothing_and_there_is_an_end_to_it():
    prepared = through(prepared_scan(scan((50, 50, 50), (50, 50, 50))), (60, 60, 60), (20, 20, 20))
    models = {"structures": free_structures()}
    assert widened(prepared, models, CONFIG, np.full((3, 2), 250)) is None  # 2.5 square centimetres each
    times = 0
    while prepared is not None:
        last, prepared = prepared, widened(prepared, models, CONFIG, np.full((3, 2), 5000))
        times += 1
    assert times == 1 + MOST_WIDENINGS
    assert last.window.shape == (20 + 3 * 48,) * 3


# -- real scans


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mni/mni152lin_2mm", "oasis/oasis_1036", "ct/ct_older_adults_mni"])
def test_the_shipped_locator_finds_all_of_a_labelled_brain(shared, name):  # type: ignore[no-untyped-def]
    folder = shared / "data" / "validation"
    ending = "_1mm" if name.startswith("ct") else "_t1"
    volume, labels = (
        read_volume(folder / f"{name}{ending}.nii.gz"),
        read_volume(folder / f"{name}_aseg.nii.gz", labels=True),
    )
    models = gather("default")
    prepared = prepare(volume, spacing_mm=2.0, multiple=16, config=InferenceConfig())
    models["structures"] = replace(models["structures"], network=Brighter(2.0, 33))  # not asked
    shown = focused(prepared, models, InferenceConfig(), look).prepared
    assert shown.notes == prepared.notes
    assert models["structures"].network.asked == 0
    brain = to_ras(labels)[0]
    coarse = resample_to_spacing(replace(brain, data=(brain.data > 0).astype(np.float32)), 2.0, order=1)
    assert shown.window.shape[0] * shown.window.shape[2] <= 96 * 96
    assert holds(shown.window, bounding_box(coarse.data > 0.5))
