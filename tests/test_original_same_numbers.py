"""`--strict-original` against the independent numpy implementation of the specification (`original_reference.py`).

Random networks in the original's .h5 layout. Two questions, step by step:

* do the steps up to the posteriors agree up to the rounding of convolutions in single precision? The reference's
  networks run in double precision here: its own single precision is further from it than ours.
* on the same posteriors, are labels, cleaned posteriors, volumes and scores the same, digit for digit?

End to end only voxels at a tie or a threshold may differ: those whose posteriors are within the rounding of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import original_reference as reference
from keras_files import qc_encoder, write_family, write_keras
from synthseg.inference.bundle import gather
from synthseg.inference.hierarchy import denoised, tissue_groups
from synthseg.inference.original.networks import needs_as_original, parcel_posteriors, structure_posteriors
from synthseg.inference.original.prepare import OriginalInput, prepare_as_original
from synthseg.inference.original.scan import read_scan
from synthseg.inference.original.strict import StrictSegmenter

ROUNDING = 2e-4  # of posteriors, after 20 convolutions in single precision and a sharp head; seen: 8e-5
ROUNDING_ON_AVERAGE = 1e-6  # seen: 5e-8


@dataclass(frozen=True)
class Flags:
    """The original's flags, as the reference takes them."""

    fast: bool = False
    robust: bool = False
    parc: bool = False
    qc: bool = False
    ct: bool = False
    crop: tuple[int, ...] | None = None
    v1: bool = False

    def segmenter(self) -> StrictSegmenter:
        mode = "robust-fast" if self.robust else "fast" if self.fast else "default"
        family = "synthseg-1.0" if self.v1 else "synthseg-2.0"
        models = gather(mode, family, parcels=self.parc, quality=self.qc, locator=False)
        return StrictSegmenter(models, fast=self.fast, ct=self.ct, crop=self.crop, threads=1)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The original's five files, with networks of four features; quality control, which sees 224^3 voxels, of one."""
    files = write_family(tmp_path_factory.mktemp("models"), features=4)
    write_keras(files["qc"], [qc_encoder(seed=8, features=1)])
    return files


