"""Bayesian segmentation: the atlas is laid over a scan, its intensities are learned from the scan itself.

Affine and then smooth free-form alignment by gradient ascent on the likelihood, between steps of expectation-
maximisation of intensities and bias field. No contrast is assumed, and as in the paper's baseline no partial volume.
Source: Puonti et al. 2016, in small: a voxel atlas, control points every 20 mm, no mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.bayes.align import Fit, Samples, fit_atlas
from experiments.bayes.atlas import Atlas, build_atlas, kinds_of
from experiments.bayes.mixture import cosine_basis
from experiments.methods import Labelled, key_of
from safetensors.torch import load_file, save
from torch import Tensor

from synthseg.errors import VolumeError
from synthseg.files import atomic_file
from synthseg.generation.bank import LabelBank
from synthseg.volumes import Volume, resample_to_spacing, to_ras
from synthseg.volumes.grid import sample_linear

VERSION = 2  # counted up when a scan would be labelled otherwise
_PLANES = 2**17  # voxels labelled at a time


@dataclass(frozen=True)
class BayesMethod:
    """An atlas, ready to be laid over scans."""

    atlas: Atlas
    tissues: Tensor
    key: str
    spacing_mm: float  # that alignment works at
    steps: int

    @classmethod
    def of_bank(cls, bank: Path, *, kept: Path, coarse: bool = False) -> BayesMethod:
        """Build the atlas of a bank's maps, or read it where it was kept; ``coarse`` for the toy size."""
        maps = LabelBank.load(bank)
        spacing, steps = (5.0, 6) if coarse else (2.0, 60)
        settings = {"bank": maps.sha256, "spacing": spacing, "steps": steps, "version": VERSION}
        path = kept / f"{key_of('atlas', {'bank': maps.sha256, 'spacing': spacing})}.safetensors"
        if path.is_file():
            atlas = Atlas(load_file(path)["probabilities"].float(), spacing, kinds_of(maps.protocol))
        else:
            atlas = build_atlas(maps, spacing, steps=0 if coarse else 40)
            with atomic_file(path) as file:
                file.write(save({"probabilities": atlas.probabilities.contiguous()}))
        work = 6.0 if coarse else 4.0
        return cls(atlas, atlas.tissues(), key_of("bayes", settings), work, steps)

    def facts(self) -> dict[str, Any]:
        """What a record says."""
        return {"method": "bayes", "key": self.key}

    def segment(self, scan: Volume, *, ct: bool | None, fine: bool) -> Labelled:  # noqa: ARG002
        """Labels on the scan's grid, or the 1 mm grid of its field of view. Raises: VolumeError for an empty scan."""
        upright, _ = to_ras(scan)
        coarse = resample_to_spacing(upright, np.maximum(upright.spacing_mm, self.spacing_mm), order=1)
        low, high = (float(v) for v in np.percentile(coarse.data, (0.5, 99.8)))
        samples = samples_of(coarse, low, high) if high > low else None
        if samples is None or not bool(samples.tissue.any()):
            raise VolumeError(scan.subject, found="one value nearly everywhere", fix="give a scan with tissue in it")
        fit = fit_atlas(self.atlas, self.tissues, samples, steps=self.steps)
        grid = resample_to_spacing(upright, 1.0, order=1) if fine else upright
        return self._label(grid, low, high, fit)

    @torch.no_grad()
    def _label(self, grid: Volume, low: float, high: float, fit: Fit) -> Labelled:
        """The most probable label of every voxel, and the sums of the posteriors."""
        kinds, atlas = self.atlas.kinds, self.atlas
        flat = torch.from_numpy(np.ascontiguousarray(grid.data)).float().flatten()
        affine = torch.from_numpy(grid.affine).float()
        labels = torch.zeros(len(flat), dtype=torch.int32)
        sums = torch.zeros(kinds.n_channels)
        shape = torch.tensor(grid.shape)
        allowed = torch.ones(kinds.n_channels)
        if fit.stripped:
            allowed[-2:] = 1e-6
        for start in range(0, len(flat), _PLANES):
            index = torch.arange(start, min(start + _PLANES, len(flat)))
            index = index[flat[index] > low] if fit.stripped else index
            if not len(index):
                continue
            places = torch.stack(torch.unravel_index(index, tuple(shape.tolist())), -1).float()
            world = places @ affine[:3, :3].T + affine[:3, 3]
            where = fit.atlas_mm(world) / atlas.spacing_mm + atlas.center_vox
            prior = sample_linear(atlas.probabilities[None], where[None, None, None])[0, :, 0, 0]
            field = cosine_basis(world, fit.low_mm, fit.high_mm, fit.period_mm) @ fit.bias
            values = log_intensity(flat[index], low, high) - field
            likelihood = fit.mixture.log_likelihood(values, len(kinds.components))
            joint = (prior * allowed[:, None]).clamp_min(1e-12).log() + likelihood[kinds.tissue_of_channel]
            posterior = joint.softmax(0)
            sums += posterior.sum(1)
            labels[index] = kinds.value_of_channel[posterior.argmax(0)].int()
        voxel = float(np.prod(grid.spacing_mm))
        volumes = {int(v): float(s) * voxel for v, s in zip(kinds.value_of_channel, sums, strict=True) if int(v) != 0}
        return Labelled(Volume(labels.view(*grid.shape).numpy(), grid.affine), volumes)


def log_intensity(values: Tensor, low: float, high: float) -> Tensor:
    """Logarithm of intensities brought to 0 and 1; a little is added, so that air is finite and noise in it small."""
    return (((values - low) / (high - low)).clamp(0, 1.5) + 0.05).log()


def samples_of(scan: Volume, low: float, high: float) -> Samples:
    """A coarse scan as positions (world mm) and log intensities."""
    flat = torch.from_numpy(np.ascontiguousarray(scan.data)).float().flatten()
    places = torch.from_numpy(np.indices(scan.shape).reshape(3, -1).T.astype(np.float32))
    affine = torch.from_numpy(scan.affine).float()
    world = places @ affine[:3, :3].T + affine[:3, 3]
    return Samples(world, log_intensity(flat, low, high), flat > low + 0.02 * (high - low))
