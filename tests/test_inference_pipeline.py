"""The whole pipeline, with networks whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform
from torch import nn

from inference_helpers import VALUES, BandNetwork, band_model, phantom, phantom_affine, small_protocol
from synthseg.errors import InvariantError, VolumeError
from synthseg.inference import InferenceConfig, Model, Segmenter, Want
from synthseg.inference.segmentation import check_invariants, choose_structures, merge_sides
from synthseg.volumes import Volume, resample_to_spacing

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)), dtype=float)
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def reoriented(volume: Volume, ornt: np.ndarray) -> Volume:
    """By nibabel: an independent way to permute and flip axes."""
    data = nib.orientations.apply_orientation(volume.data, ornt)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(ornt, volume.data.shape)
    return Volume(np.ascontiguousarray(data), affine)


@pytest.mark.parametrize(
    ("spacing", "mode", "step"),
    [((1, 1, 1), "fast", 1), ((1, 2, 1.6), "default", 6)],  # all 48 once; the slower default on every sixth
    ids=["1mm", "anisotropic"],
)
def test_segmenting_a_reoriented_scan_gives_the_reoriented_labels_exactly(spacing, mode, step):
    segmenter = Segmenter(band_model(bias=0.5), mode)
    scan = Volume(phantom((64, 68, 24), spacing), phantom_affine(spacing))  # a slab: 96 runs of a head take minutes
    expected = segmenter.segment(scan)
    assert set(np.unique(expected.labels.data)) == set(VALUES)
    assert len(ORIENTATIONS) == 48
    for ornt in ORIENTATIONS[1::step]:
        turned = reoriented(scan, ornt)
        result = segmenter.segment(turned)
        np.testing.assert_array_equal(
            result.labels.data, nib.orientations.apply_orientation(expected.labels.data, ornt)
        )
        np.testing.assert_array_equal(result.labels.affine, turned.affine)
        assert result.volumes_mm3 == pytest.approx(expected.volumes_mm3)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 1, 1), (1, 1, 4), (2, 2, 2)])
@pytest.mark.parametrize("working_mm", [1.0, 1.5, 2.0])
def test_native_labels_lie_on_the_scan_they_came_from(spacing, working_mm):
    rotation = np.array(nib.eulerangles.euler2mat(0.2, -0.1, 0.3))
    scan = Volume(phantom(spacing_mm=spacing), phantom_affine(spacing, rotation))
    result = Segmenter(band_model(spacing_mm=working_mm)).segment(scan)
    assert result.labels.data.shape == scan.data.shape
    np.testing.assert_array_equal(result.labels.affine, scan.affine)
    brain, truth = result.labels.data > 0, scan.data > 0
    overlap = 2 * (brain & truth).sum() / (brain.sum() + truth.sum())
    assert overlap > 0.94
    right = np.isin(result.labels.data, (41, 53))
    half = np.arange(scan.data.shape[0])[:, None, None] >= scan.data.shape[0] / 2
    assert (right & half).sum() > 0.97 * right.sum()


def test_native_and_1mm_labels_describe_the_same_places():
    scan = Volume(phantom(spacing_mm=(0.8, 1.3, 2)), phantom_affine((0.8, 1.3, 2)))
    result = Segmenter(band_model()).segment(scan, Want(space="both"))
    assert result.native is not None
    assert result.fine is not None
    np.testing.assert_allclose(result.fine.spacing_mm, 1)
    back = affine_transform(
        result.fine.data, np.linalg.inv(result.fine.affine) @ scan.affine, output_shape=scan.data.shape, order=0
    )
    assert (back == result.native.data).mean() > 0.97


def test_volumes_do_not_depend_on_the_grid_asked_for():
    scan = Volume(phantom(spacing_mm=(1, 1, 3)), phantom_affine((1, 1, 3)))
    segmenter = Segmenter(band_model())
    volumes = [segmenter.segment(scan, Want(space=space)).volumes_mm3 for space in ("native", "1mm", "both")]
    assert volumes[0] == volumes[1] == volumes[2]


def test_volumes_of_a_box_are_its_millimetres():
    data = np.zeros((70, 72, 74), dtype=np.float32)
    data[40:60, 20:50, 30:40] = 350  # right of the middle: 20 x 30 x 10 voxels
    data[0, 0, :8] = 1000  # so that 350 is 0.35; far from the brain, so removed
    affine = np.diag([1.02, 0.98, 1.03, 1.0])  # within 5 % of 1 mm: not resampled
    config = InferenceConfig(percentiles=(0, 100), smoothing_sigma_vox=0)
    result = Segmenter(band_model(sharpness=3000), config=config).segment(Volume(data, affine))
    assert result.volumes_mm3[41] == pytest.approx(6000 * 1.02 * 0.98 * 1.03, rel=1e-6)
    assert result.total_mm3 == pytest.approx(sum(result.volumes_mm3.values()), rel=1e-12)
    assert next(iter(result.volumes_by_name())) == "total intracranial"
    assert (result.labels.data == 41).sum() == 6000
    assert set(np.unique(result.labels.data)) == {0, 41}


def test_mirror_averaging_makes_any_network_answer_a_mirrored_scan_with_the_mirrored_answer():
    model = band_model(bias=40.0, sharpness=60.0)
    scan = Volume(phantom(), phantom_affine())
    mirrored = Volume(np.ascontiguousarray(scan.data[::-1]), scan.affine)
    partner = dict(zip(VALUES, (0, 41, 16, 53, 24, 2, 17), strict=True))
    swapped = np.vectorize(partner.get)

    segmenter = Segmenter(model)
    straight, turned = segmenter.segment(scan), segmenter.segment(mirrored)
    np.testing.assert_array_equal(turned.labels.data, swapped(straight.labels.data[::-1]))
    assert turned.volumes_mm3[41] == pytest.approx(straight.volumes_mm3[2], rel=1e-5)

    without = Segmenter(model, "fast")  # the network is biased indeed: without the averaging it does not hold
    straight, turned = without.segment(scan), without.segment(mirrored)
    assert (turned.labels.data != swapped(straight.labels.data[::-1])).any()


def test_posteriors_sum_to_one_and_their_argmax_is_the_label_map():
    scan = Volume(phantom(spacing_mm=(1, 1, 2)), phantom_affine((1, 1, 2)))
    for space in ("native", "1mm"):
        result = Segmenter(band_model()).segment(scan, Want(space=space, posteriors=True))
        assert result.posteriors is not None
        np.testing.assert_allclose(result.posteriors.data.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(np.array(VALUES)[result.posteriors.data.argmax(axis=0)], result.labels.data)


def test_resampled_scan_is_that_of_the_volumes_room():
    scan = Volume(phantom(spacing_mm=(1, 1, 2)), phantom_affine((1, 1, 2)))
    result = Segmenter(band_model()).segment(scan, Want(space="1mm", resampled=True))
    expected = resample_to_spacing(scan, 1.0, order=1)
    assert result.resampled is not None
    np.testing.assert_array_equal(result.resampled.data, expected.data)
    assert result.labels.data.shape == expected.data.shape
    np.testing.assert_allclose(result.labels.affine, expected.affine)


def test_an_argument_scan_is_not_changed():
    data = phantom()
    kept = data.copy()
    Segmenter(band_model(), ct=True).segment(Volume(data, phantom_affine()))
    np.testing.assert_array_equal(data, kept)


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image):
        logits = torch.zeros(1, len(VALUES), *image.shape[2:])
        logits[:, 0] = self.value
        return logits


def test_a_network_that_says_nan_is_stopped_before_anything_is_written():
    model = Model.from_network(_Constant(float("nan")), small_protocol(), spacing_mm=1.0)
    with pytest.raises(InvariantError, match=r"scan: found .*not a number.*synthseg weights verify"):
        Segmenter(model).segment(Volume(phantom(), phantom_affine()))


def test_a_segmentation_without_any_structure_is_an_error():
    model = Model.from_network(_Constant(50.0), small_protocol(), spacing_mm=1.0)
    for mode in ("default", "fast"):
        with pytest.raises(InvariantError, match="no structure anywhere"):
            Segmenter(model, mode).segment(Volume(phantom(), phantom_affine()))


def test_invariants_catch_unknown_labels_and_volumes_that_do_not_add_up():
    good = Segmenter(band_model()).segment(Volume(phantom(), phantom_affine()), Want(posteriors=True))
    assert good.posteriors is not None
    brain = float((1 - good.posteriors.data[0].astype(float)).sum())  # voxels of 1 mm3
    check_invariants(good, brain)
    data = good.labels.data.copy()
    data[0, 0, 0] = 99
    with pytest.raises(InvariantError, match=r"labels \[99\] outside the protocol"):
        check_invariants(replace(good, native=replace(good.labels, data=data)), brain)
    with pytest.raises(InvariantError, match="a total of"):
        check_invariants(replace(good, total_mm3=good.total_mm3 * 1.01), brain)
    lost = {value: volume for value, volume in good.volumes_mm3.items() if value != 17}
    with pytest.raises(InvariantError, match="volumes that add up to"):
        check_invariants(replace(good, volumes_mm3=lost, total_mm3=sum(lost.values())), brain)
    with pytest.raises(InvariantError, match="not numbers"):
        check_invariants(replace(good, volumes_mm3={**good.volumes_mm3, 2: float("nan")}), brain)


def test_posteriors_that_are_not_normalised_are_stopped(monkeypatch):
    def half(pieces, _shape):  # as a mistaken clean-up might: the structures lose, the background does not win
        pieces[0].values[1:] *= 0.5
        for piece in pieces[1:]:
            piece.values[:] *= 0.5

    monkeypatch.setattr("synthseg.inference.survivors.normalise", half)
    with pytest.raises(InvariantError, match="are not background"):
        Segmenter(band_model()).segment(Volume(phantom(), phantom_affine()))


def test_structures_can_be_chosen_and_sides_merged():
    whole = Segmenter(band_model()).segment(Volume(phantom(), phantom_affine()), Want(posteriors=True))
    chosen = choose_structures(whole, ["Hippocampus", "16"])
    assert [s.name for s in chosen.structures] == ["background", "brain-stem", "left hippocampus", "right hippocampus"]
    expected = np.where(np.isin(whole.labels.data, (16, 17, 53)), whole.labels.data, 0)
    np.testing.assert_array_equal(chosen.labels.data, expected)
    assert chosen.total_mm3 == whole.total_mm3
    merged = merge_sides(chosen)
    np.testing.assert_array_equal(merged.labels.data, np.where(expected == 53, 17, expected))
    assert merged.volumes_mm3[17] == pytest.approx(whole.volumes_mm3[17] + whole.volumes_mm3[53])
    assert [s.name for s in merged.structures] == ["background", "brain-stem", "hippocampus"]
    assert merged.posteriors is not None
    assert whole.posteriors is not None
    np.testing.assert_allclose(merged.posteriors.data[2], whole.posteriors.data[[3, 6]].sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(merged.posteriors.data.sum(axis=0), 1, atol=1e-5)


@settings(max_examples=6)
@given(gain=st.floats(0.01, 100), offset=st.floats(0, 500))
def test_labels_do_not_depend_on_the_scanners_units(gain, offset):
    data = phantom((64, 68, 24), (2, 2, 2))
    segmenter = Segmenter(band_model(spacing_mm=2.0), "fast")
    expected = segmenter.segment(Volume(data, phantom_affine((2, 2, 2)))).labels.data
    scaled = (data * gain + offset).astype(np.float32)
    result = segmenter.segment(Volume(scaled, phantom_affine((2, 2, 2)))).labels.data
    assert (result == expected).mean() > 0.999  # rounding may decide a voxel that sits on a band's border


def test_a_scan_without_contrast_or_of_no_heads_size_is_refused_with_the_reason():
    segmenter = Segmenter(band_model())
    with pytest.raises(VolumeError, match="no contrast: percentiles 1 and 99 are both 7"):
        segmenter.segment(Volume(np.full((64, 64, 64), 7, np.float32), np.eye(4)))
    with pytest.raises(VolumeError, match=r"field of view of 960 x 960 x 960 mm"):
        segmenter.segment(Volume(phantom()[:64, :64, :64], np.diag([15.0, 15, 15, 1])))
    with pytest.raises(VolumeError, match=r"field of view of 14 x 16 x 13 mm \(voxels of 0.2 x 0.2 x 0.2 mm"):
        segmenter.segment(Volume(phantom(), np.diag([0.2, 0.2, 0.2, 1])))


def test_fast_mode_is_one_forward_pass_and_the_default_two():
    calls = []

    class Counting(BandNetwork):
        def forward(self, image):
            calls.append(image.shape)
            return super().forward(image)

    model = Model.from_network(Counting(), small_protocol(), spacing_mm=2.0, multiple=16)
    scan = Volume(phantom(spacing_mm=(2, 2, 2)), phantom_affine((2, 2, 2)))
    Segmenter(model, "fast").segment(scan)
    Segmenter(model).segment(scan)
    assert calls == [(1, 1, 48, 48, 32)] * 3


@pytest.mark.parametrize("space", ["native", "1mm"])
def test_tissue_maps_are_sums_of_the_posteriors(space):
    scan = Volume(phantom(spacing_mm=(1, 1, 2)), phantom_affine((1, 1, 2)))
    result = Segmenter(band_model()).segment(scan, Want(space=space, posteriors=True, tissue_maps=True))
    assert result.posteriors is not None
    assert result.tissue_maps is not None
    members = {"gm": (17, 53), "wm": (2, 16, 41), "csf": (24,)}  # of the small protocol
    for tissue, values in members.items():
        volume = result.tissue_maps[tissue]
        expected = result.posteriors.data[np.isin(VALUES, values)].sum(axis=0)
        np.testing.assert_allclose(volume.data, expected, atol=1e-6)
        np.testing.assert_array_equal(volume.affine, result.labels.affine)
        assert volume.data.dtype == np.float32
    assert list(result.tissue_maps) == list(members)