@pytest.fixture
def family(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same, found by name."""
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(files["2.0"].parent))
    return files


def scan_of(shape: tuple[int, int, int], affine: np.ndarray, path: Path, *, hounsfield: bool = False) -> Path:
    """A head-like scan: nested blobs with noise, and something smaller beside them that clean-up must remove."""
    rng = np.random.default_rng(7)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = np.select([radius < 0.35, radius < 0.6, radius < 0.85], [900.0, 600.0, 300.0], 20.0)
    data[2:9, 2:9, 2:9] = 700.0
    data += rng.normal(0, 25, shape) + 200 * axes[0] * (radius < 0.85)
    if hounsfield:
        data = data / 4 - 100
    nib.Nifti1Image(data.astype(np.float32), affine).to_filename(path)
    return path


def turned(spacing: tuple[float, float, float], code: str) -> np.ndarray:
    """An affine of these voxel sizes whose axes point to ``code``, e.g. "LAS"."""
    start = nib.orientations.io_orientation(np.eye(4))
    wanted = nib.orientations.axcodes2ornt(code)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.ornt_transform(start, wanted), (40, 40, 40))
    return np.asarray(affine @ np.diag([*spacing, 1.0]))


@dataclass(frozen=True)
class Steps:
    """What the strict segmenter has before clean-up: its input, posteriors and their winners, parcels' posteriors.

    ``tissues`` and ``denoised``: groups [X, Y, Z] of the robust chain.
    """

    prepared: OriginalInput
    posteriors: np.ndarray
    winners: np.ndarray
    parcels: np.ndarray | None
    tissues: np.ndarray | None
    denoised: np.ndarray | None

    @classmethod
    def of(cls, segmenter: StrictSegmenter, path: Path) -> Steps:
        prepared = prepare_as_original(read_scan(path), ct=segmenter.ct, crop=segmenter.crop, keep_resampled=True)
        placement, image, models = segmenter.placement, prepared.image, segmenter.models
        needs = needs_as_original(models, prepared.padded.shape)
        way = {"flip": not segmenter.fast, "smooth": not segmenter.robust}
        posteriors, winners = structure_posteriors(placement, image, **way, needs=needs, subject="scan")
        parcels = tissues = mended = None
        if "parcels" in models:
            parcels = np.concatenate([s.copy() for _, s in parcel_posteriors(placement, image, winners, needs, "scan")])
        if "guided" in models:
            tissues = tissue_groups(models["tissues"], image, "scan")
            mended = denoised(models["denoiser"], tissues, "scan").numpy()
            tissues = tissues.numpy()
        return cls(prepared, posteriors, winners, parcels, tissues, mended)


SMALL = (52, 60, 44)
CASES = {
    "default": (SMALL, turned((1, 1, 1), "LAS"), Flags(parc=True, crop=(64,))),
    "resampled": ((26, 60, 30), turned((2.0, 1.0, 1.5), "PIR"), Flags(parc=True, crop=(64,))),
    "fast, extra sample": ((181, 30, 40), turned((0.7, 1.02, 1.0), "RAS"), Flags(fast=True, crop=(128, 32, 64))),
    "robust": (SMALL, turned((1, 1, 1), "LIA"), Flags(robust=True, parc=True, crop=(64,))),
    "1.0": (SMALL, turned((1, 1, 1.2), "RPS"), Flags(v1=True, parc=True, crop=(64, 32, 64))),
    "CT": (SMALL, turned((1, 1, 1), "RAS"), Flags(ct=True, fast=True, crop=(96,))),
}
WHOLE = {  # without a crop, volumes are added up in single precision, over at least 128 voxels a side
    "whole": (SMALL, turned((1, 1, 1), "LAS"), Flags()),
    "whole, fast, resampled": ((40, 60, 24), turned((1.3, 1.0, 2.2), "SPL"), Flags(fast=True, parc=True)),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_every_step_is_the_references(case: str, family: dict[str, Path], tmp_path: Path) -> None:
    shape, affine, flags = (CASES | WHOLE)[case]
    path = scan_of(shape, affine, tmp_path / "scan.nii.gz", hounsfield=flags.ct)
    compare(path, flags, family)


REAL = {
    "1 mm T1": ("t1/swm_t1_head.nii.gz", Flags(crop=(64,), qc=True)),
    "2 mm PD, robust": ("mni/mni152lin_2mm_pd.nii.gz", Flags(robust=True, crop=(96, 128, 96))),
    "6.5 mm T1 with gadolinium": ("contrasts/tumour1_t1gd_lr.nii.gz", Flags(crop=(64, 128, 96), parc=True)),
    "CT": ("ct/ct_older_adults_mni_1mm.nii.gz", Flags(ct=True, fast=True, crop=(128,))),
    "0.7 mm, 1.0": ("t1/cit168_t1_head_0p7mm.nii.gz", Flags(v1=True, fast=True, crop=(128,))),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL)
def test_every_step_is_the_references_on_real_scans(case: str, family: dict[str, Path], shared: Path) -> None:
    name, flags = REAL[case]
    compare(shared / "data" / "validation" / name, flags, family)


def compare(path: Path, flags: Flags, files: dict[str, Path]) -> None:
    """Hold our steps against the reference's."""
    segmenter = flags.segmenter()
    ours = Steps.of(segmenter, path)
    prepared = reference.prepare(path, ct=flags.ct, crop=flags.crop)
    same_preparation(ours.prepared, prepared)
    image = prepared.network_input.astype(np.float64)
    table = reference.Table(flags.v1)
    judged = robust_judged(image, ours, files) if flags.robust else plainly_judged(image, flags, files, table)
    same_posteriors(ours.posteriors, judged)
    same_where_decided(ours.winners, judged)
    if flags.parc:
        weights = reference.read_keras(files["parc"])
        parcels = reference.segment_parcels(image, ours.winners, weights, table, np.float64)
        assert ours.parcels is not None
        same_posteriors(ours.parcels, channels_last(parcels))
    with_given_posteriors(segmenter, path, ours, prepared, flags, files)


def same_posteriors(ours: np.ndarray, judged: np.ndarray) -> None:
    difference = np.abs(ours - judged)
    assert difference.max() < ROUNDING
    assert difference.mean() < ROUNDING_ON_AVERAGE


def plainly_judged(image: np.ndarray, flags: Flags, files: dict[str, Path], table: Any) -> np.ndarray:
    """The reference's posteriors [X, Y, Z, C] of one network."""
    weights = reference.read_keras(files["1.0" if flags.v1 else "2.0"])
    found = reference.segment_default(image, weights, table, flip=not flags.fast, dtype=np.float64)
    return channels_last(found["posteriors"])


def robust_judged(image: np.ndarray, ours: Steps, files: dict[str, Path]) -> np.ndarray:
    """Those of the chain, each network given what ours before it said: a tie may send the chains apart."""
    weights = reference.read_keras(files["robust"])
    assert ours.tissues is not None
    assert ours.denoised is not None
    same_where_decided(ours.tissues, channels_last(reference.unet(image[None], weights, "unet", np.float64)))
    groups = reference.one_hot(ours.tissues, 5)
    same_where_decided(ours.denoised, channels_last(reference.unet(groups, weights, "l2l", np.float64)))
    guided = np.concatenate([image[None], reference.one_hot(ours.denoised, 5)])
    return channels_last(reference.unet(guided, weights, "unet2", np.float64))


def channels_last(posteriors: np.ndarray) -> np.ndarray:
    return np.moveaxis(posteriors, 0, -1)


def same_where_decided(winners: np.ndarray, posteriors: np.ndarray) -> None:
    """The winners [X, Y, Z] of posteriors [X, Y, Z, C], but where the two largest are closer than rounding."""
    first, second = np.partition(posteriors, -2, axis=-1)[..., [-1, -2]].transpose(3, 0, 1, 2)
    undecided = first - second < 2 * ROUNDING
    assert undecided.mean() < 0.05  # or there was little to compare; seen: 0.02, of a scan that is mostly air
    assert (winners == posteriors.argmax(-1))[~undecided].all()


def same_preparation(ours: OriginalInput, theirs: Any) -> None:
    image = ours.image[0, 0].numpy()
    assert image.shape == theirs.network_input.shape
    np.testing.assert_allclose(image, theirs.network_input, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-9)
    assert (ours.resampled is None) == (theirs.resampled is None)
    if ours.resampled is not None:
        scale = np.abs(theirs.resampled).max()
        np.testing.assert_allclose(ours.resampled, theirs.resampled, rtol=0, atol=1e-6 * scale)


def same_scores(ours: dict[str, float], theirs: np.ndarray) -> bool:
    return [f"{score:.4f}" for score in ours.values()] == [f"{score:.4f}" for score in theirs]


def with_given_posteriors(
    segmenter: StrictSegmenter, path: Path, ours: Steps, prepared: Any, flags: Flags, files: dict[str, Path]
) -> None:
    """All after the networks, on our posteriors: identical labels and posteriors, volumes to the printed digit."""
    table = reference.Table(flags.v1)
    of_mode = {"fast": flags.fast, "robust": flags.robust, "v1": flags.v1}
    judged = reference.finish(ours.posteriors, prepared, parcel_posteriors=ours.parcels, **of_mode)
    result = segmenter.segment(path, posteriors=True, resampled=True)
    np.testing.assert_array_equal(result.labels.data, judged["segmentation"])
    assert len(np.unique(judged["segmentation"])) > 5  # or there was nothing to compare
    assert result.posteriors is not None
    np.testing.assert_array_equal(result.posteriors, judged["posteriors"])
    columns = reference.volume_columns(table, flags.v1, flags.parc)
    text = reference.csv_text(columns, [("scan", judged["volumes"])])
    printed = reference.csv_text(list(result.volumes_mm3), [("scan", list(result.volumes_mm3.values()))])
    assert printed == text
    if flags.qc:
        assert result.quality is not None
        scores = reference.score(ours.winners, reference.read_keras(files["qc"]), table)
        assert same_scores(result.quality, reference.qc_scores(scores))
