"""The pipeline in one place: load weights once, segment many scans."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch

from synthseg.errors import InvariantError, SynthsegError, UsageError
from synthseg.inference.config import InferenceConfig, check_space, mode_config
from synthseg.inference.focus import focus, needs_focus
from synthseg.inference.model import Model, load_model
from synthseg.inference.postprocess import Posteriors, channels_on, clean_posteriors, posteriors_on
from synthseg.inference.predict import pick_device, predict_posteriors
from synthseg.inference.prepare import RESULT_SPACING_MM, Prepared, prepare, subject_of
from synthseg.inference.segmentation import CSF_VALUE, Map4D, Segmentation, check_invariants
from synthseg.volumes import Volume, from_ras, read_volume, resample_to_spacing


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a segmentation should hold besides labels and volumes."""

    space: str = "native"  # grid of the labels: "native" (the scan's own), "1mm" or "both"
    posteriors: bool = False  # on the grid of the labels; 4 bytes x 33 per voxel
    resampled: bool = False  # the scan itself on the 1 mm grid

    def __post_init__(self) -> None:
        check_space(self.space)


@final
class Segmenter:
    """Segments brain scans of any contrast and resolution.

    Args:
        weights: name or path of weights, or a :class:`Model` of your own.
        mode: "default", or "fast" (no mirror averaging, no topology clean-up).
        config: all settings at once, instead of a mode.
        ct: True clips to the CT window, False never does, None recognises Hounsfield units by themselves.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of this process, set for all of torch; None leaves torch's choice.
    Raises: WeightsError, ConfigError for an unknown mode, UsageError for an unknown device.
    """

    def __init__(
        self,
        weights: str | Path | Model = "default",
        mode: str = "default",
        *,
        config: InferenceConfig | None = None,
        ct: bool | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        settings = mode_config(mode) if config is None else config
        self.config = settings if ct is None else replace(settings, ct=ct)
        self.device = pick_device(device)
        if threads is not None:
            if threads < 1:
                raise UsageError("threads", found=str(threads), fix="use a number of at least 1")
            torch.set_num_threads(threads)
        self.model = weights if isinstance(weights, Model) else load_model(weights)
        self.model.network.to(self.device)

    def segment(self, scan: str | Path | Volume, want: Want | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            scan: a file, or a :class:`synthseg.volumes.Volume`.
        Returns: a segmentation whose promises have been checked (:func:`check_invariants`).
        Raises: VolumeError if the scan cannot be read or used, InvariantError if the result breaks a promise.
        """
        want = want or Want()
        timings: dict[str, float] = {}
        with _timed(timings, "read"):
            volume = scan if isinstance(scan, Volume) else read_volume(scan)
        with _timed(timings, "prepare"):
            spacing, multiple = self.model.spacing_mm, self.model.multiple
            prepared = prepare(volume, spacing_mm=spacing, multiple=multiple, config=self.config)
        with _timed(timings, "locate"):
            prepared = self._focused(prepared, subject_of(volume))
        with _timed(timings, "predict"):
            posteriors = self._predict(prepared, subject_of(volume), self.config)
        with _timed(timings, "postprocess"):
            channels = self.model.channels
            cleaned = clean_posteriors(posteriors, prepared.padded, prepared.fine, channels, self.config)
            del posteriors
        with _timed(timings, "results"):
            segmentation = self._results(prepared, cleaned, want)
        check_invariants(segmentation, cleaned.foreground_mm3)
        return replace(segmentation, timings_s=timings)

    def _focused(self, prepared: Prepared, subject: str) -> Prepared:
        """The prepared scan, cut to the brain if its field of view is larger than the network's own."""
        field = self.model.field_of_view_mm
        if field is None or not needs_focus(prepared, field):
            return prepared
        first_look = replace(self.config, flip=False, smoothing_sigma_vox=0)
        background = self._predict(prepared, subject, first_look)[0]
        return focus(prepared, background, field, multiple=self.model.multiple, config=self.config)

    def _predict(self, prepared: Prepared, subject: str, config: InferenceConfig) -> np.ndarray:
        try:
            posteriors = predict_posteriors(
                self.model.network, prepared.image, self.model.channels.partners, config, device=self.device
            )
        except RuntimeError as error:  # torch.OutOfMemoryError is one; on the CPU there is only the text
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            sides = " x ".join(str(side) for side in prepared.padded.shape)
            found = f"not enough memory on {self.device} for {sides} voxels"
            raise SynthsegError(subject, found=found, fix="crop the scan to the head, or use --device cpu") from error
        if not torch.isfinite(posteriors.sum()):
            found = "a network output that is not a number (NaN or infinity)"
            raise InvariantError(subject, found=found, fix="check the weights: synthseg weights verify NAME")
        values: np.ndarray = posteriors.numpy()
        return values

    def _results(self, prepared: Prepared, cleaned: Posteriors, want: Want) -> Segmentation:
        channels = self.model.channels
        values = channels.values.astype(np.int32)
        native = fine = None
        if want.space != "1mm":
            data = from_ras(values[channels_on(cleaned, prepared.native)], prepared.orientation)
            native = Volume(np.ascontiguousarray(data), prepared.original_affine, prepared.scan.path)
        if want.space != "native":
            fine = Volume(values[channels_on(cleaned, prepared.fine)], prepared.fine.affine, prepared.scan.path)
        # float64: the original's single-precision running sums come out up to 7e-4 too small (reference 6.8).
        sums = cleaned.data.reshape(len(channels), -1).sum(axis=1, dtype=np.float64) * cleaned.grid.voxel_volume_mm3
        volumes = {int(value): float(volume) for value, volume in zip(channels.values[1:], sums[1:], strict=True)}
        return Segmentation(
            subject=subject_of(prepared.scan),
            native=native,
            fine=fine,
            structures=channels.structures,
            volumes_mm3=volumes,
            total_mm3=float(sums[1:].sum()),
            posteriors=_posteriors(prepared, cleaned, want) if want.posteriors else None,
            resampled=_resampled(prepared) if want.resampled else None,
            notes=prepared.notes,
            intracranial=CSF_VALUE in volumes,
        )


def segment(
    scan: str | Path | Volume, *, weights: str | Path = "default", mode: str = "default", space: str = "native"
) -> Segmentation:
    """Segment one scan with default settings. For many scans build one :class:`Segmenter`: it loads weights once.

    Raises: see :meth:`Segmenter.segment`.
    """
    return Segmenter(weights, mode).segment(scan, Want(space=space))


def _posteriors(prepared: Prepared, cleaned: Posteriors, want: Want) -> Map4D:
    if want.space == "1mm":
        return Map4D(posteriors_on(cleaned, prepared.fine), prepared.fine.affine)
    return Map4D(from_ras(posteriors_on(cleaned, prepared.native), prepared.orientation), prepared.original_affine)


def _resampled(prepared: Prepared) -> Volume:
    if prepared.fine.same_as(prepared.native):
        return prepared.scan
    return resample_to_spacing(prepared.scan, RESULT_SPACING_MM, order=1)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 3)
