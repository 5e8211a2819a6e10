"""One scan through the networks of a run: what each is given, and what is read of its answers on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from synthseg.inference.bundle import main_of
from synthseg.inference.collect import Collector
from synthseg.inference.config import InferenceConfig
from synthseg.inference.ensemble import FIRST, joint_plan, members_of, stream_mean
from synthseg.inference.focus import touching, widened
from synthseg.inference.hierarchy import denoised, tissue_groups, with_groups
from synthseg.inference.merging import merge_cleaned
from synthseg.inference.needs import Needs, needs_of
from synthseg.inference.parcels import Parcels, predict_parcels
from synthseg.inference.placement import Placement, passes_of
from synthseg.inference.predict import Smoother
from synthseg.inference.prepare import Prepared, subject_of
from synthseg.inference.quality import Quality, QualityInputs, predict_quality
from synthseg.inference.sparse import SparsePosteriors
from synthseg.inference.want import Want


@dataclass
class Stopwatch:
    """Seconds by stage, added up over repetitions."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Add the time until the block ends to the stage's."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)


@dataclass(frozen=True)
class Answers:
    """What the networks said of a scan: cleaned posteriors of the structures, parcels and quality if asked for.

    ``prepared`` is the scan through the window they saw last.
    """

    prepared: Prepared
    posteriors: SparsePosteriors
    parcels: Parcels | None
    quality: Quality | None


def room_for(placement: Placement, prepared: Prepared, want: Want, config: InferenceConfig) -> Needs:
    """What a scan takes beside the networks' passes. Raises: SynthsegError if the limit of memory is too low for it."""
    needs = needs_of(prepared, placement.models, want, on_cpu=placement.on_cpu)
    if config.merge != "mean":  # what is left of each network's answer is kept until the last one has run
        needs = replace(needs, gathered=needs.gathered * len(members_of(placement.models)))
    passes = passes_of(placement.models, flip=config.flip, merge=config.merge)
    placement.require_room(passes, prepared.padded.shape, needs, subject_of(prepared.scan))
    return needs


def run_networks(
    placement: Placement,
    prepared: Prepared,
    groups: Tensor | None,
    want: Want,
    config: InferenceConfig,
    watch: Stopwatch,
) -> Answers:
    """Segment a prepared image.

    Args:
        groups: [X, Y, Z] tissue groups of the same image, if they are known already (robust modes).
        want: what will be made of the answers: the limit of memory holds for that too.
    The posteriors of the structures pass slab by slab: averaged with the mirrored image's, read by quality control,
    smoothed, read for the parcels, cleaned up. Where the brain reaches beyond the image, a wider one is segmented.
    Several networks for the structures become one result as ``config.merge`` says (``ensemble.py``).
    Raises: SynthsegError if the limit of memory is too low, before the networks run.
    """
    if config.merge != "mean" and len(members_of(placement.models)) > 1:
        return _merged(placement, prepared, want, config, watch)
    models, subject = placement.models, subject_of(prepared.scan)
    needs = room_for(placement, prepared, want, config)
    model, scorer = main_of(models), models.get("quality")
    channels = model.channels
    shape = prepared.padded.shape
    image = prepared.image.to(placement.device)
    inputs = _inputs(placement, image, groups, needs, subject, watch)
    collector = Collector(prepared.padded, prepared.fine, channels, config)
    smoother = Smoother(config.smoothing_sigma_vox)
    scored = None if scorer is None else QualityInputs(scorer, channels, shape)
    winners = torch.zeros(shape, dtype=torch.int16) if "parcels" in models else None

    counts = np.zeros((3, 2), dtype=np.int64)

    def read_smoothed(start: int, slab: Tensor) -> None:
        if len(slab) == 0:
            return
        # Soft inputs are read as the network gives them, which is what training shows: smoothing makes every border
        # look doubtful. The published form reads the argmax of what is smoothed (reference 6.4).
        if scored is not None and not scored.model.soft_inputs:
            with watch.on("quality"):
                scored.add(start, slab)
        if winners is not None:
            with watch.on("parcels"):
                winners[start : start + len(slab)] = slab.argmax(-1).cpu().short()
        with watch.on("postprocess"):
            counts[:] += touching(slab, start, shape[0])
            collector.add(start, slab)

    slabs = _mean(placement, inputs, needs, config, subject)
    while True:
        with watch.on("predict"):
            start, slab = next(slabs, (-1, None))
            if slab is None:
                break
        if scored is not None and scored.model.soft_inputs:
            with watch.on("quality"):
                scored.add(start, slab)
        with watch.on("smooth"):
            ready = smoother.add(start, slab)
        del slab
        read_smoothed(*ready)
    with watch.on("smooth"):
        ready = smoother.finish()
    read_smoothed(*ready)
    del slabs, inputs, ready
    wider = widened(prepared, models, config, counts)
    if wider is not None:
        del collector
        return run_networks(placement, wider, None, want, config, watch)
    quality = parcels = None
    if scored is not None:
        with watch.on("quality"):
            quality = predict_quality(scored, config, subject=subject)
    if winners is not None:
        with watch.on("parcels"):
            parcels = _parcels(placement, image, winners, prepared, needs, config)
    with watch.on("postprocess"):
        posteriors = collector.finish()
    return Answers(prepared, posteriors, parcels, quality)


