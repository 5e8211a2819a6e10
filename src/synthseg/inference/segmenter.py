"""The pipeline in one place: load weights once, segment many scans."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from synthseg.errors import UsageError
from synthseg.inference.bundle import AnyWeights, Weights, gather, main_of, multiple_of, structures_of
from synthseg.inference.config import InferenceConfig
from synthseg.inference.focus import focus, needs_focus
from synthseg.inference.hierarchy import denoised, first_look, tissue_groups, with_groups
from synthseg.inference.model import Model
from synthseg.inference.modes import mode_config
from synthseg.inference.parcels import predict_parcels
from synthseg.inference.postprocess import clean_posteriors
from synthseg.inference.predict import (
    enough_memory,
    pick_device,
    predict_posteriors,
    require_finite,
    smooth_posteriors,
)
from synthseg.inference.prepare import Prepared, prepare, subject_of
from synthseg.inference.quality import predict_quality
from synthseg.inference.results import assemble
from synthseg.inference.segmentation import Segmentation, check_invariants
from synthseg.inference.structures import Structure
from synthseg.inference.want import Want
from synthseg.volumes import Volume, read_volume

__all__ = ["Segmenter", "Want", "segment"]


@final
class Segmenter:
    """Segments brain scans of any contrast and resolution.

    Args:
        weights: instead of the mode's own: name or path of weights, or a :class:`Model` of your own, whose role says
            which network it replaces; or several of them by role. None and "default" are the mode's own.
        mode: "default"; "fast" (no mirror averaging, no topology clean-up); "robust" (for scans of poor quality);
            "robust-fast" (the same networks once each, as published).
        config: all settings at once, instead of the mode's.
        parcels: divide the cerebral cortex into parcels: True, or weights of role "parcels".
        quality: predict how good the result is: True, or weights of role "quality".
        protocol: the label protocol the caller counts on (a name or a .tsv): weights of another are refused.
        ct: True clips to the CT window, False never does, None recognises Hounsfield units by themselves.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of this process, set for all of torch; None leaves torch's choice.

    Attributes:
        models: the networks by role, in the order in which they run; ``model`` is the one that gives the structures.
        structures: what the labels of the results can be, background first, parcels last.

    Raises: WeightsError, ConfigError for an unknown mode, UsageError for an unknown device or role.
    """

    def __init__(
        self,
        weights: Weights = None,
        mode: str = "default",
        *,
        config: InferenceConfig | None = None,
        parcels: bool | AnyWeights = False,
        quality: bool | AnyWeights = False,
        protocol: str | Path | None = None,
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
        self.models = gather(mode, weights, parcels=parcels, quality=quality, protocol=protocol)
        for model in self.models.values():
            model.network.to(self.device)

    @property
    def model(self) -> Model:
        return main_of(self.models)

    @property
    def multiple(self) -> int:
        """Voxels that the sides of every network's input are multiples of."""
        return multiple_of(self.models)

    @property
    def structures(self) -> tuple[Structure, ...]:
        return structures_of(self.models)

    @property
    def quality_groups(self) -> tuple[str, ...]:
        """Names of the groups that are scored, in order; empty without quality control."""
        scorer = self.models.get("quality")
        return () if scorer is None else tuple(s.name for s in scorer.channels.structures[1:])

    def with_config(self, config: InferenceConfig) -> Segmenter:
        """The same networks, not loaded again, under other settings."""
        other = copy.copy(self)
        other.config = config
        return other

    def without_quality(self) -> Segmenter:
        """The same networks but the one that predicts how good a result is."""
        other = copy.copy(self)
        other.models = {role: model for role, model in self.models.items() if role != "quality"}
        return other

    def segment(self, scan: str | Path | Volume, want: Want | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            scan: a file, or a :class:`synthseg.volumes.Volume`.
        Returns: a segmentation whose promises have been checked (:func:`check_invariants`).
        Raises: VolumeError if the scan cannot be read or used, InvariantError if the result breaks a promise,
            UsageError for tissue maps of structures that are not FreeSurfer's.
        """
        want = want or Want()
        if want.tissue_maps:
            from synthseg.inference.tissue_maps import require_tissues

            require_tissues(self.model.channels.structures)
        timings: dict[str, float] = {}
        with _timed(timings, "read"):
            volume = scan if isinstance(scan, Volume) else read_volume(scan)
        with _timed(timings, "prepare"):
            prepared = prepare(volume, spacing_mm=self.model.spacing_mm, multiple=self.multiple, config=self.config)
        subject = subject_of(volume)
        with _timed(timings, "locate"):
            prepared, groups = self._focused(prepared, subject)
        with enough_memory(subject, self.device, prepared.padded.shape):
            segmentation, foreground_mm3 = self._segment(prepared, groups, want, timings)
        check_invariants(segmentation, foreground_mm3, joint=self.config.parcel_scaling == "joint")
        return replace(segmentation, timings_s=timings)

    def _segment(
        self, prepared: Prepared, groups: Tensor | None, want: Want, timings: dict[str, float]
    ) -> tuple[Segmentation, float]:
        """The segmentation, and the volume of all that is not background."""
        channels, config, subject = self.model.channels, self.config, subject_of(prepared.scan)
        parcels = quality = None
        image = prepared.image.to(self.device)
        inputs = self._inputs(image, groups, subject, timings)
        with _timed(timings, "predict"):
            unsmoothed = replace(config, smoothing_sigma_vox=0)
            posteriors = predict_posteriors(self.model.network, inputs, channels.partners, unsmoothed)
            require_finite(posteriors, self.model.name, subject)
            del inputs, groups
        # Soft inputs are read as the network gives them, which is what training shows: smoothing makes every border
        # look doubtful. The published form reads the argmax of what is smoothed (reference 6.4).
        scorer = self.models.get("quality")
        if scorer is not None and scorer.soft_inputs:
            with _timed(timings, "quality"):
                quality = predict_quality(scorer, posteriors, channels, config, subject=subject)
        with _timed(timings, "smooth"):
            posteriors = smooth_posteriors(posteriors, config.smoothing_sigma_vox)
        if scorer is not None and not scorer.soft_inputs:
            with _timed(timings, "quality"):
                quality = predict_quality(scorer, posteriors, channels, config, subject=subject)
        if "parcels" in self.models:
            with _timed(timings, "parcels"):
                parcels = predict_parcels(
                    self.models["parcels"],
                    image,
                    posteriors.argmax(0),
                    channels,
                    config,
                    grid=prepared.padded,
                    subject=subject,
                )
        with _timed(timings, "postprocess"):
            cleaned = clean_posteriors(posteriors.cpu().numpy(), prepared.padded, prepared.fine, channels, config)
            del posteriors
        with _timed(timings, "results"):
            segmentation = assemble(prepared, cleaned, channels, want, config, parcels)
        return replace(segmentation, quality=quality), cleaned.foreground_mm3

    def _focused(self, prepared: Prepared, subject: str) -> tuple[Prepared, Tensor | None]:
        """The prepared scan, cut to the brain if its field of view is larger than the network's own.

        Returns: it, and in robust mode the tissue groups where the first look has already given those of this window.
        """
        field = self.model.field_of_view_mm
        if field is None or not needs_focus(prepared, field):
            return prepared, None
        looker = self.models.get("tissues", self.model)
        with enough_memory(subject, self.device, prepared.padded.shape):
            seen = first_look(looker, prepared.image.to(self.device), self.config, subject)
        background = seen[0].cpu().numpy()
        focused = focus(prepared, background, field, multiple=self.multiple, config=self.config)
        same = focused.image is prepared.image
        return focused, seen.argmax(0) if same and "tissues" in self.models else None

    def _inputs(self, image: Tensor, groups: Tensor | None, subject: str, timings: dict[str, float]) -> Tensor:
        """What the network of the structures reads: the image, in robust mode with the denoised tissue groups."""
        if "guided" not in self.models:
            return image
        with _timed(timings, "tissues"):
            if groups is None:
                groups = tissue_groups(self.models["tissues"], image, self.config, subject)
        with _timed(timings, "denoise"):
            groups = denoised(self.models["denoiser"], groups, self.config, subject)
        return with_groups(image, groups, len(self.models["denoiser"].channels))


def segment(
    scan: str | Path | Volume, *, weights: str | Path = "default", mode: str = "default", space: str = "native"
) -> Segmentation:
    """Segment one scan with default settings. For many scans build one :class:`Segmenter`: it loads weights once.

    Raises: see :meth:`Segmenter.segment`.
    """
    return Segmenter(weights, mode).segment(scan, Want(space=space))


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 3)
