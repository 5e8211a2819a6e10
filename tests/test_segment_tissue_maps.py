"""Grey matter, white matter and CSF probabilities."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_helpers import BandNetwork, band_model, coarse_scan, phantom, run_scans, save_scan
from posterior_helpers import as_sparse, plain
from synthseg.errors import UsageError
from synthseg.inference import Model, Outputs, Segmenter, discover
from synthseg.inference.grids import Grid
from synthseg.inference.structures import channels_of
from synthseg.inference.tissue_maps import TISSUES, require_tissues, tissue_posteriors
from synthseg.labels import load_protocol


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


def test_every_structure_of_the_original_has_one_tissue():
    values = [value for tissue in TISSUES.values() for value in tissue]
    assert sorted([0, *values]) == load_protocol("synthseg-2.0").values.tolist()
    protocol = load_protocol("synthseg-2.0")
    assert all(
        any({label.value, label.partner} <= set(tissue) for tissue in TISSUES.values()) for label in protocol.labels[1:]
    )
    require_tissues(channels_of(protocol).structures)


@given(seed=st.integers(0, 2**32 - 1))
def test_tissues_are_sums_of_their_structures_and_add_up_to_1_with_background(seed):
    values = load_protocol("synthseg-2.0").target_values
    data = np.random.default_rng(seed).dirichlet(np.full(len(values), 0.2), (3, 4, 5)).transpose(3, 0, 1, 2)
    grid = Grid((9, 9, 9), np.eye(4))
    data[:, 1] = np.eye(len(values))[0][:, None, None]  # background and nothing else
    found = tissue_posteriors(as_sparse(plain.Posteriors(data.astype(np.float32), (1, 2, 3), grid)), values)
    assert (found.start, found.grid) == ((1, 2, 3), grid)
    tissues = found.dense()
    for channel, tissue in enumerate(TISSUES.values(), start=1):
        np.testing.assert_allclose(tissues[channel], data[np.isin(values, tissue)].sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(tissues.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("protocol", ["feta", "tissue-groups", "desikan-killiany"])
def test_labels_that_are_not_freesurfers_are_refused_before_the_first_scan(tmp_path, protocol):
    """FeTA's values are FreeSurfer's too, but 3 is white matter there: they must not pass for tissues."""
    network = BandNetwork()
    model = Model.from_network(network, load_protocol(protocol), spacing_mm=2.0, multiple=4)
    with pytest.raises(UsageError, match="tissue maps: found weights with structures that FreeSurfer's tissues"):
        run_scans(Segmenter(model, "fast"), [tmp_path / "lost.nii"], tmp_path / "out", Outputs(tissue_maps=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("space", ["native", "1mm", "both"])
def test_the_maps_lie_on_the_grid_of_the_labels(tmp_path, segmenter, space):
    data = phantom(spacing_mm=(2, 2, 2)).transpose(2, 0, 1)[:, ::-1]  # stored in another order than RAS
    affine = np.array([[0, -2, 0, 35], [0, 0, 2, -40], [2, 0, 0, -32], [0, 0, 0, 1.0]])
    scan = save_scan(tmp_path / "a.nii.gz", data, affine)
    outputs = Outputs(tissue_maps=True, posteriors=True, space=space)
    assert not run_scans(segmenter, [scan], tmp_path / "out", outputs).failed
    labels = nib.load(tmp_path / "out" / f"a_synthseg{'_1mm' if space == '1mm' else ''}.nii.gz")
    posteriors = nib.load(tmp_path / "out" / "a_synthseg_posteriors.nii.gz").get_fdata()
    values = band_model().channels.values
    maps = {tissue: nib.load(tmp_path / "out" / f"a_synthseg_{tissue}.nii.gz") for tissue in TISSUES}
    for tissue, image in maps.items():
        assert image.get_data_dtype() == np.float32
        assert image.shape == labels.shape
        np.testing.assert_allclose(image.affine, labels.affine)
        expected = posteriors[..., np.isin(values, TISSUES[tissue])].sum(axis=-1)
        np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-5)
    total = posteriors[..., 0] + sum(image.get_fdata() for image in maps.values())
    np.testing.assert_allclose(total, 1, atol=1e-5)
    core = np.isin(np.asarray(labels.dataobj), (17, 53))
    assert core.any()
    assert maps["gm"].get_fdata()[core].min() > 0.3


def test_choosing_and_merging_structures_leaves_the_tissues_alone(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    run_scans(segmenter, [scan], tmp_path / "1", Outputs(tissue_maps=True))
    run_scans(
        segmenter, [scan], tmp_path / "2", Outputs(tissue_maps=True, merge_sides=True, structures=("hippocampus",))
    )
    for tissue in TISSUES:
        first, second = ((tmp_path / n / f"a_synthseg_{tissue}.nii.gz").read_bytes() for n in "12")
        assert first == second


def test_the_maps_are_not_taken_for_scans_and_a_lost_one_is_made_again(tmp_path, segmenter):
    scan, outputs = coarse_scan(tmp_path / "a.nii.gz"), Outputs(tissue_maps=True)
    run_scans(segmenter, [scan], tmp_path, outputs)
    assert discover([tmp_path])[0] == [scan]
    assert run_scans(segmenter, [scan], tmp_path, outputs).outcomes[0].status == "skipped"
    (tmp_path / "a_synthseg_wm.nii.gz").unlink()
    assert run_scans(segmenter, [scan], tmp_path, outputs).outcomes[0].status == "done"