def _mean(
    placement: Placement, inputs: Tensor, needs: Needs, config: InferenceConfig, subject: str
) -> Iterator[tuple[int, Tensor]]:
    """The posteriors of the structures' network, or the mean of several, slab by slab."""
    shape = tuple(inputs.shape[2:])
    members = list(members_of(placement.models).values())
    passes = len(members) * (2 if config.flip else 1)
    plans = [(model, placement.plan_of(model, shape, passes=passes, needs=needs)) for model in members]
    return stream_mean(members, inputs, flip=config.flip, plan=joint_plan(plans), subject=subject)


def _merged(placement: Placement, prepared: Prepared, want: Want, config: InferenceConfig, watch: Stopwatch) -> Answers:
    """Every network's answer on its own, cleaned up, then all of them merged. They all see the same window.

    Raises: SynthsegError if the limit of memory is too low, before the networks run.
    """
    members = members_of(placement.models)
    room_for(placement, prepared, want, config)
    others = {role: model for role, model in placement.models.items() if role not in members}
    found: list[SparsePosteriors] = []
    while len(found) < len(members):
        member = list(members.values())[len(found)]
        answer = run_networks(replace(placement, models={FIRST: member, **others}), prepared, None, want, config, watch)
        if found and answer.prepared.window != prepared.window:
            found = []  # this one saw the brain go on: those before it must see the wider window too
        else:
            found.append(answer.posteriors)
        prepared = answer.prepared
    with watch.on("merge"):
        merged = merge_cleaned(found, config.merge)
    return Answers(prepared, merged, None, None)


def _inputs(
    placement: Placement, image: Tensor, groups: Tensor | None, needs: Needs, subject: str, watch: Stopwatch
) -> Tensor:
    """What the network of the structures reads: the image, in robust mode with the denoised tissue groups."""
    models = placement.models
    if "guided" not in models:
        return image
    shape = tuple(image.shape[2:])
    tissues, denoiser = models["tissues"], models["denoiser"]
    with watch.on("tissues"):
        if groups is None:
            groups = tissue_groups(tissues, image, subject, placement.plan_of(tissues, shape, needs=needs))
    with watch.on("denoise"):
        groups = denoised(denoiser, groups, subject, placement.plan_of(denoiser, shape, needs=needs))
    return with_groups(image, groups, len(denoiser.channels))


def _parcels(
    placement: Placement, image: Tensor, winners: Tensor, prepared: Prepared, needs: Needs, config: InferenceConfig
) -> Parcels:
    model, subject = placement.models["parcels"], subject_of(prepared.scan)
    plan = placement.plan_of(model, tuple(image.shape[2:]), needs=needs)
    return predict_parcels(
        model,
        image,
        winners.long().to(image.device),
        main_of(placement.models).channels,
        config,
        grid=prepared.padded,
        subject=subject,
        plan=plan,
    )
