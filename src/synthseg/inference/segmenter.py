"""The pipeline in one place: load weights once, segment many scans."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from synthseg.engine.choose import choose
from synthseg.engine.memory import parse_size
from synthseg.errors import UsageError
from synthseg.inference.bundle import AnyWeights, Weights, gather, main_of, multiple_of, structures_of
from synthseg.inference.config import InferenceConfig, check_precision
from synthseg.inference.ensemble import common_settings, members_of, temperature_notes
from synthseg.inference.focus import focused
from synthseg.inference.hierarchy import look
from synthseg.inference.model import Model
from synthseg.inference.modes import mode_config
from synthseg.inference.passes import Stopwatch, run_networks
from synthseg.inference.placement import Placement, place, wherever_there_is_memory
from synthseg.inference.predict import pick_device
from synthseg.inference.prepare import Prepared, prepare, subject_of
from synthseg.inference.results import assemble
from synthseg.inference.scan_checks import check_scan
from synthseg.inference.segmentation import Segmentation, check_invariants
from synthseg.inference.structures import Structure
from synthseg.inference.want import Want
from synthseg.volumes import Volume, read_volume

__all__ = ["Segmenter", "Want", "segment"]

NO_QUALITY = "no quality was predicted: there is no network for it that fits these weights"


@final
class Segmenter:
    """Segments scans of any contrast and resolution: brains, or what the weights are for.

    Args:
        weights: instead of the mode's own: name or path of weights, or a :class:`Model` of your own, whose role says
            which network it replaces; or several of them by role. None and "default" are the mode's own. A list is of
            networks for the same structures, merged into one result by ``config.merge`` ("mean", "max" or "vote").
        mode: "default"; "fast" (no mirror averaging, no topology clean-up); "robust" (for scans of poor quality);
            "robust-fast" (the same networks once each, as published).
        config: all settings at once, instead of the mode's. What the weights rule out stays off: weights for a heart
            say that its mirror image is none (``Model.settings``).
        parcels: divide the cerebral cortex into parcels: True, or weights of role "parcels".
        quality: predict how good the result is: True, or weights of role "quality"; None where there is a network for
            it (every result then has a note where there is none).
        protocol: the label protocol the caller counts on (a name or a .tsv): weights of another are refused.
        ct: True clips to the CT window, False never does, None recognises Hounsfield units by themselves.
        device: "auto" (CUDA when there is one), "cpu", "cuda", "cuda:N" or "mps".
        threads: CPU threads of this process, set for all of torch; None leaves torch's choice.
        backend: "auto", or what carries the networks out: "torch", "openvino", "compile", "plain"; in float32 all
            give the same answer.
        precision: "float32", "bfloat16" or "int8" (weights with activation ranges) instead of the mode's.
        memory: what the process may take in all, as "4G" or in bytes: the networks in slabs as thin as that asks for,
            what is kept of their answers, and the results. A scan for which it is too little is refused before the
            networks run. On a GPU, of its memory; main memory is not limited then. Networks that are not run in slabs
            (backend plain) are not counted. None leaves the choice to speed. Labels and volumes do not depend on it.

    Attributes:
        models: the networks by role, in the order in which they run; ``model`` is the one that gives the structures, of
            several the first.
        placement: what carries them out; ``backend`` is its name, ``why`` says why it was chosen.
        config: the settings in use.
        structures: what the labels of the results can be, background first, parcels last.

    Raises: WeightsError, ConfigError for an unknown mode, UsageError for an unknown device or role, and for networks
        that cannot be merged so.
    """

    def __init__(
        self,
        weights: Weights = None,
        mode: str = "default",
        *,
        config: InferenceConfig | None = None,
        parcels: bool | AnyWeights = False,
        quality: bool | AnyWeights | None = False,
        protocol: str | Path | None = None,
        ct: bool | None = None,
        device: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        precision: str | None = None,
        memory: str | int | None = None,
    ) -> None:
        settings = mode_config(mode) if config is None else config
        if precision is not None:
            settings = replace(settings, precision=check_precision(precision))
        if ct is not None:
            settings = replace(settings, ct=ct)
        limit = parse_size(memory) if isinstance(memory, str) else memory
        if threads is not None:
            if threads < 1:
                raise UsageError("threads", found=str(threads), fix="use a number of at least 1")
            torch.set_num_threads(threads)
        choice = choose(backend, precision=settings.precision, device=pick_device(device), threads=threads)
        asked = quality
        if quality is None and settings.merge != "mean" and isinstance(weights, list | tuple) and len(weights) > 1:
            quality = False  # it reads what goes into the clean-up, which other rules have several of
        models = gather(mode, weights, parcels=parcels, quality=quality, protocol=protocol)
        self.placement = place(models, choice, limit=limit)
        self._without = asked is None and "quality" not in models
        self.config = common_settings(models, settings)

    @property
    def models(self) -> Mapping[str, Model]:
        return self.placement.models

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def backend(self) -> str:
        return self.placement.choice.backend

    @property
    def why(self) -> str:
        return self.placement.choice.why

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
        """The same networks, not loaded again, under other settings; their precision stays."""
        other = copy.copy(self)
        other.config = common_settings(self.models, replace(config, precision=self.config.precision))
        return other

    def without_quality(self) -> Segmenter:
        """The same networks but the one that predicts how good a result is."""
        other = copy.copy(self)
        models = {role: model for role, model in self.models.items() if role != "quality"}
        other.placement = replace(self.placement, models=models)
        return other

    def prepare(self, scan: Volume) -> Prepared:
        """What these networks read of a scan, to be segmented later; a batch does this while another one is segmented.

        Raises: VolumeError if the scan cannot be used.
        """
        return prepare(scan, spacing_mm=self.model.spacing_mm, multiple=self.multiple, config=self.config)

    def segment(self, scan: str | Path | Volume | Prepared, want: Want | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            scan: a file, a :class:`synthseg.volumes.Volume`, or what :meth:`prepare` made of one.
        Returns: a segmentation whose promises have been checked (:func:`check_invariants`).
        Raises: VolumeError if the scan cannot be read or used, InvariantError if the result breaks a promise,
            UsageError for tissue maps of structures that are not FreeSurfer's, SynthsegError where memory does not
            suffice: that of the machine, or what the limit allows.
        """
        want = want or Want()
        if want.tissue_maps:
            from synthseg.inference.tissue_maps import require_tissues

            require_tissues(self.model.channels.structures)
        watch = Stopwatch()
        if isinstance(scan, Prepared):
            prepared = scan
        else:
            with watch.on("read"):
                volume = scan if isinstance(scan, Volume) else read_volume(scan)
            with watch.on("prepare"):
                prepared = self.prepare(volume)
            del volume
        subject = subject_of(prepared.scan)
        (segmentation, foreground_mm3), placement = wherever_there_is_memory(
            self.placement, lambda there: self._segment(there, prepared, want, watch), subject, prepared.padded.shape
        )
        members = tuple(members_of(self.models).values())
        notes = (*segmentation.notes, *(temperature_notes(members) if self.config.merge == "mean" else ()))
        notes = (*notes, placement.note) if placement.note else notes
        notes = (*notes, NO_QUALITY) if self._without else notes
        segmentation = replace(segmentation, notes=notes, ran=placement.ran)
        check_invariants(segmentation, foreground_mm3, joint=self.config.parcel_scaling == "joint")
        return replace(segmentation, timings_s=watch.seconds)

    def _segment(
        self, placement: Placement, prepared: Prepared, want: Want, watch: Stopwatch
    ) -> tuple[Segmentation, float]:
        """The segmentation, and the volume of all that is not background."""
        with watch.on("locate"):
            prepared, groups = self.focused(prepared, placement)
        answers = run_networks(placement, prepared, groups, want, self.config, watch)
        with watch.on("results"):
            segmentation = assemble(
                answers.prepared, answers.posteriors, self.model.channels, want, self.config, answers.parcels
            )
        with watch.on("warnings"):
            warnings = check_scan(answers.prepared, answers.posteriors, self.model, self.config)
        return replace(segmentation, quality=answers.quality, warnings=warnings), answers.posteriors.foreground_mm3

    def focused(self, prepared: Prepared, placement: Placement | None = None) -> tuple[Prepared, Tensor | None]:
        """The prepared scan as the networks are shown it: cut to the brain if its field of view is too large.

        Returns: it, and in robust mode the tissue groups where the first look has already given those of this window.
        """
        placement = placement or self.placement
        subject = subject_of(prepared.scan)

        def look_through(model: Model, image: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
            sides = tuple(image.shape[2:])
            placement.require_room([(model, 1)], sides, None, subject)
            plan = placement.plan_of(model, sides)
            return look(model, image.to(placement.device), subject, plan, of=of)

        found = focused(prepared, placement.models, self.config, look_through)
        return found.prepared, found.groups


def segment(
    scan: str | Path | Volume, *, weights: str | Path = "default", mode: str = "default", space: str = "native"
) -> Segmentation:
    """Segment one scan with default settings. For many scans build one :class:`Segmenter`: it loads weights once.

    Raises: see :meth:`Segmenter.segment`.
    """
    return Segmenter(weights, mode).segment(scan, Want(space=space))
