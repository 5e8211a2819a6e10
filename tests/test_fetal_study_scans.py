"""The fetal study's test scans: phantoms of held-out maps, edited ones, atlas images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fetal_study_helpers import TOY, brain, save_maps  # makes experiments importable

# isort: split
from experiments.fetal.cases import AS_IT_IS, atlas_cases, held_out_cases
from experiments.fetal.config import ATLAS, MILD, ORDINARY, SEVERE
from experiments.fetal.phantom import CONTRASTS, FLUID, SCALP, SKULL, draw_scan, womb_around
from experiments.fetal.subjects import folds_of, read_subjects

from synthseg.errors import LabelError
from synthseg.volumes import read_volume, write_volume


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_maps(tmp_path_factory.mktemp("maps"))


# Phantoms


def test_the_womb_leaves_the_brain_as_it_is_and_lies_around_it_in_order() -> None:
    labels = replace(brain(), affine=np.eye(4))  # a small one: skull and scalp are some voxels thick
    tissue = womb_around(labels, rng=torch.Generator().manual_seed(0))
    inside = labels.data > 0
    assert np.array_equal(tissue[inside], labels.data[inside])
    assert (tissue[~inside] >= SKULL).all()
    from scipy.ndimage import binary_dilation, distance_transform_edt

    assert set(np.unique(tissue[binary_dilation(inside) & ~inside])) <= {SKULL, SCALP, FLUID}
    far = distance_transform_edt(~inside)
    assert far[tissue == SKULL].mean() < far[tissue == SCALP].mean() < far[tissue == FLUID].mean()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_phantoms_show_tissues_in_the_contrasts_order_and_are_the_same_again(contrast: str) -> None:
    labels = brain(2)
    scan = draw_scan(labels, contrast, rng=torch.Generator().manual_seed(3))
    assert np.array_equal(scan.data, draw_scan(labels, contrast, rng=torch.Generator().manual_seed(3)).data)
    means = CONTRASTS[contrast].brain
    shown = [float(scan.data[labels.data == value].mean()) for value in (2, 3, 4)]  # grey, white, ventricles
    order = np.argsort([means[value] for value in (2, 3, 4)])
    assert (np.diff(np.array(shown)[order]) > 0).all()
    assert scan.data.min() >= 0
    assert (scan.data[0, 0, 0] == 0) == (contrast == "t2-stripped")


def test_maps_of_another_protocol_make_no_phantom() -> None:
    labels = brain()
    with pytest.raises(LabelError, match="values from 0 to 42"):
        draw_scan(replace(labels, data=labels.data * 6), "t2", rng=torch.Generator())


def test_test_scans_are_drawn_once_and_known_by_stratum(maps: Path, tmp_path: Path) -> None:
    fold = folds_of(read_subjects(maps), "ages")[1]
    cases = held_out_cases(fold, tmp_path, TOY)
    assert [(case.scan, case.group, case.change) for case in cases[:4]] == [
        ("b_ga25_one_feta@t2", ORDINARY, AS_IT_IS),
        ("b_ga25_one_feta@t2-stripped", ORDINARY, AS_IT_IS),
        ("b_ga25_one_feta@t2", SEVERE, "wide ventricles"),
        ("b_ga25_one_feta@t2", MILD, "thin cortex"),
    ]
    times = [case.image.stat().st_mtime_ns for case in cases]
    assert [case.image.stat().st_mtime_ns for case in held_out_cases(fold, tmp_path, TOY)] == times
    own, wide = (read_volume(cases[n].truth, labels=True).data for n in (0, 2))
    assert (wide == 4).sum() > 1.3 * (own == 4).sum()


def test_atlas_images_are_those_with_labels_beside_them(tmp_path: Path) -> None:
    for name in ("crl_24w_t2", "crl_24w_feta", "mial_sr_t2"):
        write_volume(brain(), tmp_path / f"{name}.nii.gz")
    assert [(case.scan, case.group) for case in atlas_cases(tmp_path)] == [("crl_24w_t2", ATLAS)]
