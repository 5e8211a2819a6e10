"""Quality control: the Dice that a network predicts for each group of structures, and what it means for the user."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from synthseg.inference.structures import CSF_VALUE, Channels
from synthseg.volumes.window import Window, bounding_box, crop_pad

if TYPE_CHECKING:  # torch comes with the functions that compute: tables and records read verdicts without it
    from torch import Tensor

    from synthseg.inference.config import InferenceConfig
    from synthseg.inference.model import Model

Verdict = Literal["pass", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")  # ever worse
Limits = tuple[float, float]

# Below this in any group a result counts as failed: the value that pipelines built on SynthSeg+ use (reference C.7.1).
FAIL_BELOW = 0.65
WARN_BELOW = 0.75  # ours: above the threshold by about the error of a prediction
# Both suit networks that reach 0.85 to 0.9 on a clear image. Where a network's card says what it predicts for clear
# images and that is less, a group fails when it is a fifth below that, and is doubtful when a tenth below.
FAIL_SHARE, WARN_SHARE = 0.8, 0.9


@dataclass(frozen=True)
class Quality:
    """Predicted Dice of a segmentation, group by group.

    Attributes:
        scores: by group name, in [0, 1], in the order of the network's protocol; background is not scored.
        fail_below, warn_below: a group fails below the first, is doubtful between the two, passes from the second on.
        own: both limits of groups that have others (:func:`own_limits`).

    Raises: ValueError without any score, or with a score or threshold that is not a finite number: a NaN is below no
        threshold, and would pass.
    """

    scores: dict[str, float]
    fail_below: float = FAIL_BELOW
    warn_below: float = WARN_BELOW
    own: Mapping[str, Limits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = [self.fail_below, self.warn_below, *itertools.chain(*self.own.values())]
        if not self.scores or not all(map(math.isfinite, (*self.scores.values(), *limits))):
            raise ValueError("quality: no scores, or some that are not finite numbers")

    def limits(self, name: str) -> Limits:
        """Of a group: it fails below the first, and is doubtful below the second."""
        return self.own.get(name, (self.fail_below, self.warn_below))

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each group."""
        return {name: self._verdict(name) for name in self.scores}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole: the worst of any group."""
        return max(self.verdicts.values(), key=VERDICTS.index)

    @property
    def sentence(self) -> str:
        """The verdict for a person: the worst group, or all with that verdict or a worse one, lowest first."""
        verdict = self.verdict
        if verdict == "pass":
            name = min(self.scores, key=self.scores.__getitem__)
            return f"quality: pass (lowest predicted Dice {self.scores[name]:.2f}, {name})"
        which = VERDICTS.index(verdict)  # of the two limits: the first that was met, counted from the end
        low = sorted((score, name) for name, score in self.scores.items() if score < self.limits(name)[2 - which])
        groups = ", ".join(f"{name} ({score:.2f}, limit {self.limits(name)[2 - which]:.2f})" for score, name in low)
        return f"quality: {verdict}: predicted Dice too low for {groups}: look at the result before using it"

    def _verdict(self, name: str) -> Verdict:
        fail_below, warn_below = self.limits(name)
        if self.scores[name] < fail_below:
            return "fail"
        return "warn" if self.scores[name] < warn_below else "pass"


def own_limits(typical: Mapping[str, float]) -> dict[str, Limits]:
    """Limits of a network that reaches less than the published ones do.

    Args:
        typical: by group, the Dice it predicts for segmentations of clear images (``weights calibrate --quality``).
    Returns: by group, shares of that (:data:`FAIL_SHARE`, :data:`WARN_SHARE`), at most the published limits; groups
        that have those are left out.
    """
    limits = {
        name: (min(FAIL_BELOW, round(FAIL_SHARE * value, 4)), min(WARN_BELOW, round(WARN_SHARE * value, 4)))
        for name, value in typical.items()
    }
    return {name: pair for name, pair in limits.items() if pair != (FAIL_BELOW, WARN_BELOW)}


class QualityInputs:
    """What a quality network reads of posteriors, gathered slab by slab, before any clean-up.

    Args:
        model: the network of role "quality"; ``channels`` are those of the posteriors; ``shape`` is the working grid's.
    """

    def __init__(self, model: Model, channels: Channels, shape: tuple[int, int, int]) -> None:
        import torch

        self.model, self.channels = model, channels
        place = {int(value): index for index, value in enumerate(model.channels.values)}
        self.group = [place[int(value)] for value in channels.quality]
        self.groups = torch.zeros(len(place), *shape)
        self.labels = torch.zeros(*shape, dtype=torch.int16)

    def add(self, start: int, slab: Tensor) -> None:
        """Posteriors [n, Y, Z, C] from plane ``start`` on."""
        planes = slice(start, start + len(slab))
        for channel, index in enumerate(self.group):  # not index_add_, whose order of summing is left open on a GPU
            self.groups[index, planes] += slab[..., channel].cpu()
        self.labels[planes] = slab.argmax(-1).cpu().short()

    def seen(self) -> Tensor:
        """[G, X, Y, Z] float32: sums of posteriors, or for a network without ``soft_inputs`` their argmax, one-hot."""
        from synthseg.networks.hierarchy import one_hot_argmax

        return self.groups if self.model.soft_inputs else one_hot_argmax(self.groups[None])[0]


def predict_quality(inputs: QualityInputs, config: InferenceConfig, *, subject: str = "scan") -> Quality:
    """The Dice that a network of role "quality" predicts for a segmentation.

    Source: reference 6.4: groups in a window around the brain, one number each, clipped to [0, 1]. Posteriors are
        summed by group; a network with ``soft_inputs`` (ours) reads these sums, another one their argmax, one-hot (the
        original takes the group of the most probable structure).
    Raises: InvariantError if the network says something that is not a number.
    """
    import torch

    from synthseg.inference.predict import require_finite, run_network

    model = inputs.model
    with torch.inference_mode():
        groups, labels = inputs.seen().numpy(), inputs.labels.numpy()
        window = quality_window(labels, inputs.channels.values, window_sides(model, groups.shape[1:]))
        seen = crop_pad(groups, window.start, window.shape)
        seen[0] += crop_pad(np.zeros(groups.shape[1:], np.float32), window.start, window.shape, fill=1)
        image = torch.from_numpy(seen)[None].to(model.device)
        scores = require_finite(run_network(model.network, image, config)[0], model.name, subject)
    names = [structure.name for structure in model.channels.structures]
    clipped = scores.clamp(0, 1).tolist()
    return Quality(dict(zip(names[1:], clipped[1:], strict=True)), own=own_limits(model.typical))


def quality_window(labels: np.ndarray, values: np.ndarray, sides: tuple[int, int, int]) -> Window:
    """The window of ``sides`` voxels centred on all that is neither background nor CSF; it may reach outside.

    Args:
        labels: [X, Y, Z] winning channel; ``values`` [C] are the channels' label values.
    Source: reference 6.4, "QC window", on labels: the original compares channel indices with the label value 24 and so
        leaves out the right cerebellar cortex instead of the CSF. Odd voxels go where the original puts them.
    """
    brain = ~np.isin(values, (0, CSF_VALUE))
    box = bounding_box(brain[labels])
    x, y, z = (start - -((extent - side) // 2) for start, extent, side in zip(box.start, box.shape, sides, strict=True))
    return Window((x, y, z), sides, box.full_shape)


def window_sides(model: Model, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Voxels of the card's field of view, in multiples that the network accepts; without one, those of the grid."""
    wanted = shape
    if model.field_of_view_mm is not None:
        wanted = tuple(round(side / model.spacing_mm) for side in model.field_of_view_mm)
    x, y, z = (-(-max(n, 1) // model.multiple) * model.multiple for n in wanted)
    return x, y, z
